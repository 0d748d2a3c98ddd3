"""The model of what clients may expect of their uploads, and the checks of every answer against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.exchange import Answer

SYNC_DISTANCE = 1500  # bytes in place of 64 MiB


class Unreadable(Exception):
    """The stored bytes cannot be looked at now."""


@dataclass(slots=True)
class Attempt:
    """Bytes that a client has sent to an offset: no other attempt has the same ones."""

    start: int
    content: bytes
    whole: bool = False  # kept as a whole or not at all
    refused: bool = False  # never kept
    delivered: int = 0


@dataclass(slots=True)
class Expected:
    """An upload as a client knows it.

    `known` are the bytes that the server has acknowledged; `floor` says how many of them nothing may take away.
    """

    number: int
    length: int
    deferred: bool = False
    declared: bool = True  # the server knows the length
    kind: str = ""  # "", partial or final
    id: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    known: bytearray = field(default_factory=bytearray)
    floor: int = 0
    last_offset: int = 0  # the offset that the server answered last
    complete: bool = False  # the client was told so
    may_be_gone: bool = False  # the client has asked to end it, or a power cut may have taken its record
    is_gone: bool = False  # the client was told so
    given_up: bool = False
    parts: tuple[Expected, ...] = ()
    touched_at: float = math.inf  # virtual time before which the last acknowledged request has begun
    abandoned: bool = False
    is_ending: bool = False  # its bytes may be removed at any moment
    was_removed: bool = False  # a DELETE was answered 204
    has_expired: bool = False
    may_be_completed: bool = False  # an administrator has asked to complete it at its offset
    may_be_expired: bool = False  # an administrator has asked to expire it, unless it is complete
    wanted_length: int = 0  # by its client

    def __post_init__(self) -> None:
        self.wanted_length = self.length

    def may_have(self, length: int) -> bool:
        """Return whether this may be its length: an administrator may have ended it at or after what is known."""
        return length == self.length or (self.may_be_completed and self.floor <= length <= self.wanted_length)

    @property
    def path(self) -> str:
        return f"/files/{self.id}"

    def join_parts(self) -> None:
        """Expect the bytes of the parts in a final upload, which may be gone if one of them is."""
        if self.parts and not self.complete:
            self.known = bytearray(b"".join(part.known for part in self.parts))
            self.may_be_gone = self.may_be_gone or any(part.may_be_gone for part in self.parts)


class Oracle:
    """The judge of answers.

    `look` returns the bytes of an upload in the storage, None if there are none, and may raise `Unreadable`.
    """

    def __init__(self, durability: str, look: Callable[[str], bytes | None], complain: Callable[[str], None]) -> None:
        self.durability = durability
        self.look = look
        self.complain = complain
        self.uploads: list[Expected] = []
        self.losses = 0  # power cuts and failed syncs
        self.lost_at = -math.inf  # virtual time of the last one
        self.expires_after = self.retention = 0.0  # seconds; 0: never
        self.ended: set[str] = set()  # ids of uploads that the application ends
        self.now: Callable[[], float] = lambda: 0.0
        self.was_taken: Callable[[str], bool] = lambda _: False  # whether a fault took the bytes of an upload
        self.refuses: Callable[[Expected], bool] = lambda _: False  # whether a rule may have ended an upload

    def _wrong(self, upload: Expected, text: str) -> None:
        self.complain(f"upload {upload.number} ({upload.id[:8]}): {text}")

    def acknowledged(self, upload: Expected, offset: int, attempt: Attempt | None, source: str, since: int) -> None:
        """The server has said that it has so many bytes; there had been `since` losses when it was asked."""
        if upload.is_gone:
            self._wrong(upload, f"{source} answers offset {offset} after it was removed")
        if offset < upload.floor:
            self._wrong(upload, f"{source} answers offset {offset}, although {upload.floor} bytes were acknowledged")
        if offset > upload.length:
            self._wrong(upload, f"{source} answers offset {offset} of {upload.length}")
        upload.last_offset = offset
        del upload.known[offset:]
        held = len(upload.known)
        if attempt is not None and attempt.start <= held <= offset <= attempt.start + len(attempt.content):
            upload.known += attempt.content[held - attempt.start : offset - attempt.start]
        elif offset > held:
            self._identify(upload, offset, source, since)
        upload.floor = offset
        upload.complete = upload.complete or (upload.declared and offset == upload.length)
        if since == self.losses:
            self.check_stored(upload, source)
        else:
            self._weaken(upload, records=True)
            upload.floor = min(upload.floor, len(upload.known))  # a loss may have come before the look

    def note_expiry(self, upload: Expected) -> None:
        """Let an upload be gone if the time has come."""
        for part in upload.parts:
            self.note_expiry(part)
        is_expired = upload.may_be_expired and not upload.complete
        if upload.id in self.ended or is_expired or self.refuses(upload):
            upload.may_be_gone = upload.is_ending = True
        kept = self.retention if upload.complete and upload.kind != "partial" else self.expires_after
        if kept and self.now() - upload.touched_at >= kept:
            upload.may_be_gone = upload.is_ending = True

    def created(self, upload: Expected, since: int) -> None:
        """The server has made an upload."""
        if self.was_taken(upload.id) or upload.id in self.ended or self.refuses(upload):
            upload.may_be_gone = upload.is_ending = True
        elif since != self.losses:
            upload.may_be_gone = True

    def appended(self, upload: Expected, offset: int, attempt: Attempt, since: int) -> None:
        """Judge the answer 204 to a PATCH."""
        if not attempt.content and attempt.start < upload.floor:
            return  # another request of the client has appended meanwhile
        if offset != attempt.start + len(attempt.content):
            self._wrong(upload, f"PATCH answers offset {offset} after {len(attempt.content)} at {attempt.start}")
        self.acknowledged(upload, offset, attempt, "PATCH", since)

    def refused(self, upload: Expected, offset: int | None, since: int) -> None:
        """A PATCH was refused, with this offset or none; there had been `since` losses when it was sent."""

    def _identify(self, upload: Expected, offset: int, source: str, since: int) -> None:
        """Find out whose bytes were kept: they must be those of attempts, in their order."""
        held = len(upload.known)
        try:
            stored = self.look(upload.id)
        except Unreadable:
            return
        if stored is None:
            return
        content = stored[held:offset]
        if len(content) < offset - held and since != self.losses:
            return
        if len(content) < offset - held:
            self._wrong(upload, f"{source} answers offset {offset}, and the storage has {len(stored)} bytes")
            return
        position = held
        while position < offset:
            best = max((self._matching(attempt, stored, position, offset) for attempt in upload.attempts), default=0)
            if best == 0:
                self._wrong(upload, f"{source} answers offset {offset}, with bytes at {position} that nobody has sent")
                return
            position += best
        upload.known += content

    def _matching(self, attempt: Attempt, stored: bytes, position: int, end: int) -> int:
        if attempt.refused or not attempt.start <= position < attempt.start + len(attempt.content):
            return 0
        wanted = attempt.content[position - attempt.start : end - attempt.start]
        if attempt.whole and not self.losses and (position != attempt.start or len(wanted) < len(attempt.content)):
            return 0
        if stored[position : position + len(wanted)] == wanted:
            return len(wanted)
        size = 0
        while size < len(wanted) and stored[position + size] == wanted[size]:
            size += 1
        return 0 if attempt.whole and not self.losses else size

    def check_stored(self, upload: Expected, source: str) -> None:
        """Compare what the storage has with what was acknowledged."""
        if upload.kind == "final" or not upload.known or upload.is_ending:
            return
        if self.proves_nothing:
            return
        try:
            stored = self.look(upload.id)
        except Unreadable:
            return
        if stored is None:
            if not upload.may_be_gone:
                self._wrong(upload, f"after {source} its file is gone")
        elif stored[: len(upload.known)] != upload.known:
            self._wrong(upload, f"after {source} its first {len(upload.known)} bytes are not those acknowledged")

    def looked(self, upload: Expected, answer: Answer, source: str, since: int, floor: int = 0) -> None:
        """Judge the answer to a HEAD; `floor` is that of the upload when the HEAD began."""
        self.note_expiry(upload)
        if answer.offset is not None and floor <= answer.offset < upload.floor:
            return  # an append that ran beside the HEAD was acknowledged earlier
        if answer.status == 200:
            length = answer.headers.get("upload-length")
            upload.declared = length is not None
            told = upload.wanted_length if length is None else int(length)
            if not upload.may_have(told):
                self._wrong(upload, f"{source} answers the length {length}")
            upload.length = told
            if answer.offset is not None:
                self.acknowledged(upload, answer.offset, None, source, since)
        elif answer.status in (404, 410):
            if not upload.may_be_gone:
                self._wrong(upload, f"{source} answers {answer.status}")
            upload.is_gone = True
        elif answer.status != 423:
            self._wrong(upload, f"{source} answers {answer.status}")

    def downloaded(self, upload: Expected, answer: Answer) -> None:
        """Judge the answer to a GET of a complete upload."""
        self.note_expiry(upload)
        if answer.status == 200:
            if answer.body != upload.known and not self.proves_nothing:
                self._wrong(upload, f"the download has {len(answer.body)} other bytes than {len(upload.known)} sent")
        elif answer.status in (404, 410):
            if not upload.may_be_gone:
                self._wrong(upload, f"the download answers {answer.status}")
        elif answer.status not in (500, 503, 423):
            self._wrong(upload, f"the download answers {answer.status}")

    @property
    def proves_nothing(self) -> bool:
        """Whether bytes that were never synced may be other ones now."""
        return self.durability == "never" and self.losses > 0

    def lost_unsynced(self, *, records: bool) -> None:
        """A power cut, or a failed sync: from now on only what was synced before its acknowledgement must be there."""
        self.losses += 1
        self.lost_at = self.now()
        for upload in self.uploads:
            self._weaken(upload, records=records)

    def _weaken(self, upload: Expected, *, records: bool) -> None:
        if self.durability == "never":
            upload.floor = 0
            upload.complete = False
        elif not (self.durability == "always" or upload.deferred or upload.complete):
            upload.floor = max(0, upload.floor - SYNC_DISTANCE)
        if records and upload.is_ending:
            upload.floor = 0  # the record may come back, and its bytes not
        if records and upload.floor == 0 and not upload.complete:
            upload.may_be_gone = True
        if records and upload.was_removed:
            upload.floor, upload.complete, upload.may_be_gone = 0, False, True
        if records:
            upload.is_gone = False  # its removal may be undone, of its record without its bytes
