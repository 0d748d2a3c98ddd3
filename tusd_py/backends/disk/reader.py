"""Reads of stored files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tusd_py.backends.disk.errors import file_errors
from tusd_py.contracts.storage import Buffer, OpenFile, PieceSize
from tusd_py.core.errors import StorageUnavailable, UploadNotFound

if TYPE_CHECKING:
    from tusd_py.backends.disk.storage import DiskStorage

TOO_SHORT = "the stored file is shorter than the upload"
DOWNLOAD_PIECE = 256 << 10  # maximum bytes read at a time


class FileReader:
    """A reader of the files of a storage, in the threads of the storage.

    Every method raises `UploadNotFound` if there is no file, and `StorageUnavailable` if it is shorter than expected.
    """

    def __init__(self, storage: DiskStorage) -> None:
        self._storage = storage

    async def read(self, path: Path, start: int, end: int, piece_size: PieceSize) -> AsyncIterator[Buffer]:
        """Yield the bytes from `start` to `end`, in pieces of `piece_size` at most."""

        def read_at(position: int) -> bytes:
            with file_errors():
                return os.pread(descriptor, min(piece_size(DOWNLOAD_PIECE), end - position), position)

        descriptor = await self._open(path)
        try:
            position = start
            while position < end:
                data = await self._storage.run(partial(read_at, position))
                if not data:
                    raise StorageUnavailable(TOO_SHORT)
                position += len(data)
                yield data
        finally:
            self._close(descriptor)

    async def open_file(self, path: Path, size: int) -> OpenFile:
        """Open a file of at least `size` bytes."""
        descriptor = await self._open(path, size)
        return OpenFile(descriptor, lambda: self._close(descriptor))

    async def has_size(self, path: Path, size: int) -> bool:
        """Return whether a file of at least `size` bytes has no more."""

        def compare() -> bool:
            descriptor = self._open_in_thread(path, size)
            try:
                return os.fstat(descriptor).st_size == size
            finally:
                os.close(descriptor)

        return await self._storage.run(compare)

    async def _open(self, path: Path, size: int = 0) -> int:
        """Return a descriptor of a file of at least `size` bytes."""
        opening = self._storage.run(partial(self._open_in_thread, path, size))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:  # the thread opens it all the same
            opening.add_done_callback(self._close_opened)
            raise

    def _open_in_thread(self, path: Path, size: int) -> int:
        """Do what `_open` does. Blocks."""
        with file_errors():
            try:
                descriptor = self._storage.files.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self._storage.check_identity()
                raise UploadNotFound from None
            if os.fstat(descriptor).st_size < size:
                os.close(descriptor)
                raise StorageUnavailable(TOO_SHORT)
            return descriptor

    def _close(self, descriptor: int) -> None:
        self._storage.run(lambda: os.close(descriptor))

    def _close_opened(self, opening: asyncio.Future[int]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._close(opening.result())
