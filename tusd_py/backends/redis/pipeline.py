"""Pipelining: calls of many tasks over one connection to Redis, sent at once and answered in order.

A client with a pool of connections spends 100 us of CPU on a call, most of it on lending connections; a pipelined
connection takes a third.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError, ResponseError

from tusd_py.asyncutil.futures import settle


class _Connection:
    """One connection, and the callers that wait for its replies. Invariant: connected once, never a second time."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._replies: deque[asyncio.Future[Any]] = deque()
        self._broken = False
        self._reader = asyncio.create_task(self._read())

    @property
    def is_usable(self) -> bool:
        return not self._broken and self._connection.is_connected

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        packed = [chunk for words in commands for chunk in self._connection.pack_command(*words)]
        replies = [asyncio.get_running_loop().create_future() for _ in commands]
        self._replies.extend(replies)  # each future in this list has a command that is sent
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except RuntimeError as error:  # uvloop raises it for a transport that it has closed already
            self._broken = True
            raise RedisConnectionError(str(error)) from error
        return [await reply for reply in replies]

    async def _read(self) -> None:
        reason: Exception = RedisConnectionError("the connection was closed")
        try:
            while True:
                try:
                    reply, error = await self._connection.read_response(), None
                except ResponseError as refused:
                    reply, error = None, refused
                _settle(self._replies.popleft(), reply, error)
        except Exception as broken:  # of any cause: no further reply can be read from this connection
            reason = RedisConnectionError(str(broken))
        finally:
            self._fail_all(reason)
            await self._connection.disconnect(nowait=True)

    def _fail_all(self, reason: Exception) -> None:
        self._broken = True
        while self._replies:
            _settle(self._replies.popleft(), None, reason)

    def drop(self) -> asyncio.Task[None]:
        """Close the connection and fail the calls under way; return a task to wait for before the event loop ends."""
        self._fail_all(RedisConnectionError("no reply in time"))
        self._reader.cancel()
        return asyncio.create_task(self._close_connection())

    async def _close_connection(self) -> None:
        await asyncio.wait((self._reader,))
        await self._connection.disconnect(nowait=True)  # the reader may never have begun


class PipelinedConnection:
    """A connection that is opened by the first call, and again after a failure. Callers set the timeouts."""

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._connecting = asyncio.Lock()
        self._current: _Connection | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def call(self, words: Sequence[Any]) -> Any:
        """Return the reply to a command; raises the exceptions of redis-py."""
        return (await self.calls([words]))[0]

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the replies to several commands, which Redis runs in this order."""
        connection = self._current
        while connection is None or not connection.is_usable:
            connection = await self._connect()
        return await connection.calls(commands)

    async def _connect(self) -> _Connection:
        async with self._connecting:
            if self._current is None or not self._current.is_usable:
                self.drop()
                connection = self._make()
                try:
                    await connection.connect()  # type: ignore[no-untyped-call]
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self._current = _Connection(connection)
            return self._current

    def drop(self) -> None:
        """Close a connection that does not answer. The next call opens another one."""
        connection, self._current = self._current, None
        if connection is not None:
            ending = connection.drop()
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Close the connection, and wait until it is closed."""
        self.drop()
        if self._ending:
            await asyncio.wait(self._ending)


def _settle(reply: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    settle(reply, value, error)
    if error is not None and not reply.cancelled():
        reply.exception()  # mark it as retrieved: the caller may be cancelled before it awaits the reply
