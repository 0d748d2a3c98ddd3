"""Accepts the connections of one listening socket, never more at a time than there are descriptors for."""

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

BATCH = 64  # connections accepted before others get a turn, when several come at once
PAUSE = 0.05  # seconds until the next look when all connections are in use
FAILURE_PAUSE = 0.5  # seconds after the kernel refused another connection
IDLE_BEFORE_ROOM = 1.0  # seconds a connection is idle before it has to make room
LOG_INTERVAL = 60.0  # seconds between two lines that say the same


class Acceptor:
    """Stands in for an `asyncio.Server`. At the limit, idle connections make room, and new ones wait in the kernel.

    `open_connections` counts those that are open, `make_room(seconds)` ends one that has been idle for so long and
    says whether there was one.
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
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener.fileno())
            if self._timer is not None:
                self._timer.cancel()

    async def wait_closed(self) -> None:
        """See `asyncio.Server.wait_closed`; connections are not waited for."""

    def _accept_some(self) -> None:
        now = self._loop.time()
        several = now == self._accepted_at  # otherwise it is one, and looking for another costs as much as accepting
        self._accepted_at = now
        for _ in range(BATCH if several else 1):
            if not self._has_room():
                self._tell("all %d connections are in use; others wait", self._limit)
                self._pause(PAUSE)
                return
            try:
                connection = self._listener.accept()[0]
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._tell("no more connections can be accepted: %s", error.strerror)
                self._make_room(IDLE_BEFORE_ROOM)
                self._pause(FAILURE_PAUSE)
                return
            self._open(connection)

    def _has_room(self) -> bool:
        in_use = self._open_connections() + len(self._opening)
        return in_use < self._limit or self._make_room(IDLE_BEFORE_ROOM)

    def _open(self, connection: socket.socket) -> None:
        """Have the loop make a transport of a socket.

        A task for each connection would take longer than all the rest: the coroutine of the loop waits once, for
        `connection_made` to have been called.
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
        """Let the coroutine go on; returns what it waits for, None once it has ended."""
        try:
            return cast(Waiter, opening.send(None))
        except StopIteration:
            return None
        except OSError as error:  # the client was gone at once
            logger.debug("a connection was not opened: %s", error)
            connection.close()
            return None

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept_some)

    def _tell(self, text: str, *values: object) -> None:
        if time.monotonic() - self._logged >= LOG_INTERVAL:
            self._logged = time.monotonic()
            logger.warning(text, *values)
