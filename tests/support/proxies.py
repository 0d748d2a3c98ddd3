"""Proxies on the loopback interface: one that deals requests out to several servers, one that troubles a connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import struct
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support.redis_server import free_port
from tests.support.timing import scaled

READ_SIZE = 1 << 16
PATIENCE = scaled(15.0)
CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
T = TypeVar("T")


class Stream:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.trapped = False  # what comes from it next is lost, and the connection too
        self.subscribed = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST, not FIN."""
        connection = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Proxy:
    """A listener with an event loop in a thread of its own; use as a context manager."""

    def __init__(self) -> None:
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listener: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._streams: set[Stream] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self.call(self._listen())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop of the proxy, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def handle(self, client: Stream) -> None:
        """Serve one connection."""
        raise NotImplementedError

    async def forward(self, data: bytes, source: Stream, target: Stream) -> None:
        await target.send(data)

    async def connect(self, port: int) -> Stream:
        server = Stream(*await asyncio.open_connection("127.0.0.1", port))
        self._streams.add(server)
        return server

    async def relay(self, client: Stream, server: Stream) -> None:
        """Pass bytes on in both directions until the server has said everything, or the connection breaks."""
        upward, downward = tasks = (
            asyncio.create_task(self._pass_on(client, server)),
            asyncio.create_task(self._pass_on(server, client)),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not downward.done() and upward.exception() is None:  # the client has sent everything
                await asyncio.wait((downward,))
            if any(task.done() and task.exception() for task in tasks):
                client.reset()
                server.reset()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._drop(server)

    async def _pass_on(self, source: Stream, target: Stream) -> None:
        while data := await source.reader.read(READ_SIZE):
            await self.forward(data, source, target)
        target.writer.write_eof()

    def reset_connections(self) -> None:
        """In the loop of the proxy."""
        for stream in self._streams:
            stream.reset()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def _stop(self) -> None:
        await self._refuse()
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0.01)  # the transports close their sockets

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Stream(reader, writer)))
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)

    async def _serve(self, client: Stream) -> None:
        self._streams.add(client)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self.handle(client)
        finally:
            self._drop(client)

    def _drop(self, stream: Stream) -> None:
        self._streams.discard(stream)
        stream.close()


class RoundRobin(Proxy):
    """An HTTP proxy that gives every request to the next server, whatever connection it came on.

    Each connection carries one request: the answer tells the client to close it. A server that refuses the connection
    is passed over.
    """

    def __init__(self, backends: Sequence[int]) -> None:
        """The ports of the servers, in the order of their turns."""
        super().__init__()
        self.backends = list(backends)
        self.served: list[tuple[str, int]] = []  # method and port of every request
        self._turns = itertools.count()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/files"

    async def handle(self, client: Stream) -> None:
        head = await client.reader.readuntil(b"\r\n\r\n")
        server = await self._next_server(head.split(b" ", 1)[0].decode())
        await server.send(CONNECTION.sub(b"", head[:-4]) + b"\r\nConnection: close\r\n\r\n")
        await self.relay(client, server)

    async def _next_server(self, method: str) -> Stream:
        for _ in self.backends:
            port = self.backends[next(self._turns) % len(self.backends)]
            with contextlib.suppress(ConnectionRefusedError):
                server = await self.connect(port)
                self.served.append((method, port))
                return server
        raise ConnectionRefusedError


class Trouble(Proxy):
    """A proxy in front of one server: between it and its clients the network fails on demand."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.lost_answers = 0
        self._trap: bytes | None = None
        self._muted = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    def cut(self) -> None:
        """Break every connection; new ones are welcome."""
        self.call(self._cut())

    def stall(self) -> None:
        """Connections stay as they are, and nothing arrives any more in either direction."""
        self.call(self._stall())

    def refuse(self) -> None:
        """Break every connection and refuse new ones."""
        self.call(self._refuse())
        self.call(self._cut())

    def resume(self) -> None:
        self.call(self._resume())

    def lose_answer_to(self, text: bytes) -> None:
        """The next request with this text reaches the server; in place of its answer the connection breaks."""
        self.call(self._set_trap(text))

    def mute_messages(self) -> None:
        """From now on nothing arrives on connections to Redis that have subscribed to something."""
        self.call(self._mute())

    async def _cut(self) -> None:
        self.reset_connections()

    async def _stall(self) -> None:
        self._flowing.clear()

    async def _resume(self) -> None:
        self._flowing.set()
        await self._listen()

    async def _mute(self) -> None:
        self._muted = True

    async def _set_trap(self, text: bytes) -> None:
        self._trap = text

    async def handle(self, client: Stream) -> None:
        await self._flowing.wait()
        await self.relay(client, await self.connect(self.target))

    async def forward(self, data: bytes, source: Stream, target: Stream) -> None:
        await self._flowing.wait()
        if self._trap is not None and self._trap in data:
            self._trap = None
            target.trapped = True
        target.subscribed = target.subscribed or b"SUBSCRIBE" in data
        if source.subscribed and self._muted:
            return
        if source.trapped:
            self.lost_answers += 1
            raise ConnectionResetError
        await target.send(data)
