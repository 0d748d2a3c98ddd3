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


class Link:
    """One connection, and the callers that wait for its answers. Never connected a second time."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._broken = False
        self._reader = asyncio.create_task(self._read())

    @property
    def is_usable(self) -> bool:
        return not self._broken and self._connection.is_connected

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        packed = [chunk for words in commands for chunk in self._connection.pack_command(*words)]
        answers = [asyncio.get_running_loop().create_future() for _ in commands]
        self._answers.extend(answers)  # whatever is in this list is sent
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except RuntimeError as error:  # uvloop's word for a transport that it has closed already
            self._broken = True
            raise RedisConnectionError(str(error)) from error
        return [await answer for answer in answers]

    async def _read(self) -> None:
        reason: Exception = RedisConnectionError("the connection was closed")
        try:
            while True:
                try:
                    answer, error = await self._connection.read_response(), None
                except ResponseError as refused:
                    answer, error = None, refused
                _settle(self._answers.popleft(), answer, error)
        except Exception as broken:  # whatever it is, nothing can be read from this connection any more
            reason = RedisConnectionError(str(broken))
        finally:
            self._give_up(reason)
            await self._connection.disconnect(nowait=True)

    def _give_up(self, reason: Exception) -> None:
        self._broken = True
        while self._answers:
            _settle(self._answers.popleft(), None, reason)

    def drop(self) -> asyncio.Task[None]:
        """End the connection, whatever it is doing; returns what has to be waited for at the end of the process."""
        self._give_up(RedisConnectionError("no answer in time"))
        self._reader.cancel()
        return asyncio.create_task(self._end())

    async def _end(self) -> None:
        await asyncio.wait((self._reader,))
        await self._connection.disconnect(nowait=True)  # the reader may never have begun


class PipelinedConnection:
    """Connects with the first call, and again after the connection broke. Callers set limits of time."""

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._connecting = asyncio.Lock()
        self._link: Link | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def call(self, words: Sequence[Any]) -> Any:
        """The answer to a command; raises what redis-py raises."""
        return (await self.calls([words]))[0]

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to several commands, which are carried out in this order."""
        link = self._link
        while link is None or not link.is_usable:
            link = await self._connect()
        return await link.calls(commands)

    async def _connect(self) -> Link:
        async with self._connecting:
            if self._link is None or not self._link.is_usable:
                self.drop()
                connection = self._make()
                try:
                    await connection.connect()  # type: ignore[no-untyped-call]
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                self._link = Link(connection)
            return self._link

    def drop(self) -> None:
        """Give the connection up: it does not answer. The next call makes another."""
        link, self._link = self._link, None
        if link is not None:
            ending = link.drop()
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        self.drop()
        if self._ending:
            await asyncio.wait(self._ending)


def _settle(answer: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if answer.done():  # the caller has gone
        return
    if error is None:
        answer.set_result(value)
        return
    answer.set_exception(error)
    answer.exception()  # seen: the caller may go before it looks
