"""Stands for the module `socket` in the code of the server, as far as it uses sockets of the file system.

A socket has a name in a folder of the simulated disk. A name whose process has died refuses connections, until somebody
removes the name. Bytes of one connection keep their order, and take random times.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.filesystem import Inode, error
from tests.simulation.loop import SimulatedLoop
from tests.simulation.machine import Process
from tests.simulation.system_calls import OsModule, process_now

LATENCY = 0.001  # seconds, at most
BUFFER = 1 << 16  # bytes that a reader may leave unread before the writer is paused
PREFIX = "/proc/self/fd/"


class SocketName(Inode):
    """The name of a socket in a folder."""

    listener: UnixSocket | None = None


class UnixSocket:
    """A socket of a process, with the interface of `socket.socket`."""

    def __init__(self, module: SocketModule) -> None:
        self.module = module
        self.process: Process | None = None
        self.name: SocketName | None = None
        self.factory: Callable[[], Any] | None = None  # makes the protocol of a connection, of one that listens
        self.transport: Transport | None = None  # of one that is connected
        self.waiting: list[UnixSocket] = []  # connections that nobody has accepted yet
        self.peer: UnixSocket | None = None
        self.sent: deque[bytes] = deque()  # by a plain socket, before a transport has taken it over
        self.is_open = True
        self._references = 1  # descriptors
        self.is_busy = False  # has no room for another connection

    def bind(self, path: str) -> None:
        self._belong_to(process_now())
        folder, name = self.module.place(path)
        if name in folder.entries:
            raise error(errno.EADDRINUSE, path)
        machine = process_now().machine
        self.name = SocketName(machine.files._next(), stat.S_IFSOCK | 0o600)
        machine.files.touch(self.name, machine.loop.now)
        folder.change((name, self.name))

    def listen(self, _: int) -> None:
        assert self.name is not None
        self.name.listener = self

    def setblocking(self, _: bool) -> None: ...

    def _belong_to(self, process: Process) -> None:
        self.process = process
        process.on_death.append(self._end)

    def connect(self, path: str) -> None:
        self._belong_to(process_now())
        folder, name = self.module.place(path)
        found = folder.entries.get(name)
        if found is None:
            raise error(errno.ENOENT, path)
        listener = found.listener if isinstance(found, SocketName) else None
        if listener is None or not listener.is_alive:
            raise error(errno.ECONNREFUSED, path)
        if listener.is_busy:
            raise error(errno.EAGAIN, path)
        self.peer = UnixSocket(self.module)
        assert listener.process is not None
        self.peer._belong_to(listener.process)
        self.peer.peer = self
        listener.accept(self.peer)

    @property
    def is_alive(self) -> bool:
        return self.is_open and self.process is not None and self.process.alive

    def accept(self, connection: UnixSocket) -> None:
        """Take a connection, at once if a server listens."""
        if self.factory is None:
            self.waiting.append(connection)
        else:
            assert self.process is not None
            serve = Transport(connection, self.factory).start
            self.module.at(LATENCY, serve, self.process)

    async def serve(self, factory: Callable[[], Any]) -> Server:
        """Serve the connections to this socket, see `asyncio.loop.create_unix_server`."""
        self.factory = factory
        while self.waiting:
            self.accept(self.waiting.pop(0))
        return Server(self)

    async def take_over(self, factory: Callable[[], Any]) -> tuple[Transport, Any]:
        """Take this connection over, see `asyncio.loop.create_unix_connection`."""
        await asyncio.sleep(0)
        transport = Transport(self, factory)
        return transport, transport.start()

    def send(self, data: bytes) -> int:
        assert self.peer is not None
        self.peer.sent.append(data)
        return len(data)

    def dup(self) -> UnixSocket:
        self._references += 1
        return self

    def close(self) -> None:
        """Close this end, unless it was duplicated; the other one is told."""
        self._references -= 1
        if self._references <= 0:
            self._end()

    def _end(self) -> None:
        if self.is_open:
            self.is_open = False
            if self.peer is not None and self.peer.transport is not None:
                self.peer.transport.arrive(None)

    def __enter__(self) -> UnixSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport(asyncio.Transport):
    """One end of a connection, with the protocol of its process."""

    def __init__(self, sock: UnixSocket, factory: Callable[[], Any]) -> None:
        super().__init__()
        self._socket = sock
        self._factory = factory
        self._protocol: Any = None
        self._arriving: deque[bytes | None] = deque()
        self._last = 0.0
        self._unread = 0  # bytes on their way from here
        self._is_paused = False
        self._is_closing = False

    def start(self) -> Any:
        """Begin to read; return the protocol."""
        self._protocol = self._factory()
        self._socket.transport = self
        self._protocol.connection_made(self)
        while self._socket.sent:
            self.arrive(self._socket.sent.popleft())
        peer = self._socket.peer
        if peer is not None and not peer.is_open:
            self.arrive(None)
        return self._protocol

    @property
    def _other(self) -> Transport | None:
        peer = self._socket.peer
        return None if peer is None else peer.transport

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        self._unread += len(data)
        if self._unread > BUFFER and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()
        if (other := self._other) is not None:
            other.arrive(bytes(data))
        else:
            assert self._socket.peer is not None
            self._socket.peer.sent.append(bytes(data))

    def arrive(self, data: bytes | None) -> None:
        """Have bytes arrive here in a while, or the end of the connection."""
        assert self._socket.process is not None
        self._arriving.append(data)
        module = self._socket.module
        self._last = max(self._last, module.loop_now() + module.latency())
        module.at(self._last - module.loop_now(), self._deliver, self._socket.process)

    def _deliver(self) -> None:
        data = self._arriving.popleft()
        if self._is_closing:
            return
        if data is None:
            self._end()
            return
        self._protocol.data_received(data)
        if (other := self._other) is not None:
            other.was_read(len(data))

    def was_read(self, size: int) -> None:
        """Go on writing once the other end has read what was on its way."""
        self._unread = max(0, self._unread - size)
        if self._is_paused and self._unread <= BUFFER // 2:
            self._is_paused = False
            self._protocol.resume_writing()

    def _end(self) -> None:
        self._is_closing = True
        self._socket.close()
        self._protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._socket.close()
        assert self._socket.process is not None
        self._socket.module.at(0.0, lambda: self._protocol.connection_lost(None), self._socket.process)

    def abort(self) -> None:
        self.close()


class Server:
    """A server that listens on a socket."""

    def __init__(self, sock: UnixSocket) -> None:
        self._socket = sock

    def close(self) -> None:
        self._socket.close()


class SocketModule:
    """A replacement for the module `socket` in the code of the server."""

    def __init__(self, system: OsModule) -> None:
        for name in dir(socket):
            if name not in dir(self):
                setattr(self, name, getattr(socket, name))
        self._system = system

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Any:
        process = process_now()
        if family != socket.AF_UNIX or not process.machine.has_sockets:
            return socket.socket(family, kind)
        return UnixSocket(self)

    def place(self, path: str) -> tuple[Any, str]:
        """Return the folder and the last name of a path below an open folder."""
        descriptor, _, name = path.removeprefix(PREFIX).partition("/")
        return self._system._opened(int(descriptor)).inode, name

    def loop_now(self) -> float:
        return self._loop.now

    def latency(self) -> float:
        return self._loop_rng() * LATENCY

    def at(self, delay: float, callback: Callable[[], object], process: Process) -> None:
        """Call back on behalf of a process."""
        self._loop.call_later(delay, callback, context=process.context.copy())

    def use(self, loop: SimulatedLoop, random: Callable[[], float]) -> None:
        """Have the sockets belong to a world."""
        self._loop, self._loop_rng = loop, random
