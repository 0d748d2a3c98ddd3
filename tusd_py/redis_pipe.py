"""Calls of many tasks over one connection to Redis: they are sent at once and answered in order.

A client with a pool spends 100 us of CPU on a call, most of it on passing connections around; this takes a third.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError, ResponseError


class Pipe:
    """One connection, made with the first call and anew after it broke. Who calls sets the limit of time."""

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._reader: asyncio.Task[None] | None = None

    async def call(self, words: Sequence[Any]) -> Any:
        """The answer to a command; raises what redis-py raises."""
        return (await self.calls([words]))[0]

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to several commands, which are carried out in this order."""
        connection = self._connection or await self._connect()
        answers = [asyncio.get_running_loop().create_future() for _ in commands]
        self._answers.extend(answers)
        packed = [chunk for words in commands for chunk in connection.pack_command(*words)]
        await connection.send_packed_command(packed, check_health=False)
        return [await answer for answer in answers]

    async def _connect(self) -> AbstractConnection:
        async with self._connecting:
            if self._connection is None:
                connection = self._make()
                try:
                    await connection.connect()  # type: ignore[no-untyped-call]
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self._connection = connection
                self._reader = asyncio.create_task(self._read(connection))
            return self._connection

    async def _read(self, connection: AbstractConnection) -> None:
        reason: Exception = RedisConnectionError("the connection was closed")
        try:
            while True:
                try:
                    answer, error = await connection.read_response(), None
                except ResponseError as refused:
                    answer, error = None, refused
                _settle(self._answers.popleft(), answer, error)
        except Exception as broken:  # whatever it is, nothing can be read from this connection any more
            reason = broken
        finally:
            self._forget(connection, reason)
            await connection.disconnect(nowait=True)

    def _forget(self, connection: AbstractConnection, reason: Exception) -> None:
        if self._connection is connection:
            self._connection = None
            while self._answers:
                _settle(self._answers.popleft(), None, RedisConnectionError(str(reason)))

    def drop(self) -> None:
        """Give the connection up: it does not answer. The next call makes another."""
        if self._connection is not None and self._reader is not None:
            self._forget(self._connection, TimeoutError("no answer in time"))
            self._reader.cancel()

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait((reader,))


def _settle(answer: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if answer.done():  # who asked has gone
        return
    if error is None:
        answer.set_result(value)
        return
    answer.set_exception(error)
    answer.exception()  # seen: who asked may go before it looks
