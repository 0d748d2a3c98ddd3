"""Gathers the bytes of one append into blocks worth a write, within the budget of all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from tusd_py.contracts.storage import ThreadedWriter, Writer
from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import UploadPart
from tusd_py.transfer.budget import ByteBudget

T = TypeVar("T")


class BatchWriter:
    """Gathers one block while the writer stores another."""

    def __init__(self, writer: Writer, budget: ByteBudget, release: Callable[[Sequence[Buffer]], None]) -> None:
        self._writer = writer
        self._budget = budget
        self._release_buffers = release
        self._gathered: list[Buffer] = []
        self._gathered_size = 0
        self._writing: list[Buffer] = []
        self._writing_size = 0

    @property
    def gathered(self) -> int:
        """The number of bytes that the writer does not have yet."""
        return self._gathered_size

    @property
    def stored(self) -> int:
        """The offset up to which bytes are stored without a gap."""
        return self._writer.stored

    @property
    def synced(self) -> int:
        """The offset up to which bytes survive a power cut."""
        return self._writer.synced

    @property
    def layout(self) -> str:
        """Description of the stored bytes, for the record."""
        return self._writer.layout

    def parts(self, after: int) -> Sequence[UploadPart]:
        """The stored parts that the ledger of a record at the offset `after` may lack."""
        return self._writer.parts(after)

    async def add(self, data: Buffer) -> None:
        """Take the next bytes; raises what the storage says of earlier ones."""
        if not self._budget.try_reserve(len(data)):
            # An append waits only while it holds nothing, or all could wait for each other.
            await self._hand_over()
            await self._budget.reserve(len(data))
        self._gathered.append(data)
        self._gathered_size += len(data)
        if self._gathered_size >= self._budget.batch_size():
            await self._write()

    async def flush(self, *, sync: bool) -> None:
        """Have everything stored."""
        gathered = self._start_writing()
        await self._writer.flush(gathered, sync=sync)
        self._written()

    async def checkpoint(self, *, sync: bool) -> None:
        """Have as much stored as comes cheap."""
        gathered = self._start_writing()
        await self._writer.checkpoint(gathered, sync=sync)
        await self._writer.write(())
        self._written()

    async def finish(self, *, sync: bool) -> bool:
        """Have everything stored as the last bytes of the upload; True if that makes it whole."""
        gathered = self._start_writing()
        whole = await self._writer.finish(gathered, sync=sync)
        self._written()
        return whole

    async def finish_by(
        self, writer: ThreadedWriter, run: Callable[[Callable[[], None]], asyncio.Future[T]], *, sync: bool
    ) -> T:
        """Do what `finish` does in a thread that `run` chooses; `writer` is the one of the construction."""
        gathered = self._start_writing()
        result = await writer.finish_by(gathered, run, sync=sync)
        self._written()
        return result

    async def discard(self, offset: int) -> None:
        """Forget every byte from `offset` on, stored or not."""
        self._forget_gathered()
        await self._writer.discard(offset)

    async def close(self) -> None:
        """Let go of everything; what was not flushed is lost."""
        self._forget_gathered()
        try:
            await self._writer.close()
        except BaseException:
            # The write may still be running: its buffers must not be used again.
            self._budget.release(self._writing_size)
            self._writing, self._writing_size = [], 0
            raise
        self._written()

    async def _hand_over(self) -> None:
        """Hold nothing any more."""
        gathered = self._start_writing()
        await self._writer.write(gathered)
        await self._writer.write(())
        self._written()

    async def _write(self) -> None:
        if self._gathered:
            await self._writer.write(self._gathered)  # returns once the block before is stored
            self._written()
            self._start_writing()

    def _start_writing(self) -> list[Buffer]:
        """Hand the gathered buffers to the writer, beside those it may still have."""
        gathered, self._gathered = self._gathered, []
        self._writing = [*self._writing, *gathered]
        self._writing_size += self._gathered_size
        self._gathered_size = 0
        return gathered

    def _written(self) -> None:
        """The writer is done with everything that it had."""
        self._budget.release(self._writing_size)
        self._release_buffers(self._writing)
        self._writing, self._writing_size = [], 0

    def _forget_gathered(self) -> None:
        self._budget.release(self._gathered_size)
        self._release_buffers(self._gathered)
        self._gathered, self._gathered_size = [], 0
