"""A storage: one file for each upload, below one folder."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from tusd_py import StorageBehind, StorageFull, StorageUnavailable, StoredElsewhere, Upload, UploadNotFound, UploadPart
from tusd_py.contracts.storage import Buffer, Observer, PieceSize, WriterSnapshot, largest_piece

T = TypeVar("T")
PIECE = 128 << 10  # bytes read at a time
LOCATION = "folder"


class FolderStorage:
    """A storage of uploads in the files of a folder, named by their ids.

    Needs no fencing: its locker frees a lock only when the process of the holder has ended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def open(self) -> None:
        await _in_thread(lambda: self._folder.mkdir(parents=True, exist_ok=True))

    async def close(self, timeout: float | None = None) -> bool:
        return True

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> FileWriter:
        return FileWriter(self.path(upload), upload, observer)

    def locate(self, upload: Upload) -> str:
        return LOCATION

    def path(self, upload: Upload) -> Path:
        if upload.storage_state or upload.location not in ("", LOCATION):
            raise StoredElsewhere
        return self._folder / upload.id

    async def stored_size(self, upload: Upload) -> int:
        path = self.path(upload)
        return await _in_thread(lambda: path.stat().st_size if path.exists() else 0)

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        path = self.path(upload)

        def finish() -> None:
            with open(path, "ab") as file:
                if file.tell() < upload.offset:
                    raise StorageBehind(file.tell())
                file.truncate(upload.offset)
                if sync:
                    os.fsync(file.fileno())
                    _sync_folder(path.parent)

        await _in_thread(finish)
        return ""

    async def discard_superseded(self, upload: Upload) -> None:
        """Do nothing: an upload has one file."""

    async def delete(self, upload: Upload) -> None:
        path = self.path(upload)
        await _in_thread(lambda: path.unlink(missing_ok=True))

    async def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        path = self.path(upload)

        def read(position: int) -> bytes:
            try:
                with open(path, "rb") as file:
                    return os.pread(file.fileno(), min(piece_size(PIECE), end - position), position)
            except FileNotFoundError:
                raise UploadNotFound from None

        if start >= end:
            await _in_thread(partial(read, start))
        while start < end:
            piece = await _in_thread(partial(read, start))
            if not piece:
                raise StorageUnavailable("the file is shorter than the upload")
            start += len(piece)
            yield piece


class FileWriter:
    """A writer of one file, a call at a time. After an error it takes no more bytes."""

    def __init__(self, path: Path, upload: Upload, observer: Observer | None) -> None:
        self._offset = self._committed = upload.offset
        self._synced = upload.synced
        self._path = path
        self._observer = observer
        self._descriptor: int | None = None
        self._running: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    def snapshot(self) -> WriterSnapshot:
        return WriterSnapshot(self._offset, self._synced)

    def committed(self, snapshot: WriterSnapshot) -> None:
        pass  # no bytes but those of the record are ever named

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await self._start(lambda: self._store(buffers))  # stored while the next bytes arrive

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        await self._run(lambda: self._store(buffers, sync=sync))

    async def flush_available(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        await self.flush(buffers, sync=sync)

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        await self.flush(buffers, sync=False)
        return False

    async def discard(self, offset: int) -> None:
        await self._ended()

        def truncate() -> None:
            os.ftruncate(self._open(), offset)
            self._offset, self._synced = offset, min(self._synced, offset)

        await _in_thread(truncate)

    async def close(self) -> None:
        await self._ended()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def _start(self, step: Callable[[], None]) -> None:
        """Start a step once the one before has ended; raises the error of that one."""
        await self._ended()
        if self._error is not None:
            raise self._error
        self._running = asyncio.ensure_future(_in_thread(step))  # goes on when the caller is cancelled

    async def _run(self, step: Callable[[], None]) -> None:
        await self._start(step)
        await self._ended()
        if self._error is not None:
            raise self._error

    async def _ended(self) -> None:
        """Wait for the step under way, and keep its error."""
        if self._running is not None:
            await asyncio.wait((self._running,))
            self._error = self._error or self._running.exception()  # type: ignore[assignment]
            self._running = None

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o640)
            if os.fstat(self._descriptor).st_size < self._committed:
                raise StorageBehind(os.fstat(self._descriptor).st_size)
            os.ftruncate(self._descriptor, self._committed)
        return self._descriptor

    def _store(self, buffers: Sequence[Buffer], *, sync: bool = False) -> None:
        descriptor = self._open()
        for buffer in buffers:
            if self._observer is not None:
                self._observer(buffer)
            with memoryview(buffer) as view:
                written = 0
                while written < len(view):
                    count = os.pwrite(descriptor, view[written:], self._offset)
                    written += count
                    self._offset += count
        if sync:
            os.fsync(descriptor)
            _sync_folder(self._path.parent)
            self._synced = self._offset


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread; errors of the system become those of the contract."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise (StorageFull() if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageUnavailable()) from error
