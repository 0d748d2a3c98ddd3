"""The acceptor of one listening socket, which never has more connections than there are descriptors for."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, cast

logger = logging.getLogger("tusd_py.uvicorn_server")

Opening: TypeAlias = Coroutine[Any, Any, object]
Waiter: TypeAlias = "asyncio.Future[Any]"

BATCH = 64  # connections accepted before other work of the event loop gets a turn, in a burst
FULL_PAUSE = 0.05  # seconds until the next attempt when all connections are in use
FAILURE_PAUSE = 0.5  # seconds until the next attempt after the kernel refused another connection
MIN_IDLE_TIME = 1.0  # seconds that a connection is idle before it is closed to make room
LOG_INTERVAL = 60.0  # seconds between two warnings


class Acceptor:
    """A replacement for `asyncio.Server` with a limit: idle connections make room, new ones wait in the kernel.

    `open_connections` returns the number of open connections; `make_room(seconds)` ends one that has been idle for so
    long and returns whether there was one.
    """

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: Callable[[], asyncio.Protocol],
        *,
        limit: int,
        open_connections: Callable[[], int],
        make_room: Callable[[float], bool],
    ) -> None:
        self._listener = listener
        self._new_protocol = new_protocol
        self._limit = limit
        self._open_connections = open_connections
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._opening: set[Waiter] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._accepted_at = 0.0
        self._logged = -LOG_INTERVAL

    def start(self, backlog: int) -> None:
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener.fileno(), self._accept_some)

    def close(self) -> None:
        """Accept no more, and close the listener of this process, so that nobody connects who would not be served."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            if self._timer is not None:
                self._timer.cancel()

    async def wait_closed(self) -> None:
        """Return at once, unlike `asyncio.Server.wait_closed`: connections are not waited for."""

    def _accept_some(self) -> None:
        now = self._loop.time()
        burst = now == self._accepted_at  # for a single connection, a second accept would double the cost
        self._accepted_at = now
        for _ in range(BATCH if burst else 1):
            if not self._has_room():
                self._warn("all %d connections are in use; others wait", self._limit)
                self._pause(FULL_PAUSE)
                return
            try:
                connection = self._listener.accept()[0]
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._warn("no more connections can be accepted: %s", error.strerror)
                self._make_room(MIN_IDLE_TIME)
                self._pause(FAILURE_PAUSE)
                return
            self._open(connection)

    def _has_room(self) -> bool:
        in_use = self._open_connections() + len(self._opening)
        return in_use < self._limit or self._make_room(MIN_IDLE_TIME)

    def _open(self, connection: socket.socket) -> None:
        """Make the event loop create a transport for a socket.

        The coroutine of the event loop is advanced by hand, since a task for each connection would take longer than all
        other work; it waits once, until `connection_made` has been called.
        """
        opening = self._loop.connect_accepted_socket(self._new_protocol, connection)
        waiter = self._advance(opening, connection)
        if waiter is not None:
            self._opening.add(waiter)
            waiter.add_done_callback(lambda opened: self._opened(opened, opening, connection))

    def _opened(self, waiter: Waiter, opening: Opening, connection: socket.socket) -> None:
        self._opening.discard(waiter)
        self._advance(opening, connection)

    def _advance(self, opening: Opening, connection: socket.socket) -> Waiter | None:
        """Advance the coroutine; return the future that it waits for, None once it has ended."""
        try:
            return cast(Waiter, opening.send(None))
        except StopIteration:
            return None
        except OSError as error:  # the client has disconnected already
            logger.debug("a connection was not opened: %s", error)
            connection.close()
            return None

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept_some)

    def _warn(self, text: str, *values: object) -> None:
        if time.monotonic() - self._logged >= LOG_INTERVAL:
            self._logged = time.monotonic()
            logger.warning(text, *values)
