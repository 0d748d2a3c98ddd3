"""The writer of one upload in S3: parts are sent while the body still arrives, the rest is stored as a tail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.layout import layout_of
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.open_part import OpenPart
from tusd_py.backends.s3.part_uploads import PartUploader
from tusd_py.backends.s3.stored_bytes import StoredBytes
from tusd_py.contracts.storage import Observer, WriterSnapshot
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import MaxSizeExceeded, StorageBehind
from tusd_py.core.upload import Upload


class S3Writer:
    """The writer of one lock holder. Used by one event loop.

    One job at a time runs for the caller; parts that are being sent to S3 have tasks of their own, and so has a spill.
    """

    def __init__(
        self,
        bucket: Bucket,
        memory: MemoryLimiter,
        upload: Upload,
        token: int,
        observer: Observer | None,
        *,
        unreleased_predecessors: int,
    ) -> None:
        self._bucket = bucket
        self._memory = memory
        self._upload = upload
        self._token = token
        opened = layout_of(upload)
        sizes = bucket.sizes_of(upload, opened)
        first = bucket.first_number(upload, opened, sizes, unreleased_predecessors=unreleased_predecessors)
        self._bytes = StoredBytes(bucket.config, upload, opened, sizes, first)
        self._jobs = SerialTask()
        self._parts = PartUploader(bucket, memory, upload, self._bytes, self._jobs)
        self._open = OpenPart(bucket, memory, upload, self._bytes, self._jobs, observer)
        self._closing: asyncio.Task[None] | None = None
        self._has_begun = False
        self._unchecked = bool(opened.multipart or self._bytes.tails)  # parts and tails of earlier writers

    # The contract.

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """See `Writer.write`."""
        await self._jobs.settle()
        if buffers:
            self._jobs.start(self._add(buffers))

    async def flush_available(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Store full parts only, see `Writer.flush_available`; a tail would cost a request."""
        await self.write(buffers)

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        """See `Writer.flush`."""
        await self._jobs.settle()
        if buffers or self._has_begun or self._unchecked:
            self._jobs.start(self._flush(buffers))
            await self._jobs.settle()

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        """See `Writer.finish`."""
        await self._jobs.settle()
        if not buffers and not self._has_begun:
            return False
        self._jobs.start(self._finish(buffers))
        await self._jobs.settle()
        return self._bytes.is_assembled

    def snapshot(self) -> WriterSnapshot:
        """See `Writer.snapshot`."""
        return self._bytes.take_snapshot()

    def committed(self, snapshot: WriterSnapshot) -> None:
        """See `Writer.committed`."""
        self._bytes.committed(snapshot)

    async def discard(self, offset: int) -> None:
        """See `Writer.discard`."""
        await self._jobs.wait()
        await self._parts.wait_all()
        self._parts.clear()
        await self._bucket.remove_tails(self._upload, await self._open.rewind(offset))

    async def close(self) -> None:
        """Close the writer, see `Writer.close`; closing continues if the caller is cancelled."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._jobs.wait()
        await self._parts.wait_all()
        if not self._has_begun:
            return
        stored = self._bytes
        await self._open.close()
        if (number := stored.unpublished_number()) is not None:
            self._bucket.note_used_numbers(self._upload.id, number)
        await self._bucket.remove_tails(self._upload, stored.unpublished_tails())
        if (multipart := stored.unpublished_multipart()) is not None:
            await self._bucket.try_abort(multipart)

    # Taking bytes.

    def _begin(self) -> None:
        """Check that the bytes before the first new ones are stored, and open the part for new ones."""
        if self._has_begun:
            return
        covered = self._bytes.opened.covered(self._upload.offset)
        if covered < self._upload.offset:
            raise StorageBehind(covered)
        self._has_begun = True
        self._open.open()

    async def _add(self, buffers: Sequence[Buffer]) -> None:
        """Copy the bytes into the open part, and send every part that they fill."""
        self._begin()
        pace = self._open.pace
        pace.bytes_came(time.monotonic())
        try:
            await self._copy(buffers)
        finally:
            pace.bytes_taken(time.monotonic())

    async def _copy(self, buffers: Sequence[Buffer]) -> None:
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while views:
            if self._open.room > 0:
                await self._open.fill(views)
            if self._open.room <= 0 and (views or not self._open.is_whole_upload):
                await self._send_open_part()

    async def _check_earlier(self) -> None:
        """Verify that parts and tails of earlier writers exist, before bytes after them are acknowledged."""
        if not self._unchecked:
            return
        opened = self._bytes.opened
        if opened.multipart:
            await self._bucket.ensure_multipart(self._bytes.key, opened.multipart)
        tails = opened.tails_from(opened.parts_end, self._upload.offset)
        await self._bucket.check_tails(self._upload, tails, opened.parts_end)
        self._unchecked = False

    async def _flush(self, buffers: Sequence[Buffer]) -> None:
        await self._add(buffers)
        check, _, tail = await asyncio.gather(
            self._check_earlier(), self._parts.wait_all(), self._open.store_tail(), return_exceptions=True
        )
        if isinstance(check, BaseException):
            raise check
        self._jobs.check()
        if isinstance(tail, BaseException):
            raise tail
        await self._remove_superseded()

    async def _finish(self, buffers: Sequence[Buffer]) -> None:
        await self._add(buffers)
        if self._open.end == self._upload.offset and not self._parts and not self._bytes.parts:
            return  # no new bytes
        fits = self._open.start == 0 and self._open.room >= 0
        # Without conditions, a request that comes late would replace the object by bytes that no record names.
        may_put = self._bucket.config.capabilities.conditional_put
        if may_put and self._bytes.multipart is None and fits and not self._parts:
            await self._put_object()
            return
        while self._open.end > self._open.start:
            await self._send_open_part()
        await self._parts.wait_all()
        self._jobs.check()

    async def _put_object(self) -> None:
        """Make the object in one request: the open part has all bytes."""
        pending = await self._open.detach()
        try:
            await self._parts.load(pending)
            put_id = await self._bucket.put_object(
                self._upload, self._bytes.key, pending.pieces, self._token, pending.crc
            )
            self._memory.chunks.release_all(pending.pieces)
        finally:
            self._memory.release(pending.reserved)
        self._bytes.add_object(put_id, pending.end)

    async def _send_open_part(self) -> None:
        await self._parts.wait_for_turn()
        stored = self._bytes
        if stored.next_number > stored.sizes.max_parts:
            raise MaxSizeExceeded(f"the storage takes at most {stored.sizes.max_parts} parts of an upload")
        pending = await self._open.detach()
        stored.next_number += 1
        self._parts.start(pending)

    async def _remove_superseded(self) -> None:
        superseded = self._bytes.superseded
        names = superseded.next_batch()
        if names:
            superseded.deleted(names, done=await self._bucket.remove_tails(self._upload, names))
