"""A small tus client for tests: calls an ASGI application in its event loop, without sockets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp

HOST = "testserver"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request; names of header fields are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TusError(Exception):
    """A request that the server refused; `answer` is its answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body.decode('utf-8', 'replace').strip()}")
        self.answer = answer


class TusClient:
    """A client of tus 1.0.0.

    Example::

        tus = TusServer(storage=MemoryStorage(), state=MemoryState(), locker=MemoryLocker())
        app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
        async with tus.lifespan(app):
            client = TusClient(app, "/files")
            path = await client.create(11, {"filename": "hello.txt"})
            await client.append(path, 0, b"hello world")
            assert await client.download(path) == b"hello world"
    """

    def __init__(self, app: ASGIApp, creation_path: str, headers: Mapping[str, str] | None = None) -> None:
        """Call the application `app`.

        Args:
            app: the application, already started or one that starts with its first request.
            creation_path: the path of the creation URL.
            headers: header fields of every request, such as Authorization.
        """
        self._app = app
        self._creation_path = creation_path
        self._headers = {"Tus-Resumable": "1.0.0", **(headers or {})}

    async def create(self, length: int | None, metadata: Mapping[str, str] | None = None) -> str:
        """Create an upload, and return its path.

        Args:
            length: the length in bytes; None to defer it.
            metadata: pairs for Upload-Metadata.
        """
        headers = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
        if metadata:
            pairs = [f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items()]
            headers["Upload-Metadata"] = ",".join(pairs)
        answer = await self._expect(201, "POST", self._creation_path, headers)
        return urlsplit(answer.headers["location"]).path

    async def append(self, path: str, offset: int, data: bytes, length: int | None = None) -> int:
        """Append bytes at an offset, and return the new one.

        Args:
            path: the path of the upload.
            offset: the offset of the upload.
            data: the bytes.
            length: the length of the upload, if it was deferred and is known now.
        """
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        if length is not None:
            headers["Upload-Length"] = str(length)
        return int((await self._expect(204, "PATCH", path, headers, data)).headers["upload-offset"])

    async def offset(self, path: str) -> int:
        """Return the offset of an upload."""
        return int((await self._expect(200, "HEAD", path)).headers["upload-offset"])

    async def download(self, path: str) -> bytes:
        """Return the bytes of a complete upload."""
        return (await self._expect(200, "GET", path)).body

    async def terminate(self, path: str) -> None:
        """Remove an upload."""
        await self._expect(204, "DELETE", path)

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send any request, and return its answer whatever the status."""
        fields = {"Host": HOST, "Content-Length": str(len(body)), **self._headers, **(headers or {})}
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()],
            "client": ("127.0.0.1", 1),
            "server": (HOST, 80),
        }
        messages: list[MutableMapping[str, Any]] = []
        sent = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:  # the client stays connected until it has its answer
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.append(message)

        await self._app(scope, receive, send)
        start = messages[0]
        content = b"".join(message.get("body", b"") for message in messages[1:])
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], found, content)

    async def _expect(
        self, status: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        answer = await self.request(method, path, headers, body)
        if answer.status != status:
            raise TusError(answer)
        return answer
