"""One deadline of a connection, which moves with every request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls a function when its time has come, unless it was moved or cleared before.

    The timer of the loop is not moved with it, which would cost every request two calls of the loop: it looks, when it
    fires, whether the deadline is still ahead. Only one that is nearer than the timer sets it anew.
    """

    __slots__ = ("_act", "_arguments", "_loop", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._when: float | None = None  # by the clock of the loop
        self._act: Callable[..., None] | None = None
        self._arguments: tuple[str, ...] = ()

    def set(self, seconds: float, act: Callable[..., None], *arguments: str) -> None:
        """Call `act` in so many seconds, and nothing that was set before; zero seconds mean never."""
        if not seconds:
            self.clear()
            return
        when = self._loop.time() + seconds
        self._when, self._act, self._arguments = when, act, arguments
        if self._timer is not None and self._timer.when() > when:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._look)

    def clear(self) -> None:
        """Call nothing; the timer goes on, since there will be another deadline soon."""
        self._when = self._act = None

    def close(self) -> None:
        """Call nothing any more, and let go of the connection."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        when, act = self._when, self._act
        if when is None or act is None:
            return
        if self._loop.time() < when:
            self._timer = self._loop.call_at(when, self._look)
            return
        self.clear()
        act(*self._arguments)
