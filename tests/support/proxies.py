"""Proxies on loopback: one that distributes requests to several servers, one that makes a network fail."""

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
TIMEOUT = scaled(15.0)
CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
T = TypeVar("T")


class Stream:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.trapped = False  # whether the connection breaks in place of the next bytes from this end
        self.subscribed = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Abort the connection with RST in place of FIN."""
        connection = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the connection is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Proxy:
    """A listener with an event loop in a thread of its own; use as a context manager."""

    def __init__(self) -> None:
        self.port = free_port()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listener: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._streams: set[Stream] = set()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        self.call(self._listen())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)

    def _run(self) -> None:
        """Run the event loop, and end the tasks that it has when it is stopped; the thread of the proxy."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the proxy; called from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)

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
        """Forward bytes in both directions until the server has sent everything, or the connection breaks."""
        upward, downward = tasks = (
            asyncio.create_task(self._forward_all(client, server)),
            asyncio.create_task(self._forward_all(server, client)),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not downward.done() and upward.exception() is None:  # the client has sent everything
                await asyncio.wait((downward,))
            if any(task.done() and task.exception() for task in tasks):
                client.reset()
                server.reset()
        finally:
            self._drop(server)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward_all(self, source: Stream, target: Stream) -> None:
        while data := await source.reader.read(READ_SIZE):
            await self.forward(data, source, target)
        target.writer.write_eof()

    def reset_connections(self) -> None:
        """Abort all connections; runs in the event loop of the proxy."""
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
        self._stopping = True
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        for stream in list(self._streams):  # of handlers that were cancelled before they began
            self._drop(stream)
        await asyncio.sleep(0.01)  # the transports close their sockets

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Stream(reader, writer)
        if self._stopping:
            client.close()
            return
        self._streams.add(client)
        task = asyncio.create_task(self._serve(client))
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)

    async def _serve(self, client: Stream) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self.handle(client)
        finally:
            self._drop(client)

    def _drop(self, stream: Stream) -> None:
        self._streams.discard(stream)
        stream.close()


class RoundRobin(Proxy):
    """An HTTP proxy that sends every request to the next server, whichever connection it came on.

    Each connection carries one request: the proxy tells client and server to close it. A server that refuses the
    connection is skipped.
    """

    def __init__(self, backends: Sequence[int]) -> None:
        """Use the servers on these ports in turn."""
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


class FaultyNetwork(Proxy):
    """A proxy in front of one server: the network between it and its clients fails on demand."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.lost_answers = 0
        self._trap: bytes | None = None
        self._muted = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    def cut(self) -> None:
        """Break every connection; new ones are accepted."""
        self.call(self._cut())

    def stall(self) -> None:
        """Keep connections open, and deliver no bytes in either direction."""
        self.call(self._stall())

    def refuse(self) -> None:
        """Break every connection and refuse new ones."""
        self.call(self._refuse())
        self.call(self._cut())

    def resume(self) -> None:
        self.call(self._resume())

    def lose_answer_to(self, text: bytes) -> None:
        """Forward the next request that contains `text`, and break the connection in place of the answer."""
        self.call(self._set_trap(text))

    def mute_messages(self) -> None:
        """Deliver no more messages on connections to Redis that have subscribed to a channel."""
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
