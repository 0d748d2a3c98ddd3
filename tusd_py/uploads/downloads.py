"""Downloads of finished uploads, with one limit for the memory of all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tusd_py.contracts.storage import Storage
from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import Upload

DOWNLOAD_MEMORY = 32 << 20
MIN_PIECE = 16 << 10


class Downloads:
    """The running downloads: the more there are, the smaller are the pieces that each of them reads at a time.

    A client that does not read holds one piece, so that silent clients never make others wait.
    """

    def __init__(self, memory: int = DOWNLOAD_MEMORY) -> None:
        self._memory = memory
        self._running = 0

    def piece_size(self, limit: int) -> int:
        """Return the bytes that one download may read at a time, at most `limit`."""
        return max(MIN_PIECE, min(limit, self._memory // max(1, self._running)))

    async def read(self, storage: Storage, upload: Upload, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """Yield the bytes of an upload in pieces, see `Storage.read`.

        Closing this generator closes the file or connection at once.
        """
        self._running += 1
        pieces = storage.read(upload, start, end, self.piece_size)
        try:
            async for data in pieces:
                yield data
        finally:
            self._running -= 1
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
