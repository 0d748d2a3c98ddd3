"""Concatenation: S3 copies partial uploads into one object; bytes that are too few for a part pass through memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tusd_py.backends.s3.assemble import verify_object
from tusd_py.backends.s3.body import multipart_etag
from tusd_py.backends.s3.bucket import RESERVED_REQUEST_SLOTS, Bucket
from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.copy_plan import Piece, Slice, plan
from tusd_py.backends.s3.errors import MultipartMissing, ObjectMissing
from tusd_py.backends.s3.layout import Layout, Multipart, layout_of
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.object_keys import object_key
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import ServerShutdown, StorageBehind, StorageUnavailable, UploadError, UploadNotFound
from tusd_py.core.upload import Upload, UploadPart

MAX_SINGLE_COPY = 64 << 20  # bytes; a single source up to this size is copied in one request
COPY_SHARE = 3  # concatenations use a third of the requests that parts may use


class Concatenator:
    """The maker of final uploads. All concatenations together use a share of the requests to S3."""

    def __init__(self, bucket: Bucket, memory: MemoryLimiter) -> None:
        self._bucket = bucket
        self._memory = memory
        self._is_interrupted = False

    def open(self) -> None:
        """Allow concatenations; called in the event loop that uses this object."""
        self._is_interrupted = False
        concurrency = self._bucket.config.concurrency
        self._slots = asyncio.Semaphore(max(1, (concurrency - RESERVED_REQUEST_SLOTS) // COPY_SHARE))

    def interrupt(self) -> None:
        """Make concatenations end with `ServerShutdown` before their next part, until `open`."""
        self._is_interrupted = True

    async def concatenate(self, final: Upload, partials: Sequence[Upload]) -> Layout:
        """Make the object of `final`; return its layout.

        Raises `UploadNotFound` if a partial upload is no longer there.
        """
        bucket, config = self._bucket, self._bucket.config
        key = object_key(config, final)
        sources = [Slice(_source(config, partial), 0, partial.offset) for partial in partials if partial.offset]
        length = sum(source.size for source in sources)
        is_single_copy = len(sources) == 1 and config.capabilities.part_copy
        try:
            if length <= config.part_size and not is_single_copy:
                async with self._slots:
                    await self._put(final, key, sources, length)
            elif length <= MAX_SINGLE_COPY and is_single_copy:
                async with self._slots:
                    await bucket.copy_object(final, key, sources[0].key)
            else:
                await self._assemble(final.at(length), key, plan(config, sources, length))
        except (ObjectMissing, StorageBehind):
            raise UploadNotFound("a partial upload is no longer there") from None
        return Layout(key=key, is_assembled=True)

    async def _put(self, final: Upload, key: str, sources: Sequence[Slice], length: int) -> None:
        await self._memory.reserve(length)
        try:
            await self._bucket.put_object(final, key, await self._fetch(sources), final.token)
        finally:
            self._memory.release(length)

    async def _fetch(self, slices: Sequence[Slice]) -> list[Buffer]:
        pieces: list[Buffer] = []
        for piece in slices:
            found = await self._bucket.fetch_source(piece)
            if sum(map(len, found)) < piece.size:
                raise StorageUnavailable("a partial upload is shorter than its record says")
            pieces += found
        return pieces

    async def _assemble(self, final: Upload, key: str, pieces: Sequence[Piece]) -> None:
        bucket = self._bucket
        copied = bucket.config.capabilities.part_copy and any(piece.can_be_copied for piece in pieces)
        multipart = await bucket.create_multipart(final, key, copied=copied)
        try:
            await self._complete(final, multipart, await self._make_parts(multipart, pieces))
        except UploadError as error:
            await bucket.try_abort(multipart)
            if isinstance(error, MultipartMissing):  # no bytes are lost: the concatenation is tried again
                raise StorageUnavailable("the multipart upload was aborted") from None
            raise

    async def _complete(self, final: Upload, multipart: Multipart, parts: Sequence[UploadPart]) -> None:
        error: UploadError | None = None
        try:
            await self._bucket.complete_multipart(multipart, parts)
        except MultipartMissing as caught:
            error = caught
        etag = multipart_etag([part.etag for part in parts])
        await verify_object(self._bucket, final, multipart, etag, error)

    async def _make_parts(self, multipart: Multipart, pieces: Sequence[Piece]) -> list[UploadPart]:
        """Make all parts, a few at a time; wait for all of them even if one fails."""
        free = asyncio.Semaphore(self._bucket.config.parts_in_flight)
        failed = False

        async def make(number: int, start: int, piece: Piece) -> UploadPart:
            nonlocal failed
            async with free, self._slots:
                if self._is_interrupted:
                    raise ServerShutdown("the concatenation was interrupted; it will be made again")
                if failed:
                    raise StorageUnavailable
                try:
                    return await self._make_part(multipart, number, start, piece)
                except UploadError:
                    failed = True
                    raise

        making = []
        start = 0
        for number, piece in enumerate(pieces, 1):
            making.append(make(number, start, piece))
            start += piece.size
        results = await asyncio.gather(*making, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise next((error for error in errors if isinstance(error, ObjectMissing)), errors[0])
        return [result for result in results if isinstance(result, UploadPart)]

    async def _make_part(self, multipart: Multipart, number: int, start: int, piece: Piece) -> UploadPart:
        if piece.can_be_copied and self._bucket.config.capabilities.part_copy:
            return await self._bucket.copy_part(multipart, number, start, piece.slices[0])
        await self._memory.reserve(piece.size)
        try:
            return await self._bucket.upload_part(multipart, number, start, await self._fetch(piece.slices))
        finally:
            self._memory.release(piece.size)


def _source(config: S3Config, partial: Upload) -> str:
    """Return the key of the object of a partial upload."""
    return layout_of(partial).key or object_key(config, partial)
