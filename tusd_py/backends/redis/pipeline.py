"""Pipelining: calls of many tasks over one connection to Redis, sent at once and answered in order.

redis-py opens the connection, and says hello; from then on this module has its transport. The commands of one turn of
the event loop are one write, and a reply goes from the parser to the future of its caller. Through the streams and
coroutines of redis-py a call takes 80 us of CPU, and with its pool of connections 100.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError

from tusd_py.asyncutil.cancellation import CancellationGuard
from tusd_py.asyncutil.futures import settle

UNDECODABLE = "surrogateescape"  # how bytes that are not UTF-8 become text, and text becomes bytes
_INCOMPLETE = object()  # in place of a reply that has not arrived as a whole


class _Connection(asyncio.Protocol):
    """One connection, and the callers that wait for its replies. Invariant: connected once, never a second time."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        """Take over the transport of a connection on which no reply is outstanding."""
        self._loop = asyncio.get_running_loop()
        self._writer = writer  # which closes the transport when it is collected
        self._parser = hiredis.Reader(
            encoding="utf-8", errors=UNDECODABLE, replyError=DefaultParser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._unsent: list[bytes] = []
        self._replies: deque[tuple[asyncio.Future[Any], float]] = deque()  # with the times of their deadlines
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # its time; uvloop returns a handle that does not know it for a time that is now
        self._lost = self._loop.create_future()
        self._broken = False
        writer.transport.set_protocol(self)

    @property
    def is_usable(self) -> bool:
        return not self._broken and not self._writer.transport.is_closing()

    def call(self, words: Sequence[Any], deadline: float) -> asyncio.Future[Any]:
        """Send a command before the end of this turn of the event loop; return the future of its reply."""
        packed = _pack(words)
        reply = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(packed)
        self._replies.append((reply, deadline))  # each future in this list has a command that is sent
        if self._timer is None or deadline < self._timer_at:
            self._set_timer(deadline)
        return reply

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not self._broken:
            try:
                self._writer.transport.write(b"".join(unsent))
            except RuntimeError as error:  # uvloop raises it for a transport that it has closed already
                self.end(RedisConnectionError(str(error)))

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at, self._timer = deadline, self._loop.call_at(deadline, self._check_deadlines)

    def _check_deadlines(self) -> None:
        """End the connection if a reply is late. The timer is not moved with every reply, which would take longer."""
        self._timer = None
        if not self._replies:
            return
        earliest = min(deadline for _, deadline in self._replies)
        if earliest <= self._loop.time():
            self.end(TimeoutError("no reply in time"))
        else:
            self._set_timer(earliest)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not _INCOMPLETE:
                if not isinstance(reply, hiredis.PushNotification):
                    _settle(self._replies.popleft()[0], reply)
        except (hiredis.HiredisError, IndexError) as error:  # no reply, or one that nobody has asked for
            self.end(RedisConnectionError(f"not understood: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(RedisConnectionError(str(exc) if exc else "the connection was closed"))
        settle(self._lost, None, None)

    def end(self, reason: Exception) -> None:
        """Close the connection, and fail the calls under way."""
        self._broken = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._replies:
            _settle(self._replies.popleft()[0], reason)
        self._writer.transport.abort()

    async def closed(self) -> None:
        """Wait until the connection is closed."""
        await asyncio.shield(self._lost)


class PipelinedConnection:
    """A connection that is opened by the first call, and again after a failure.

    Deadlines are times of the clock of the event loop; a call raises `TimeoutError` after its own.
    """

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._connecting = asyncio.Lock()
        self._current: _Connection | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def call(self, words: Sequence[Any], deadline: float) -> Any:
        """Return the reply to a command; raises the exceptions of redis-py."""
        connection = self._current
        if connection is None or not connection.is_usable:
            connection = await self._connect(deadline)
        return await connection.call(words, deadline)

    async def calls(self, commands: Sequence[Sequence[Any]], deadline: float) -> list[Any]:
        """Return the replies to several commands, which Redis runs in this order."""
        connection = self._current
        if connection is None or not connection.is_usable:
            connection = await self._connect(deadline)
        replies = [connection.call(words, deadline) for words in commands]
        return [await reply for reply in replies]

    async def _connect(self, deadline: float) -> _Connection:
        guard = CancellationGuard()
        try:
            async with asyncio.timeout_at(deadline), self._connecting:
                if self._current is None or not self._current.is_usable:
                    self.drop()
                    self._current = await self._open()
                return self._current
        finally:
            guard.check()

    async def _open(self) -> _Connection:
        connection = self._make()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            reader, writer = connection._reader, connection._writer
            if reader is None or writer is None or reader.at_eof() or writer.transport.is_closing():
                raise RedisConnectionError("the connection was closed")
            taken = _Connection(writer)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        connection._reader = connection._writer = None  # so that it leaves the transport alone
        return taken

    def drop(self) -> None:
        """Close a connection that does not answer. The next call opens another one."""
        connection, self._current = self._current, None
        if connection is not None:
            connection.end(RedisConnectionError("the connection was dropped"))
            ending = asyncio.create_task(connection.closed())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Close the connection, and wait until it is closed."""
        self.drop()
        if self._ending:
            await asyncio.wait(self._ending)


def _pack(words: Sequence[Any]) -> bytes:
    try:
        packed: bytes = hiredis.pack_command(tuple(words))
    except UnicodeEncodeError:
        encoded = (word.encode(errors=UNDECODABLE) if isinstance(word, str) else word for word in words)
        packed = hiredis.pack_command(tuple(encoded))  # type: ignore[arg-type]  # of one element only, by its stub
    return packed


def _settle(reply: asyncio.Future[Any], value: Any) -> None:
    """Settle a reply; an exception as its value is raised by it."""
    if not isinstance(value, Exception):
        settle(reply, value, None)
        return
    settle(reply, None, value)
    if not reply.cancelled():
        reply.exception()  # mark it as retrieved: the caller may be cancelled before it awaits the reply
