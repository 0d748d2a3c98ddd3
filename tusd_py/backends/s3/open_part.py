"""The part that an upload is filling: bytes are copied into it, and stored as a tail before they would have to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.layout import Tail, dump
from tusd_py.backends.s3.memory_limiter import CachedPart, MemoryLimiter
from tusd_py.backends.s3.pace import Pace
from tusd_py.backends.s3.part_buffer import PartBuffer, copy_pieces, take_front
from tusd_py.backends.s3.part_uploads import PendingPart
from tusd_py.backends.s3.stored_bytes import StoredBytes
from tusd_py.backends.s3.tails import tails_to_merge
from tusd_py.contracts.storage import Observer
from tusd_py.core.errors import UploadError
from tusd_py.core.upload import Upload

MAX_COPY_SIZE = 2 << 20  # bytes copied at a time
ALWAYS_ADMITTED = 256 << 10  # bytes of a part that an upload may hold without admission
PACING_WINDOW = 1.0  # seconds ahead for which the memory limiter estimates the bytes of an upload


class OpenPart:
    """The part that a writer fills; the `BufferingUpload` of the memory limiter.

    Invariants: the bytes of the buffer are reserved with the limiter; while a tail is being stored (`_tail_lock`) the
    part is not detached, and nothing is spilled. A spill that fails loses bytes, and makes `jobs` fail.
    """

    def __init__(
        self,
        bucket: Bucket,
        memory: MemoryLimiter,
        upload: Upload,
        stored: StoredBytes,
        jobs: SerialTask,
        observer: Observer | None,
    ) -> None:
        self._bucket = bucket
        self._memory = memory
        self._upload = upload
        self._stored = stored
        self._jobs = jobs
        self._observer = observer
        self._buffer = PartBuffer(stored.parts_end, upload.offset, upload.offset)
        self._tail_lock = asyncio.Lock()
        self._spilling: asyncio.Task[None] | None = None
        self._admitted_at: float | None = None
        self._closed = False
        self.pace = Pace(time.monotonic())

    @property
    def start(self) -> int:
        """Offset of the first byte."""
        return self._buffer.start

    @property
    def end(self) -> int:
        """Offset after the last byte so far."""
        return self._buffer.end

    @property
    def room(self) -> int:
        """Bytes that still fit into the part; negative if tails were stored with a larger memory limit."""
        return self._stored.sizes.size(self._stored.next_number) - self._buffer.size

    @property
    def is_whole_upload(self) -> bool:
        """Whether the part holds all bytes of the upload, which then needs no multipart upload."""
        return self.start == 0 and self.end == self._upload.length

    # Filling.

    def open(self) -> None:
        """Register with the limiter, and take over the bytes that the last writer left in its cache."""
        self._memory.register(self)
        cached = self._memory.take_cached(self._upload.id, self._upload.storage_state, self._upload.offset)
        if cached is not None:
            self._buffer = PartBuffer(self._stored.parts_end, cached.start, self._upload.offset, cached.pieces)

    async def fill(self, views: list[memoryview]) -> None:
        """Copy bytes from the front of the list into the part, `MAX_COPY_SIZE` at most and not beyond the room."""
        room = self.room
        taken = take_front(views, min(room, MAX_COPY_SIZE))
        size = sum(map(len, taken))
        if self._admitted_at is None and self._buffer.in_memory + size > ALWAYS_ADMITTED:
            await self._memory.admit(self, self._expected_in(room))
            self._admitted_at = time.monotonic()
        await self._memory.reserve(size)
        try:
            self._jobs.check()
            crc = self._buffer.crc if self._bucket.wants_crc else None
            copy = partial(copy_pieces, taken, self._observer, self._memory.chunks.acquire, crc)
            pieces, crc = await self._bucket.run_copy(copy)
            self._jobs.check()
        except BaseException:
            self._memory.release(size)
            raise
        for piece in pieces:
            self._buffer.add(piece)
        self._buffer.crc = crc
        self._memory.rebalance()  # the copied bytes can be spilled from now on

    def _expected_in(self, room: int) -> int:
        """Return the bytes that the upload can still add to this room."""
        length = self._upload.length
        return room if length is None else min(room, max(0, length - self.end))

    async def detach(self) -> PendingPart:
        """Return the part, and begin the next one. Raises an earlier failure, since a failed spill lost bytes.

        A part that is too large, because its tails were stored with a larger memory limit, is split: the rest is the
        next one.
        """
        async with self._tail_lock:
            self._jobs.check()
            self._admitted_at = None
            limit = self._buffer.end + self.room
            if limit < self._buffer.end and limit <= self._buffer.memory_start:
                part = self._buffer.split(limit)
            else:
                part = self._buffer
                self._buffer = PartBuffer(part.end, part.end, part.end)
            tails = [tail for tail in self._stored.tails if part.start < tail.end and tail.start < part.memory_start]
            return PendingPart(
                number=self._stored.next_number,
                start=part.start,
                end=part.end,
                memory_start=part.memory_start,
                pieces=part.pieces,
                crc=part.crc,
                tails=tuple(tails),
                reserved=part.in_memory,
            )

    # The tail.

    async def store_tail(self) -> None:
        """Store the bytes of the part as a tail, unless they are stored already."""
        try:
            await self._store_tail()
        finally:
            self._memory.rebalance()  # the part could not be spilled meanwhile, and others may wait for it

    async def _store_tail(self) -> None:
        async with self._tail_lock:
            self._jobs.check()  # a spill that failed lost bytes
            part = self._buffer
            tails = [tail for tail in self._stored.tails if tail.end > part.start]
            durable = tails[-1].end if tails else part.start
            if part.end == durable:
                return
            merged = await self._load_mergeable(part, tails, durable, part.end)
            first = merged[0].start if merged else durable
            tail = await self._bucket.put_tail(self._upload, first, part.bytes_from(first))
            self._stored.add_tail(tail, merged)

    async def _load_mergeable(self, part: PartBuffer, tails: Sequence[Tail], start: int, end: int) -> list[Tail]:
        """Return the tails that a new one replaces, with their bytes in memory."""
        merged = tails_to_merge([tail for tail in tails if tail.start >= part.start], start, end)
        absent = [tail for tail in merged if tail.start < part.memory_start]
        size = sum(tail.size for tail in absent)
        if absent and not self._memory.try_reserve(size):
            return merged[len(absent) :]
        if absent:
            try:
                pieces = await self._bucket.get_tails(self._upload, absent, absent[0].start, part.memory_start)
            except BaseException:
                self._memory.release(size)
                raise
            part.prepend(pieces)
        return merged

    # Spilling (`BufferingUpload`).

    @property
    def expected(self) -> int:
        """See `BufferingUpload.expected`."""
        if self._admitted_at is None or self.silent:
            return 0
        left = self._expected_in(self.room)
        seconds = time.monotonic() - self._admitted_at
        return left if seconds < PACING_WINDOW else min(left, int(self._buffer.in_memory / seconds * PACING_WINDOW))

    @property
    def silent(self) -> bool:
        """See `BufferingUpload.silent`."""
        return self.pace.is_silent(time.monotonic())

    @property
    def spillable(self) -> int:
        """See `BufferingUpload.spillable`."""
        busy = self._spilling is not None or self._tail_lock.locked() or self._closed
        return 0 if busy or self._jobs.failure is not None else self._buffer.in_memory

    def spill(self) -> asyncio.Future[None]:
        """See `BufferingUpload.spill`."""
        self._spilling = asyncio.create_task(self._spill())
        return self._spilling

    async def _spill(self) -> None:
        part = self._buffer
        try:
            await self.store_tail()
            end = max((tail.end for tail in self._stored.tails), default=0)
        except UploadError as error:
            self._jobs.fail(error)
            end = part.end
        finally:
            self._spilling = None
        freed = part.drop_before(min(end, part.end)) if part is self._buffer else 0
        self._memory.release(freed)

    async def _wait_for_spill(self) -> None:
        if self._spilling is not None:
            await asyncio.wait((self._spilling,))

    # Rewinding and closing.

    async def rewind(self, offset: int) -> list[str]:
        """Drop the bytes from `offset` on, here and in `stored`; return the names of tails to be deleted."""
        await self._wait_for_spill()
        kept = self._buffer if self._buffer.memory_start <= offset else PartBuffer(offset, offset, offset)
        if kept is not self._buffer:
            self._memory.release(self._buffer.in_memory)
        self._memory.release(kept.drop_from(offset))
        unused = self._stored.rewind(offset)
        if kept is not self._buffer or kept.start != self._stored.parts_end:
            kept = PartBuffer(self._stored.parts_end, self._stored.offset, self._stored.offset)
        self._buffer = kept
        return unused

    async def close(self) -> None:
        """Leave the bytes in the cache for the next writer if they are all stored; release them otherwise."""
        self._closed = True
        await self._wait_for_spill()
        self._memory.unregister(self)
        part = self._buffer
        if part.pieces and self._jobs.failure is None and self._stored.offset == part.end:
            state = dump(self._stored.describe())
            self._memory.cache(self._upload.id, CachedPart(state, part.memory_start, part.pieces, part.in_memory))
        else:
            self._buffer = PartBuffer(part.end, part.end, part.end)
            self._memory.release(part.in_memory)
