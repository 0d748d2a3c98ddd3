"""Gathering of the bytes of one append into batches that are worth a write, within the budget of all appends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tusd_py.contracts.storage import ArrivingBytes, ThreadedWriter, Writer, WriterSnapshot
from tusd_py.core.buffers import Buffer
from tusd_py.transfer.budget import ByteBudget

T = TypeVar("T")


class BatchWriter:
    """A writer of the bytes of one append in batches: it gathers one batch while the storage writes another."""

    def __init__(
        self,
        writer: Writer,
        budget: ByteBudget,
        release: Callable[[Sequence[Buffer]], None],
        waited: Callable[[float], object],
    ) -> None:
        """Take the writer.

        Args:
            writer: stores the bytes.
            budget: of all appends.
            release: takes buffers that hold no bytes any more.
            waited: is told for how many seconds an append has waited for the writer.
        """
        self._waited = waited
        self._writer = writer
        self._budget = budget
        self._release_buffers = release
        self._gathered: list[Buffer] = []
        self._gathered_size = 0
        self._writing: list[Buffer] = []
        self._writing_size = 0

    @property
    def gathered(self) -> int:
        """Number of bytes that were added and not passed to the writer yet."""
        return self._gathered_size

    def snapshot(self) -> WriterSnapshot:
        """See `Writer.snapshot`."""
        return self._writer.snapshot()

    def committed(self, snapshot: WriterSnapshot) -> None:
        """See `Writer.committed`."""
        self._writer.committed(snapshot)

    async def add(self, data: Buffer) -> None:
        """Add the next bytes; raises the error of an earlier write, if one failed."""
        if not self._budget.try_reserve(len(data)):
            # An append waits only while it holds no buffer; otherwise all appends could wait for each other.
            await self._write_everything()
            await self._budget.reserve(len(data))
        self._gathered.append(data)
        self._gathered_size += len(data)
        if self._gathered_size >= self._budget.batch_size():
            await self._write_gathered()

    async def receive(self, writer: ThreadedWriter, arriving: ArrivingBytes) -> None:
        """Store all added bytes, and those that arrive; `writer` must be the writer of this object."""
        gathered = self._start_writing()
        started = time.monotonic()
        try:
            await writer.receive(gathered, arriving)
        finally:
            self._waited(time.monotonic() - started - arriving.waited)
        self._release_written()

    async def flush(self, *, sync: bool) -> None:
        """Store all added bytes, and sync them if `sync` is set."""
        gathered = self._start_writing()
        await self._timed(self._writer.flush(gathered, sync=sync))
        self._release_written()

    async def flush_available(self, *, sync: bool) -> None:
        """Store as many added bytes as the storage can without extra cost, see `Writer.flush_available`."""
        gathered = self._start_writing()
        await self._timed(self._writer.flush_available(gathered, sync=sync))
        await self._writer.write(())
        self._release_written()

    async def finish(self, *, sync: bool) -> bool:
        """Store all added bytes as the last ones of the upload; return whether the storage has all bytes of it."""
        gathered = self._start_writing()
        whole = await self._timed(self._writer.finish(gathered, sync=sync))
        self._release_written()
        return whole

    async def finish_by(
        self, writer: ThreadedWriter, run: Callable[[Callable[[], None]], asyncio.Future[T]], *, sync: bool
    ) -> T:
        """Do what `finish` does in a thread that `run` chooses; `writer` must be the writer of this object."""
        gathered = self._start_writing()
        result = await self._timed(writer.finish_by(gathered, run, sync=sync))
        self._release_written()
        return result

    async def discard(self, offset: int) -> None:
        """Discard every byte from `offset` on, stored or not."""
        self._drop_gathered()
        await self._writer.discard(offset)

    async def close(self) -> None:
        """Close the writer and release all buffers; bytes that were not flushed are lost."""
        self._drop_gathered()
        try:
            await self._writer.close()
        except BaseException:
            # The write may still be running: its buffers must not be used again.
            self._budget.release(self._writing_size)
            self._writing, self._writing_size = [], 0
            raise
        self._release_written()

    async def _write_everything(self) -> None:
        """Write all added bytes and wait until the writer holds no buffer."""
        gathered = self._start_writing()
        await self._timed(self._writer.write(gathered))
        await self._timed(self._writer.write(()))
        self._release_written()

    async def _write_gathered(self) -> None:
        await self._timed(self._writer.write(self._gathered))  # returns once the batch before is stored
        self._release_written()
        self._start_writing()

    async def _timed(self, step: Awaitable[T]) -> T:
        """Wait for a step of the writer, and report the seconds if there are bytes that the step stores."""
        if not (self._writing_size or self._gathered_size):
            return await step
        started = time.monotonic()
        try:
            return await step
        finally:
            self._waited(time.monotonic() - started)

    def _start_writing(self) -> list[Buffer]:
        """Return the gathered buffers and mark them as the writer's, beside those that the writer may still have."""
        gathered, self._gathered = self._gathered, []
        self._writing = [*self._writing, *gathered]
        self._writing_size += self._gathered_size
        self._gathered_size = 0
        return gathered

    def _release_written(self) -> None:
        """Release all buffers of the writer, which no longer uses them."""
        self._budget.release(self._writing_size)
        self._release_buffers(self._writing)
        self._writing, self._writing_size = [], 0

    def _drop_gathered(self) -> None:
        self._budget.release(self._gathered_size)
        self._release_buffers(self._gathered)
        self._gathered, self._gathered_size = [], 0
