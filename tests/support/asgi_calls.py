"""Requests made directly to an ASGI application in the event loop of the test, to be cancelled, fed and stalled."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message

TUS = {"Tus-Resumable": "1.0.0"}
TIMEOUT = 60.0  # seconds for anything that has to happen


def http_scope(method: str, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the ASGI scope of a tus request."""
    fields = {"host": "testserver", **TUS, **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }


class Call:
    """One request in a task of its own, whose body the test supplies piece by piece; its client stays until told to."""

    def __init__(self, app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        self._scope = http_scope(method, path, headers)
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._sent: list[Any] = []
        self.task: asyncio.Task[None] = asyncio.create_task(self._run(app))

    async def _run(self, app: ASGIApp) -> None:
        async def send(message: Any) -> None:
            self._sent.append(message)

        await app(self._scope, self._messages.get, send)

    def give(self, data: bytes, *, more: bool = True) -> None:
        """Supply the next bytes of the body."""
        self._messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        """Close the connection of the client."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def cancel_like_anyio(self) -> None:
        """Cancel the request at every step, as an anyio cancel scope does, until it has ended."""
        async with asyncio.timeout(TIMEOUT):
            while not self.task.done():
                self.task.cancel()
                await asyncio.sleep(0)

    async def answer(self) -> Call:
        """Wait until the request has ended, and return it."""
        async with asyncio.timeout(TIMEOUT):
            await asyncio.shield(self.task)
        return self

    @property
    def status(self) -> int:
        return int(self._sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self._sent[0]["headers"]}

    @property
    def offset(self) -> int:
        return int(self.headers["upload-offset"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._sent[1:])


async def ask(app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Call:
    """Make a request with its whole body and return it once it is answered."""
    call = Call(app, method, path, {"content-length": str(len(body)), **(headers or {})})
    call.give(body, more=False)
    return await call.answer()


def offset_stream(offset: int, **headers: str) -> dict[str, str]:
    """Return the header fields of a PATCH."""
    return {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream", **headers}


async def create(app: ASGIApp, length: int, **headers: str) -> str:
    """Create an upload and return its path."""
    created = await ask(app, "POST", "/", {"Upload-Length": str(length), **headers})
    assert created.status == 201
    return "/" + created.headers["location"].rpartition("/")[2]
