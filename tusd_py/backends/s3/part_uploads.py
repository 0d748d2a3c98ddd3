"""The parts of one upload that are being sent to S3."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.errors import BytesMissing
from tusd_py.backends.s3.layout import Multipart, Tail
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.stored_bytes import StoredBytes
from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import Upload, UploadPart


@dataclass(slots=True)
class PendingPart:
    """A part that is being sent to S3."""

    number: int
    start: int
    end: int
    memory_start: int  # the bytes before this offset are in `tails`
    pieces: list[Buffer]
    crc: int | None
    tails: tuple[Tail, ...]
    reserved: int  # bytes reserved with the memory limiter
    part: UploadPart | None = None  # set when S3 has stored the part


class PartUploader:
    """The sender of the parts of an upload, a few at a time. The multipart upload is created with the first one.

    Parts that S3 has stored are added to `stored` in order; the first failure becomes that of `jobs`.
    """

    def __init__(
        self, bucket: Bucket, memory: MemoryLimiter, upload: Upload, stored: StoredBytes, jobs: SerialTask
    ) -> None:
        self._bucket = bucket
        self._memory = memory
        self._upload = upload
        self._stored = stored
        self._jobs = jobs
        self._queue: deque[PendingPart] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._creation_task: asyncio.Task[Multipart] | None = None

    def __bool__(self) -> bool:
        """Return whether any part is not stored, because it is being sent or has failed."""
        return bool(self._queue)

    async def wait_for_turn(self) -> None:
        """Wait until one more part may be sent."""
        while len(self._tasks) >= self._bucket.config.parts_in_flight:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def start(self, pending: PendingPart) -> None:
        """Send a part in a task of its own."""
        self._queue.append(pending)
        task = asyncio.create_task(self._upload_part(pending))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_all(self) -> None:
        """Wait until no part is being sent."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def clear(self) -> None:
        """Drop the parts that failed, or were stored after a gap."""
        self._queue.clear()

    async def load(self, pending: PendingPart) -> None:
        """Load missing bytes from tails into memory. To avoid deadlock, wait for memory only while holding none."""
        missing = pending.memory_start - pending.start
        if missing:
            await self._load(pending, missing)
        if sum(map(len, pending.pieces)) != pending.end - pending.start:
            raise BytesMissing

    async def _load(self, pending: PendingPart, missing: int) -> None:
        memory, tails = self._memory, pending.tails
        if memory.try_reserve(missing):
            pending.reserved += missing
        else:
            if pending.pieces:
                tail = await self._bucket.put_tail(self._upload, pending.memory_start, pending.pieces)
                self._stored.add_temporary_tail(tail.name)
                tails = (*tails, tail)
                pending.pieces.clear()
            reserved, pending.reserved = pending.reserved, 0
            memory.release(reserved)
            await memory.reserve(pending.end - pending.start)
            pending.reserved = pending.end - pending.start
        end = tails[-1].end if not pending.pieces else pending.memory_start
        pending.pieces[:0] = await self._bucket.get_tails(self._upload, tails, pending.start, min(end, pending.end))

    async def _upload_part(self, pending: PendingPart) -> None:
        memory = self._memory
        try:
            await self.load(pending)
            with memory.releasing():
                multipart = await self._ensure_multipart()
                pending.part = await self._bucket.upload_part(
                    multipart, pending.number, pending.start, pending.pieces, pending.crc
                )
            memory.chunks.release_all(pending.pieces)
        except Exception as error:  # raised by the next call of the writer: no bytes after these may be acknowledged
            self._jobs.fail(error)
        finally:
            pending.pieces.clear()
            memory.release(pending.reserved)
        self._stored.add_parts(self._pop_arrived())

    def _pop_arrived(self) -> list[UploadPart]:
        """Remove the parts that S3 has stored without a gap from the queue, and return them."""
        parts = []
        while self._queue and (part := self._queue[0].part) is not None:
            parts.append(part)
            self._queue.popleft()
        return parts

    async def _ensure_multipart(self) -> Multipart:
        if self._stored.multipart is None:
            if self._creation_task is None:
                self._creation_task = asyncio.create_task(self._bucket.create_multipart(self._upload, self._stored.key))
            self._stored.multipart = await self._creation_task
        return self._stored.multipart
