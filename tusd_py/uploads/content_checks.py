"""The checks of the bytes of uploads: their types by the first bytes, and their digests.

Bytes are looked at as they arrive. Those that this process has not seen, because another one took them or this one was
restarted, are read from the storage before the upload becomes complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace

from tusd_py.core.buffers import Buffer
from tusd_py.core.conditions import DIGEST_ALGORITHMS, Conditions, decode_conditions, hash_names
from tusd_py.core.errors import ContentRefused, DigestMismatch, ServerShutdown, TypeNotAllowed
from tusd_py.core.file_types import HEAD_SIZE, content_types
from tusd_py.core.media_types import allows, media_type_of
from tusd_py.core.metadata import declared_type_of
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import UploadTerminated
from tusd_py.observability.logging import log_refused_upload
from tusd_py.uploads.components import Components
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.removal import Removal
from tusd_py.uploads.scans import Scans
from tusd_py.uploads.seen_bytes import SeenBytes, SeenUploads
from tusd_py.uploads.turns import Turns

MAX_READERS = 3  # small uploads, and large ones, read at a time, one of each owner: hashing keeps a processor busy
PIECE = 1 << 20  # bytes read and hashed at a time


class TypeRules:
    """The media types that an upload may have: every list that applies to it has to allow its type."""

    def __init__(self, upload: Upload, allowed: Sequence[str]) -> None:
        """Take the types of the setting `allowed_types`; empty if all are allowed."""
        own = decode_conditions(upload.conditions).types if upload.conditions else ()
        self._lists = [patterns for patterns in (allowed, own) if patterns]
        self._upload = upload

    @property
    def judge_content(self) -> bool:
        """Whether the bytes are judged; a partial upload is a piece of a file, and need not begin as one."""
        return bool(self._lists) and not self._upload.is_partial

    def refuse_declared(self) -> None:
        """Raise `TypeNotAllowed` if the client has declared a type that is not allowed."""
        if self._lists:
            declared = self._declared()
            if declared:
                self._refuse_unless_any((declared,))

    def refuse_content(self, head: bytes) -> None:
        """Raise `TypeNotAllowed` if an upload that begins with these bytes has no type that is allowed."""
        if self.judge_content:
            self._refuse_unless_any(content_types(head, self._declared()))

    def _declared(self) -> str:
        return media_type_of(declared_type_of(self._upload.decoded_metadata))

    def _refuse_unless_any(self, types: Sequence[str]) -> None:
        for patterns in self._lists:
            if not any(allows(patterns, media_type) for media_type in types):
                raise TypeNotAllowed(f"files of the type {types[0]} are not allowed here, but {', '.join(patterns)}")


class AppendChecks:
    """The checks of the bytes of one append, from the offset of its upload on."""

    def __init__(self, upload: Upload, rules: TypeRules, seen: SeenBytes | None) -> None:
        """Take what was seen of the bytes before the offset; None if that is not known."""
        self._rules = rules
        self._before = None if seen is None else seen.copy()
        self.seen = seen
        judges = rules.judge_content and seen is not None and len(seen.head) < HEAD_SIZE
        self._head = seen.head if seen is not None and judges else None

    def arrived(self, data: Buffer) -> None:
        """Judge the type of the upload once its first bytes have arrived; raises `TypeNotAllowed`.

        An upload that ends before is judged when it ends.
        """
        if self._head is None:
            return
        self._head += bytes(data[: HEAD_SIZE - len(self._head)])
        if len(self._head) >= HEAD_SIZE:
            head, self._head = self._head, None
            self._rules.refuse_content(head)

    def verified(self) -> None:
        """Judge the type after the bytes of a request with a checksum were verified; raises `TypeNotAllowed`.

        Before that nothing is judged: bytes that were damaged on the way are to be sent again.
        """
        if self._head is not None and self.seen is not None and len(self.seen.head) >= HEAD_SIZE:
            self._head = None
            self._rules.refuse_content(self.seen.head)

    def seen_of(self, upload: Upload) -> SeenBytes | None:
        """Return what was seen of the committed bytes, after the append; None if that is not known."""
        return next(
            (seen for seen in (self.seen, self._before) if seen is not None and seen.size == upload.offset), None
        )


class ContentChecks:
    """The checks of all uploads. Without conditions nothing is looked at."""

    def __init__(self, components: Components, removal: Removal) -> None:
        self._allowed = components.options.allowed_types
        self._storage = components.storage
        self._events = components.events
        self._removal = removal
        self._seen = SeenUploads()
        self._scans = None if components.scanner is None else Scans(components.scanner, components.options.scan)
        self._checks_files = bool(self._allowed) or self._scans is not None
        self._readers = Turns(MAX_READERS)
        self._interrupted = False

    def applies_to(self, upload: Upload) -> bool:
        """Return whether the bytes of an upload are checked before it becomes complete."""
        return bool(upload.conditions) or (self._checks_files and not upload.is_partial)

    def spares_piece(self, upload: Upload) -> bool:
        """Return whether a partial upload is not checked in a way in which whole files are here."""
        types = bool(upload.conditions) and bool(decode_conditions(upload.conditions).types)
        return upload.is_partial and (self._checks_files or types)

    def interrupt(self) -> None:
        """Make checks that read from the storage end with `ServerShutdown`, now and until `resume`."""
        self._interrupted = True
        if self._scans is not None:
            self._scans.interrupt()

    def resume(self) -> None:
        """Allow checks again."""
        self._interrupted = False
        if self._scans is not None:
            self._scans.resume()

    def _looks_at(self, upload: Upload) -> bool:
        """Return whether the bytes of an upload are looked at as they arrive."""
        return bool(upload.conditions) or (bool(self._allowed) and not upload.is_partial)

    # Appends.

    def of_append(self, upload: Upload) -> AppendChecks | None:
        """Return the checks of an append that begins at the offset of the upload; None if there are none."""
        if not self._looks_at(upload):
            return None
        seen = self._seen.take(upload)
        if upload.offset == 0:
            seen = _nothing_seen(upload)
        return AppendChecks(upload, TypeRules(upload, self._allowed), seen)

    def append_ended(self, upload: Upload, checks: AppendChecks) -> None:
        """Remember what was seen of the committed bytes of an upload."""
        seen = checks.seen_of(upload)
        if seen is not None and upload.offset:
            self._seen.keep(upload, seen)

    # Completions. The caller holds the lock of the upload, and gives its token.

    async def judge_seen(self, upload: Upload, token: int, request: RequestContext | None) -> bool:
        """Judge an upload in `finishing` whose bytes were seen; return whether they were.

        Raises:
            ContentRefused: the upload does not fulfil its conditions, and has been removed.
        """
        if not self._looks_at(upload):
            return True
        seen = self._seen.take(upload)
        if seen is None and upload.offset:
            return False
        if seen is None:
            seen = _nothing_seen(upload)
        await self._judge(upload, upload, seen, token, request)
        self._seen.keep(upload, seen)  # until `ended`: the completion may fail later, and is tried again
        return True

    async def judge_stored(self, upload: Upload, finished: Upload, token: int, request: RequestContext | None) -> None:
        """Read the finished bytes of an upload, and judge them.

        Args:
            upload: the record, in `finishing`.
            finished: the record with the finished bytes.
            token: the token of the lock.
            request: the request that brought the last bytes, if there is one.

        Raises:
            ContentRefused: as `judge_seen`.
            ServerShutdown: `interrupt` was called; the upload stays in `finishing`.
        """
        seen = await self._read(finished, [finished])
        await self._judge(upload, finished, seen, token, request)
        self._seen.keep(upload, seen)

    def ended(self, upload: Upload) -> None:
        """Forget what was seen of an upload that is complete."""
        self._seen.forget(upload.id)

    async def scan(self, upload: Upload, finished: Upload, token: int, request: RequestContext | None) -> None:
        """Have the finished bytes of an upload scanned, where a scanner is configured.

        Raises:
            ContentRefused: malware was found, or the upload is too large; it has been removed.
            ScanUnavailable: it could not be scanned; it stays in `finishing`.
        """
        if self._scans is not None and not upload.is_partial:
            await self._scan(self._scans, upload, finished, [finished], token, request)

    async def _scan(
        self,
        scans: Scans,
        stored: Upload,
        upload: Upload,
        sources: Sequence[Upload],
        token: int,
        request: RequestContext | None,
    ) -> None:
        try:
            await scans.scan(upload, lambda: self._pieces(sources, whole=True))
        except ContentRefused as error:
            await self.remove(replace(stored, storage_state=upload.storage_state), token, request, error)
            raise

    async def judge_parts(
        self, stored: Upload, final: Upload, partials: Sequence[Upload], token: int, request: RequestContext | None
    ) -> None:
        """Read the partial uploads of a final one, and judge what it would be; raises as `judge_stored` and `scan`."""
        if final.conditions or self._allowed:
            await self._judge(stored, final, await self._read(final, partials), token, request)
        if self._scans is not None:
            await self._scan(self._scans, stored, final, partials, token, request)

    async def _judge(
        self, stored: Upload, upload: Upload, seen: SeenBytes, token: int, request: RequestContext | None
    ) -> None:
        try:
            TypeRules(upload, self._allowed).refuse_content(seen.head)
            refuse_other_digests(decode_conditions(upload.conditions), seen)
        except ContentRefused as error:
            await self.remove(replace(stored, storage_state=upload.storage_state), token, request, error)
            raise

    async def remove(self, upload: Upload, token: int, request: RequestContext | None, refusal: ContentRefused) -> None:
        """Remove an upload that was refused, and tell of it."""
        self._seen.forget(upload.id)
        await self._removal.remove(upload, token, Status.TERMINATED, request)
        log_refused_upload(upload, refusal, request)
        self._events.publish(UploadTerminated(upload, request, refusal.code))

    async def _read(self, upload: Upload, sources: Sequence[Upload]) -> SeenBytes:
        """Return what is to be seen of an upload whose bytes are those of complete uploads, one after the other."""
        seen = _nothing_seen(upload)
        digests = decode_conditions(upload.conditions).digests
        async with contextlib.AsyncExitStack() as stack:
            if digests:  # the first bytes take no time
                await stack.enter_async_context(self._readers.of(upload))
            pieces = await stack.enter_async_context(contextlib.aclosing(self._pieces(sources, whole=bool(digests))))
            async for piece in pieces:
                await asyncio.to_thread(seen.update, piece)
        return seen

    async def _pieces(self, sources: Iterable[Upload], *, whole: bool) -> AsyncGenerator[Buffer, None]:
        """Yield the bytes of complete uploads in pieces; unless all are asked for, the first `HEAD_SIZE` of them."""
        left = None if whole else HEAD_SIZE
        for source in sources:
            end = source.offset if left is None else min(left, source.offset)
            reader = self._storage.read(replace(source, status=Status.COMPLETE), 0, end, _piece_size)
            try:
                async for piece in reader:
                    if self._interrupted:
                        raise ServerShutdown
                    yield piece
            finally:
                if isinstance(reader, AsyncGenerator):
                    await reader.aclose()
            if left is not None:
                left -= end


def _piece_size(most: int) -> int:
    return min(most, PIECE)


def refuse_other_digests(conditions: Conditions, seen: SeenBytes) -> None:
    """Raise `DigestMismatch` unless the bytes of a whole upload have every digest of its conditions."""
    for algorithm, expected in conditions.digests:
        found = seen.digest(DIGEST_ALGORITHMS[algorithm][0])
        if found is None or not hmac.compare_digest(found, expected):
            raise DigestMismatch(f"the {algorithm} digest of the upload is another one; the upload was removed")


def refuse_declared_type(upload: Upload, options: UploadOptions) -> None:
    """Raise `TypeNotAllowed` if the type that a client declares for a new upload is not allowed."""
    if options.allowed_types or upload.conditions:
        TypeRules(upload, options.allowed_types).refuse_declared()


def _nothing_seen(upload: Upload) -> SeenBytes:
    """Return what is seen of an upload before its first byte, with the hashes that its digests need."""
    return SeenBytes(hash_names(decode_conditions(upload.conditions).digests))
