"""The handler of downloads: by the server, the kernel, the proxy in front or the storage."""

from __future__ import annotations

from tusd_py.core.errors import UploadNotFound
from tusd_py.core.upload import Upload
from tusd_py.http.download import describe, select
from tusd_py.http.errors import HTTPError
from tusd_py.http.offload import DownloadOffload
from tusd_py.http.request import FileBody, Request, Response
from tusd_py.uploads.service import UploadService

MIN_SENT_FILE = 256 << 10  # bytes of a download for which the kernel sends the file by itself


class DownloadHandler:
    """The handler of GET, and of HEAD for clients that do not speak tus."""

    def __init__(self, service: UploadService, offload: DownloadOffload | None = None) -> None:
        """Without `offload` the server sends the bytes."""
        self._service = service
        self._offload = offload

    async def get(self, request: Request) -> Response:
        return await self.response(request, body=True)

    async def response(self, request: Request, *, body: bool) -> Response:
        """Return a finished upload, or the range that the request names; without `body` the header fields alone."""
        upload = await self._service.get_completed(request.upload_id)
        if not request.admission.fits(upload):
            raise UploadNotFound
        selection = select(upload, request.headers, ranges=body)
        headers = describe(upload)
        if selection.status in (304, 412):
            return Response(selection.status, headers)
        if selection.status == 416:
            raise RangeNotSatisfiable(upload.length or 0)
        if not body:
            async for _ in self._service.downloads.read(upload, 0, 0):
                pass  # reading no bytes raises if the bytes are gone
            headers |= {"Upload-Offset": str(upload.offset), "Content-Length": str(upload.length)}
            return Response(200, headers)
        url = await self._service.downloads.url(upload, headers["Content-Disposition"], headers["Content-Type"])
        if url is not None:
            return Response(302, {"Location": url, "Cache-Control": "no-store"})
        offloaded = await self._offloaded(request, upload, headers)
        if offloaded is not None:
            return offloaded
        headers["Content-Length"] = str(selection.end - selection.start)
        if selection.status == 206:
            headers["Content-Range"] = f"bytes {selection.start}-{selection.end - 1}/{upload.length}"
        if selection.end - selection.start >= MIN_SENT_FILE and request.sends_files:
            file = await self._service.downloads.open_file(upload)
            if file is not None:
                return Response(selection.status, headers, file=FileBody(file, selection.start, selection.end))
        stream = self._service.downloads.read(upload, selection.start, selection.end)
        first = await anext(stream, b"")  # before the response starts, since this raises if the bytes are gone
        return Response(selection.status, headers, bytes(first), stream)

    async def _offloaded(self, request: Request, upload: Upload, headers: dict[str, str]) -> Response | None:
        """Return the response that leaves the bytes, and their ranges, to the proxy in front; None if it cannot."""
        # nginx would compare If-Match with a tag of its own, and refuse what the server has found to match.
        if self._offload is None or "if-match" in request.headers:
            return None
        file = await self._service.downloads.whole_file(upload)
        field = None if file is None else self._offload.header_field(file)
        if field is None:
            return None
        headers = {name: value for name, value in headers.items() if name != "Accept-Ranges"}  # the proxy sends its own
        return Response(200, headers | field)


class RangeNotSatisfiable(HTTPError):
    """A download whose Range selects none of the `length` bytes of the upload."""

    def __init__(self, length: int) -> None:
        text = f"the upload has {length} bytes"
        super().__init__(416, "ERR_RANGE_NOT_SATISFIABLE", text, {"Content-Range": f"bytes */{length}"})
