"""The parts of one upload that are on their way to S3."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tusd_py.backends.s3.bucket import Bucket, Multipart
from tusd_py.backends.s3.errors import BytesMissing
from tusd_py.backends.s3.part_buffer import PendingPart
from tusd_py.core.errors import UploadError
from tusd_py.core.upload import Upload, UploadPart


class PartUploader:
    """Sends parts, a few at a time. The multipart upload is created with the first one.

    `landed` is called when a part has arrived or has failed, then with the error.
    """

    def __init__(
        self,
        engine: Bucket,
        upload: Upload,
        key: str,
        multipart: Multipart | None,
        landed: Callable[[Exception | None], None],
        stored_apart: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._upload = upload
        self._key = key
        self._landed = landed
        self._stored_apart = stored_apart
        self._queue: deque[PendingPart] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._creating: asyncio.Task[Multipart] | None = None
        self.multipart = multipart

    def __bool__(self) -> bool:
        """Whether any part has not arrived, be it that it failed."""
        return bool(self._queue)

    async def wait_for_turn(self) -> None:
        """Until one more part may leave."""
        while len(self._tasks) >= self._engine.config.parts_in_flight:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def launch(self, flight: PendingPart) -> None:
        self._queue.append(flight)
        task = asyncio.create_task(self._fly(flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def land(self) -> None:
        """Wait until nothing is on its way any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def arrived(self) -> list[UploadPart]:
        """The parts that arrived since the last time, as far as they follow each other."""
        parts = []
        while self._queue and (part := self._queue[0].part) is not None:
            parts.append(part)
            self._queue.popleft()
        return parts

    def forget(self) -> None:
        """Drop the parts that failed or arrived after a gap."""
        self._queue.clear()

    async def load(self, flight: PendingPart) -> None:
        """Load missing bytes from tails into memory. To avoid deadlock, wait for memory only while holding none."""
        missing = flight.memory_start - flight.start
        if missing:
            await self._load(flight, missing)
        if sum(map(len, flight.pieces)) != flight.end - flight.start:
            raise BytesMissing

    async def _load(self, flight: PendingPart, missing: int) -> None:
        engine, memory = self._engine, self._engine.memory
        tails = flight.tails
        if memory.try_take(missing):
            flight.held += missing
        else:
            if flight.pieces:
                tail = await engine.put_tail(self._upload, flight.memory_start, flight.pieces)
                self._stored_apart(tail.name)
                tails = (*tails, tail)
                flight.pieces.clear()
            held, flight.held = flight.held, 0
            memory.release(held)
            await memory.take(flight.end - flight.start)
            flight.held = flight.end - flight.start
        flight.pieces[:0] = await engine.get_tails(self._upload, tails)

    async def _fly(self, flight: PendingPart) -> None:
        memory = self._engine.memory
        failure: Exception | None = None
        try:
            await self.load(flight)
            memory.moving += 1
            try:
                multipart = await self._ensure_multipart()
                flight.part = await self._engine.upload_part(
                    multipart, flight.number, flight.start, flight.pieces, flight.crc
                )
            finally:
                memory.moving -= 1
            memory.release_buffers(flight.pieces)
        except Exception as error:
            failure = error
        finally:
            flight.pieces.clear()
            memory.release(flight.held)
        self._landed(failure)

    async def _ensure_multipart(self) -> Multipart:
        if self.multipart is None:
            if self._creating is None:
                self._creating = asyncio.create_task(self._engine.create_multipart(self._upload, self._key))
            self.multipart = await self._creating
        return self.multipart

    async def abort(self) -> None:
        """The multipart upload that was created here is not needed."""
        if self.multipart is not None:
            try:
                await self._engine.abort(self._key, self.multipart.id)
            except UploadError:
                pass  # the janitor finds it
