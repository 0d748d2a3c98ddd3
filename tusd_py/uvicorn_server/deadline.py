"""The deadline of a connection, which moves with every request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """A call in the future that can be moved or cleared.

    The timer of the event loop is not moved with the deadline, which would cost two calls for every request: when it
    fires, it checks whether the deadline is still ahead. Only a deadline before the timer sets the timer again.
    """

    __slots__ = ("_arguments", "_callback", "_loop", "_timer", "_timer_at", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # its time; uvloop returns a handle that does not know it for a time that is now
        self._when: float | None = None  # by the clock of the loop
        self._callback: Callable[..., None] | None = None
        self._arguments: tuple[str, ...] = ()

    def set(self, seconds: float, callback: Callable[..., None], *arguments: str) -> None:
        """Call `callback` in `seconds`, in place of an earlier one; zero seconds mean never."""
        if not seconds:
            self.clear()
            return
        when = self._loop.time() + seconds
        self._when, self._callback, self._arguments = when, callback, arguments
        if self._timer is not None and self._timer_at > when:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer_at, self._timer = when, self._loop.call_at(when, self._check)

    def clear(self) -> None:
        """Clear the deadline; the timer continues, since the next deadline comes soon."""
        self._when = self._callback = None

    def close(self) -> None:
        """Clear the deadline and cancel the timer, which holds a reference to the connection."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        when, callback = self._when, self._callback
        if when is None or callback is None:
            return
        if self._loop.time() < when:
            self._timer_at, self._timer = when, self._loop.call_at(when, self._check)
            return
        self.clear()
        callback(*self._arguments)
