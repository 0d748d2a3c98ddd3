"""A limit for bytes in memory, granted in the order of the requests."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteLimiter:
    """A limit for bytes in memory; a reservation above the limit waits until others are released.

    Invariants: reservations are granted first come, first served, so that a large one is never starved by small ones;
    `used` exceeds `total` only by one reservation that is larger than the limit and was granted while nothing else was
    reserved. Used by one event loop.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_reserve(self, size: int) -> bool:
        """Reserve `size` bytes if no wait is needed; return whether they are reserved."""
        if self._waiters or not self._fits(size):
            return False
        self.used += size
        return True

    async def reserve(self, size: int) -> None:
        """Wait until `size` bytes are free, and reserve them. A cancelled reservation holds nothing."""
        if self.try_reserve(size):
            return
        granted = asyncio.get_running_loop().create_future()
        entry = (size, granted)
        self._waiters.append(entry)
        self._has_waiter()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(size)
            elif entry in self._waiters:
                self._waiters.remove(entry)
                self.rebalance()  # a smaller reservation behind it may fit
            raise

    def release(self, size: int) -> None:
        """Give back `size` reserved bytes."""
        self.used -= size
        self.rebalance()

    def rebalance(self) -> None:
        """Grant the reservations that fit now."""
        while self._waiters and (self._waiters[0][1].done() or self._fits(self._waiters[0][0])):
            size, granted = self._waiters.popleft()
            if not granted.done():
                self.used += size
                granted.set_result(None)

    def _has_waiter(self) -> None:
        """Make room for a reservation that has begun to wait; a hook for subclasses."""

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.total or self.used == 0
