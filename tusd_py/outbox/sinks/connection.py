"""One connection of a sink to its broker, shared by all attempts, and opened again after a failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

CLOSE_TIMEOUT = 5.0  # seconds


class SharedConnection(Generic[T]):
    """A connection that the first task opens; tasks that need it meanwhile wait for it, and share its failure."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[T]],
        is_usable: Callable[[T], bool],
        close: Callable[[T], Awaitable[object]],
    ) -> None:
        self._connect = connect
        self._is_usable = is_usable
        self._close = close
        self._current: T | None = None
        self._connecting: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the connection, a new one if there is none that can be used; raises the reason if that fails."""
        if self._current is not None and self._is_usable(self._current):
            return self._current
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._reconnect())
        return await asyncio.shield(self._connecting)

    async def _reconnect(self) -> T:
        try:
            await self._close_current()
            self._current = await self._connect()
            return self._current
        finally:
            self._connecting = None

    async def close(self) -> None:
        """Close the connection; the next use opens another one."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,), timeout=CLOSE_TIMEOUT)
        await self._close_current()

    async def _close_current(self) -> None:
        connection, self._current = self._current, None
        if connection is not None:
            with contextlib.suppress(Exception):  # of any client library; a broken connection is closed already
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._close(connection)
