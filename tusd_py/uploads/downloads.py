"""Reads finished uploads, with one bound for what all downloads together hold in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tusd_py.contracts.storage import Storage
from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import Upload

DOWNLOAD_MEMORY = 32 << 20
MIN_PIECE = 16 << 10


class Downloads:
    """Counts the running downloads: the more there are, the smaller are the pieces that each of them reads at a time.

    A client that does not read holds one piece, so that silent ones never make others wait.
    """

    def __init__(self, memory: int = DOWNLOAD_MEMORY) -> None:
        self._memory = memory
        self._running = 0

    def piece_size(self, most: int) -> int:
        """Bytes that one download may read at a time, at most so many."""
        return max(MIN_PIECE, min(most, self._memory // max(1, self._running)))

    async def read(self, storage: Storage, upload: Upload, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """See `Storage.read`."""
        self._running += 1
        try:
            async for data in storage.read(upload, start, end, self.piece_size):
                yield data
        finally:
            self._running -= 1
