"""The uploads of a server for the application around it, as `TusServer.uploads` and `TusServer.open`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Self

from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import UploadNotFound
from tusd_py.core.listing import EVERYTHING, Page, UploadFilter
from tusd_py.core.upload import Upload
from tusd_py.uploads.service import UploadService

Service = Callable[[], Awaitable[UploadService]]  # starts the server, if it has not been started


class Uploads:
    """The uploads of a server, for its application. Every method starts the server unless it runs.

    Methods raise `StateUnavailable` or `StorageUnavailable` while the server cannot start or a component is
    unavailable.

    Example::

        upload = await tus.uploads.get(upload_id)
        print(upload.offset, "of", upload.length, upload.decoded_metadata.get("filename"))
        await tus.uploads.terminate(upload_id)
    """

    def __init__(self, service: Service) -> None:
        """Use the service that `service` starts and returns."""
        self._service = service

    async def get(self, upload_id: str) -> Upload:
        """Return the record of an upload as last committed.

        A running append may have received more bytes than `Upload.offset` tells.

        Raises:
            UploadNotFound: there is no upload with this id, or it has ended.
            UploadGone: it has ended, and the setting `gone_for` remembers it.
        """
        return await (await self._service()).get(upload_id)

    async def list(self, *, after: str = "", limit: int = 100, condition: UploadFilter = EVERYTHING) -> Page:
        """Return a page of the uploads, in the order of their ids.

        Example::

            after: str | None = ""
            while after is not None:
                page = await tus.uploads.list(after=after, condition=UploadFilter(status=Status.ACTIVE))
                for upload in page.uploads:
                    print(upload.id, upload.offset)
                after = page.after

        Args:
            after: `Page.after` of the page before; empty for the first page.
            limit: number of uploads of the page at most, from 1. A page may hold fewer before the end of the list.
            condition: uploads that do not match it are passed over.
        """
        return await (await self._service()).list(after=after, limit=limit, condition=condition)

    async def terminate(self, upload_id: str) -> None:
        """Remove an upload, finished or not, with its bytes and its record; publishes `UploadTerminated`.

        A running append of a client ends and is told that its upload is gone.

        Raises:
            UploadNotFound: there is no upload with this id, or it has ended.
            UploadGone: it has ended, and the setting `gone_for` remembers it.
            LockTimeout: a request that uses the upload did not let go within the setting `lock_timeout`.
        """
        await (await self._service()).terminate(upload_id)


class UploadReader:
    """An asynchronous reader of the bytes of a complete upload, on any storage; made by `TusServer.open`.

    Holds one piece of the upload in memory, unless `read` is asked for more. Not for use by several tasks at a time.

    Example::

        async with await tus.open(event.upload) as reader:
            head = await reader.read(1024)
            async for piece in reader:
                digest.update(piece)
    """

    def __init__(self, pieces: AsyncGenerator[Buffer, None], first: bytes) -> None:
        """Continue after `first`, the piece that has been read already."""
        self._pieces = pieces
        self._rest = first

    async def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, fewer at the end and none after it; all remaining ones if `size` is negative.

        Raises:
            UploadNotFound: the bytes are no longer there.
            StorageUnavailable: the storage cannot be read now.
        """
        found = [self._rest]
        held = len(self._rest)
        while size < 0 or held < size:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            found.append(bytes(piece))
            held += len(piece)
        data = b"".join(found)
        end = len(data) if size < 0 else size
        self._rest = data[end:]
        return data[:end]

    def __aiter__(self) -> Self:
        """Iterate over the remaining bytes, in pieces of the size that suits the storage."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece, which is never empty."""
        data, self._rest = self._rest, b""
        while not data:
            data = bytes(await anext(self._pieces))
        return data

    async def aclose(self) -> None:
        """Close the file or connection; `read` returns nothing from now on. May be called twice."""
        self._rest = b""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        """Return the reader, which is closed at the end of the context."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the reader."""
        await self.aclose()


async def open_reader(service: UploadService, upload: Upload) -> UploadReader:
    """Return a reader of a complete upload; raises `UploadNotFound` for any other one, or if its bytes are gone."""
    if not upload.is_complete:
        raise UploadNotFound("the upload is not finished yet")
    pieces = service.downloads.read(upload, 0, upload.length or 0)
    return UploadReader(pieces, bytes(await anext(pieces, b"")))
