"""One HTTP request of a simulated client to a server, in ASGI messages, with or without a body extension."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.machine import Process
from tusd_py.core.buffers import Buffer
from tusd_py.http.body_extension import BODY_EXTENSION
from tusd_py.transfer.budget import LendsBuffers
from tusd_py.uvicorn_server.buffered_receiver import SMALL_SHARE


@dataclass(slots=True)
class Answer:
    """A response that has arrived as a whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def offset(self) -> int | None:
        text = self.headers.get("upload-offset")
        return None if text is None else int(text)


@dataclass(slots=True)
class _Parts:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


class Exchange:
    """The connection of one request: what the client has sent, and what came back.

    As an ASGI scope extension it is a `BodyExtension`. `receive` and `send` run in the server, the rest in the client.
    """

    def __init__(self, process: Process, loop: asyncio.AbstractEventLoop, *, watched: bool) -> None:
        self.process = process
        self.loop = loop
        self.watched = watched
        self.task: asyncio.Task[None] | None = None
        self.last_arrival = process.machine.monotonic()
        self.trailers: list[tuple[bytes, bytes]] = []
        self.last_trailers: list[tuple[bytes, bytes]] = []  # that arrive with the last byte
        self.reader_timed_out = False
        self.answer: asyncio.Future[Answer | None] = loop.create_future()
        self.delivered = 0  # bytes that the server was given
        self.pool: LendsBuffers | None = None
        self._arrived: deque[bytes] = deque()
        self._ended = False
        self._end_delivered = False
        self._gone = False
        self._started = False
        self._change: asyncio.Future[None] | None = None
        self._parts = _Parts()
        process.on_death.append(self.lose)

    # The client.

    def start(self, application: Any, method: str, path: str, headers: Mapping[str, str]) -> None:
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "/files",
            "server": ("uploads.example", 80),
            "client": ("192.0.2.1", 4000),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "extensions": {BODY_EXTENSION: self} if self.watched else {},
        }
        self.task = self.loop.create_task(self._serve(application, scope), context=self.process.context.copy())
        self.task.add_done_callback(self._task_ended)

    async def _serve(self, application: Any, scope: MutableMapping[str, Any]) -> None:
        """Have the application serve the request, unless the web server around it has closed meanwhile."""
        if self.process.accepts_requests:
            await application(scope, self.receive, self.send)

    def push(self, content: bytes, *, last: bool) -> None:
        """Have bytes arrive at the server."""
        if not self._gone:
            self._arrived.append(content)
            if last:
                self.trailers += self.last_trailers
            self._ended = self._ended or last
            self.last_arrival = self.process.machine.monotonic()
            self._wake()

    def hang_up(self) -> None:
        """Close the connection; what has arrived is still there."""
        self._gone = True
        self._settle(None)
        self._wake()

    def lose(self) -> None:
        """The process of the server has died."""
        self._gone = True
        self._settle(None)

    def _settle(self, answer: Answer | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": "a request has failed", "exception": error})
        self._settle(None)

    # The server.

    def _wake(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    async def receive(self) -> dict[str, Any]:
        while not self._arrived and not (self._ended and not self._end_delivered) and not self._gone:
            self._change = self.loop.create_future()
            await self._change
        if self._arrived or not self._gone:
            content = self._in_buffer(self._arrived.popleft() if self._arrived else b"")
            self.delivered += len(content)
            more = not (self._ended and not self._arrived)
            self._end_delivered = not more
            return {"type": "http.request", "body": content, "more_body": more}
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if self._gone and self.watched:
            return
        if message["type"] == "http.response.start":
            self._started = True
            self._parts.status = message["status"]
            self._parts.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self._parts.body += message.get("body", b"")
            if not message.get("more_body", False):
                self._settle(Answer(self._parts.status, self._parts.headers, bytes(self._parts.body)))

    def respond(self, status: int, header_lines: bytes, body: bytes, *, close: bool) -> bool:
        """Send a whole response, see `Responder`."""
        if not self._gone:
            lines = header_lines.decode().splitlines()
            headers = dict(line.split(": ", 1) for line in lines)
            self._settle(Answer(status, headers, body))
        return True

    @property
    def whole(self) -> bytes | None:
        if self._ended and not self._end_delivered and self.delivered == 0:
            return b"".join(self._arrived)
        return None

    def read_buffered(self) -> Buffer:
        arrived = b"".join(self._arrived)
        self._arrived.clear()
        content = self._in_buffer(arrived)
        self.delivered += len(content)
        return content

    def close(self) -> None: ...

    def use_buffer_pool(self, pool: LendsBuffers) -> None:
        self.pool = pool

    def limit_send_buffer(self) -> None: ...

    def reset_connection(self) -> None: ...

    def _in_buffer(self, content: bytes) -> Buffer:
        """Return bytes in a buffer of the pool, if they are worth one; those that have no room arrive again."""
        if self.pool is None or not content:
            return content
        buffer = self.pool.acquire()
        self.pool.detach(buffer)
        if len(content) * SMALL_SHARE < len(buffer):
            self.pool.release(buffer)
            return content
        size = min(len(buffer), len(content))
        buffer[:size] = content[:size]
        if size < len(content):
            self._arrived.appendleft(content[size:])
        return memoryview(buffer)[:size]


def pieces(content: bytes, rng: Random) -> list[bytes]:
    """Cut bytes into a few messages."""
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.randrange(4)))
    bounds = [0, *cuts, len(content)]
    return [content[start:end] for start, end in itertools.pairwise(bounds) if end > start] or [b""]
