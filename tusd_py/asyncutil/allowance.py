"""A limit for the rate of one client, in one event loop."""

from __future__ import annotations

import asyncio


class Allowance:
    """A token bucket: the number of things that a client may do at once, which grows again with time."""

    __slots__ = ("_left", "_loop", "_most", "_per_second", "_since")

    def __init__(self, most: float, per_second: float) -> None:
        """Allow `most` at once, and so many a second."""
        self._loop = asyncio.get_running_loop()
        self._most = self._left = most
        self._per_second = per_second
        self._since = self._loop.time()

    def take(self) -> bool:
        """Take one; return whether it was there."""
        now = self._loop.time()
        self._left = min(self._most, self._left + (now - self._since) * self._per_second)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
