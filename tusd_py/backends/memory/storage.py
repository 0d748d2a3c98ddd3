"""Bytes of uploads in the memory of one process, for tests and examples."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.contracts.storage import Buffer, Observer, PieceSize, WriterSnapshot, largest_piece
from tusd_py.core.errors import PartBehind, ServerShutdown, StorageBehind, StoredElsewhere, UploadNotFound
from tusd_py.core.upload import Upload, UploadPart

StoredBytes: TypeAlias = dict[str, bytearray]  # by upload id
PIECE_SIZE = 1 << 20  # bytes


class MemoryStorage:
    """A storage in the memory of this process.

    Example::

        tus = TusServer(storage=MemoryStorage(), state=MemoryState(), locker=MemoryLocker())
    """

    def __init__(self, stored: StoredBytes | None = None) -> None:
        """Store bytes in `stored` if given; storages with the same dictionary have the same bytes."""
        self._stored: StoredBytes = {} if stored is None else stored
        self._interrupted = False

    async def open(self) -> None:
        """See `Storage.open`."""
        self._interrupted = False

    async def close(self, timeout: float | None = None) -> bool:
        """See `Storage.close`."""
        return True

    def locate(self, upload: Upload) -> str:
        """See `Storage.locate`."""
        return ""

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> MemoryWriter:
        """See `Storage.writer`."""
        _check_ownership(upload)
        return MemoryWriter(self._stored, upload, observer)

    async def stored_size(self, upload: Upload) -> int:
        """See `Storage.stored_size`."""
        _check_ownership(upload)
        return len(self._stored.get(upload.id, b""))

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        """See `Storage.finish`."""
        _check_ownership(upload)
        data = self._stored.setdefault(upload.id, bytearray())
        if len(data) < upload.offset:
            raise StorageBehind(len(data))
        del data[upload.offset :]
        return ""

    async def discard_superseded(self, upload: Upload) -> None:
        """See `Storage.discard_superseded`."""

    async def delete(self, upload: Upload) -> None:
        """See `Storage.delete`."""
        _check_ownership(upload)
        self._stored.pop(upload.id, None)

    async def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        """See `Storage.read`."""
        _check_ownership(upload)
        while True:
            data = self._stored.get(upload.id)
            if data is None or len(data) < end:
                raise UploadNotFound
            if start >= end:
                return
            piece = bytes(data[start : min(end, start + piece_size(PIECE_SIZE))])
            start += len(piece)
            yield piece

    def interrupt(self) -> None:
        """See `SupportsConcatenation.interrupt`."""
        self._interrupted = True

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        """See `SupportsConcatenation.concatenate`."""
        if self._interrupted:
            raise ServerShutdown
        content = bytearray()
        for partial in partials:
            data = self._stored.get(partial.id)
            if data is None:
                raise UploadNotFound
            if len(data) < partial.offset:
                raise PartBehind(partial.id, len(data))
            content += data[: partial.offset]
        self._stored[final.id] = content
        return ""


class MemoryWriter:
    """The writer of one upload. Every step runs in a worker thread, since an observer may take long."""

    def __init__(self, stored: StoredBytes, upload: Upload, observer: Observer | None) -> None:
        self._stored = stored
        self._id = upload.id
        self._held: bytearray | None = None  # the bytes in `stored`, from the first step on
        self._observer = observer
        self._steps = SerialTask()
        self._offset = upload.offset

    @property
    def _data(self) -> bytearray:
        if self._held is None:
            self._held = self._stored.setdefault(self._id, bytearray())
        return self._held

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """See `Writer.write`."""
        await self._steps.settle()
        self._steps.start(asyncio.to_thread(self._append, buffers))

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        """See `Writer.flush`."""
        await self.write(buffers)
        await self._steps.settle()

    async def flush_available(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """See `Writer.flush_available`."""
        await self.flush(buffers, sync=sync)

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        """See `Writer.finish`."""
        await self.flush(buffers, sync=sync)
        return True

    def snapshot(self) -> WriterSnapshot:
        """See `Writer.snapshot`."""
        return WriterSnapshot(self._offset)

    def committed(self, snapshot: WriterSnapshot) -> None:
        """See `Writer.committed`."""

    async def discard(self, offset: int) -> None:
        """See `Writer.discard`."""
        await self._steps.wait()
        data = self._data
        del data[offset:]
        self._offset = min(self._offset, offset)

    async def close(self) -> None:
        """See `Writer.close`."""
        await self._steps.wait()

    def _append(self, buffers: Sequence[Buffer]) -> None:
        """Drop uncommitted bytes, then append. Runs in a worker thread."""
        data = self._data
        if len(data) < self._offset:
            raise StorageBehind(len(data))
        del data[self._offset :]
        for buffer in buffers:
            if self._observer is not None:
                self._observer(buffer)
            data += buffer
            self._offset += len(buffer)


def _check_ownership(upload: Upload) -> None:
    """Raise `StoredElsewhere` for a record with a storage state or location, which this storage never creates."""
    if upload.storage_state or upload.location:
        raise StoredElsewhere
