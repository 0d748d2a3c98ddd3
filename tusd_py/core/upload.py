"""The record of one upload, its status and its id."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tusd_py.core.metadata import decode_metadata
from tusd_py.core.record_copies import RecordCopies

MAX_UPLOAD_SIZE = (1 << 63) - 1  # bytes; the largest number of header fields, records and claims
UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
# Names of routes beside those of uploads: `events` below the creation URL, the others where that is `/`.
RESERVED_IDS = frozenset(("admin", "assets", "events", "healthz", "metrics", "readyz", "record"))


class Status(StrEnum):
    """The state of an upload: `active -> finishing -> complete`, with `terminated` and `expired` as ends.

    `finishing` is durable: every byte is stored, but completion has not succeeded yet and will be tried again.

    Example::

        if upload.status is Status.COMPLETE:
            ...
    """

    ACTIVE = "active"
    FINISHING = "finishing"
    COMPLETE = "complete"
    TERMINATED = "terminated"
    EXPIRED = "expired"


class UploadKind(StrEnum):
    """The role of an upload in the concatenation extension.

    Example::

        if upload.concatenation is UploadKind.PARTIAL:
            return  # wait for the final upload
    """

    NONE = ""
    PARTIAL = "partial"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Upload:
    """The record of an upload as the state store has it. Times are seconds since the epoch, sizes are bytes.

    Example::

        upload = await tus.uploads.get(upload_id)
        if upload.is_complete:
            print(upload.decoded_metadata.get("filename"), upload.length, "bytes for", upload.owner or "anybody")
    """

    id: str
    created_at: float
    length: int | None = None  # None: not known yet
    deferred: bool = False  # the length was not known at the creation, as of a recording
    offset: int = 0  # committed: storage holds at least these bytes
    status: Status = Status.ACTIVE
    metadata: str | None = None  # Upload-Metadata byte for byte as the client sent it
    concatenation: UploadKind = UploadKind.NONE
    concat_header: str | None = None  # Upload-Concat as the client sent it
    partial_ids: tuple[str, ...] = ()
    expires_at: float | None = None  # None: never
    completed_at: float | None = None
    commit_requests_served: int = 0  # commits made because a reader asked the lock holder for one
    synced: int = 0  # end of the bytes of the last good sync; storages without syncs leave it at 0
    storage_state: str = ""  # how the storage keeps the bytes; only the storage can read it
    location: str = ""  # place of the bytes, independent of later settings; only the storage can read it
    token: int = 0  # fencing token of the last lock holder that changed the record
    owner: str = ""  # the principal that created the upload; empty without authentication
    event_sequence: int = 0  # number of events of the upload that were stored in the outbox
    max_size: int | None = None  # bytes that the application allows; None: as many as the server does
    given_expiry: float | None = None  # expiry that the application set, which no append changes; None: it set none
    uncounted: bool = False  # counts no more: its final upload does, or it has expired and is kept for the operator
    quota_bytes: int | None = None  # bytes that its owner may have altogether, as of the creation; None: any number
    quota_uploads: int | None = None  # unfinished uploads that its owner may have, as of the creation
    reserved_until: float | None = None  # the record stays until then, after the end too, so that its id is taken
    conditions: str = ""  # that its bytes have to fulfil, see `tusd_py.core.conditions`
    client: str = ""  # address that the request for its creation came from; empty if it is not known
    # Time of the last change by the clock of the state store, which stamps it; None in records of earlier versions. Two
    # records with the same content are equal whenever they were written.
    updated_at: float | None = field(default=None, compare=False)

    @property
    def decoded_metadata(self) -> dict[str, str]:
        """The metadata of the client as text, such as `{"filename": "talk.webm", "filetype": "video/webm"}`.

        Empty if there is none. Every access decodes `metadata` again; `parse_metadata` gives values as bytes.
        """
        return decode_metadata(self.metadata) if self.metadata else {}

    @property
    def changed_at(self) -> float:
        """Time of the last change of the record; that of the creation where no other is known."""
        return self.created_at if self.updated_at is None else self.updated_at

    @property
    def is_final(self) -> bool:
        """Whether the upload is made of partial ones."""
        return self.concatenation is UploadKind.FINAL

    @property
    def is_partial(self) -> bool:
        """Whether the upload is a piece of a final one."""
        return self.concatenation is UploadKind.PARTIAL

    @property
    def is_complete(self) -> bool:
        """Whether the upload is finished and can be read."""
        return self.status is Status.COMPLETE

    @property
    def has_ended(self) -> bool:
        """Whether the upload was removed, and nothing but its record may be left."""
        return self.status in (Status.TERMINATED, Status.EXPIRED)

    @property
    def has_all_bytes(self) -> bool:
        """Whether every byte of a known length is committed."""
        return self.length is not None and self.offset == self.length

    @property
    def is_waiting(self) -> bool:
        """Whether this is a final upload that cannot be made yet, and is tried again at `expires_at`."""
        return self.is_final and self.status is Status.FINISHING and self.expires_at is not None

    @property
    def announced_expiry(self) -> float | None:
        """Expiry of the upload as its client is told: an unfinished or partial upload has one, a final one none."""
        can_expire = not self.is_final and (self.is_partial or not self.is_complete)
        return self.expires_at if can_expire else None

    def is_gone(self, now: float) -> bool:
        """Return whether clients may no longer use the upload.

        A finished upload never expires; a complete partial one is not finished before it is part of a final one.
        """
        if self.has_ended:
            return True
        can_expire = self.status is Status.ACTIVE or (self.is_complete and self.is_partial)
        return can_expire and self.expires_at is not None and self.expires_at <= now

    def at(self, offset: int) -> Upload:
        """Return the upload at another offset."""
        return changed(self, offset=offset, synced=min(self.synced, offset))


_copies = RecordCopies(Upload)
make_upload = _copies.make  # of the values of all fields
changed = _copies.changed  # for the records of every request; `dataclasses.replace` takes twice the time


@dataclass(frozen=True, slots=True)
class UploadPart:
    """An entry of the part list of an upload whose storage keeps it in parts; see docs/s3.md."""

    number: int  # ascending, not always by one
    end: int  # the offset after its last byte
    etag: str
    checksum: str = ""


def new_upload_id() -> str:
    """Return a new id of 128 random bits."""
    return secrets.token_hex(16)


def final_upload_id(partial_ids: Sequence[str], metadata: str | None, conditions: str = "") -> str:
    """Return the id of the final upload that these partial uploads make with this metadata and these conditions.

    A client whose connection broke sends the same request again: the same id leads it to the same upload. The id is
    as hard to guess as the ids that it is made of.
    """
    digest = hashlib.sha256()
    for part in (*partial_ids, "", metadata or "", *((conditions,) if conditions else ())):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]


def is_upload_id(text: str) -> bool:
    """Return whether a text has the form of an upload id."""
    return UPLOAD_ID.fullmatch(text) is not None
