"""The bytes of complete uploads, in every form that a storage offers them; all downloads share a limit of memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

from tusd_py.contracts.storage import OpenFile
from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import Upload
from tusd_py.uploads.components import Components

DOWNLOAD_MEMORY = 32 << 20
MIN_PIECE = 16 << 10


def piece_size(limit: int, running: int, memory: int = DOWNLOAD_MEMORY) -> int:
    """Return the bytes that one of the running downloads may read at a time, at most `limit`."""
    return max(MIN_PIECE, min(limit, memory // max(1, running)))


class Downloads:
    """The downloads of one service: the more of them run, the smaller are the pieces that each reads at a time.

    A client that does not read holds one piece, so that silent clients never make others wait.
    """

    def __init__(self, components: Components) -> None:
        self._storage = components.storage
        self._redirects = components.redirects
        self._file_sending = components.file_sending
        self._whole_files = components.whole_files
        self._files = components.files
        self._running = 0

    async def read(self, upload: Upload, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """Yield the bytes from `start` up to but not including `end` of a complete upload, in pieces.

        Closing this generator closes the file or connection at once. Raises `UploadNotFound` if the bytes are gone,
        `StorageFull`, `StorageUnavailable`.
        """
        self._running += 1
        pieces = self._storage.read(upload, start, end, lambda limit: piece_size(limit, self._running))
        try:
            async for data in pieces:
                yield data
        finally:
            self._running -= 1
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def url(self, upload: Upload, disposition: str, content_type: str) -> str | None:
        """Return a URL to download a complete upload from the storage itself; None if that is not possible."""
        if self._redirects is None:
            return None
        return await self._redirects.download_url(upload, disposition, content_type)

    async def open_file(self, upload: Upload) -> OpenFile | None:
        """Open the file of a complete upload, for the kernel to send it; None if the storage has none.

        Raises `UploadNotFound` if the bytes are gone, `StorageUnavailable`.
        """
        if self._file_sending is None:
            return None
        return await self._file_sending.open_file(upload)

    async def whole_file(self, upload: Upload) -> Path | None:
        """Return the file that holds exactly the bytes of a complete upload; None if the storage has no such file.

        Raises `UploadNotFound` if the bytes are gone, `StorageUnavailable`.
        """
        if self._whole_files is None:
            return None
        return await self._whole_files.whole_file(upload)

    def path(self, upload: Upload) -> Path | None:
        """Return the file with the bytes of a complete upload; None if they are not a file on this host."""
        if not upload.is_complete or self._files is None:
            return None
        return self._files.path(upload)
