"""One bound for the bytes that all uploads together hold in memory."""

from __future__ import annotations

import asyncio
from collections import deque

LARGEST_BLOCK = 4 << 20
SMALLEST_BLOCK = 64 << 10


class ByteBudget:
    """Counts buffered bytes; who wants more than is left waits, and so stops reading from its socket."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.writers = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def block_size(self) -> int:
        """Bytes worth gathering before they are written: a fair share, two blocks a writer."""
        return max(SMALLEST_BLOCK, min(LARGEST_BLOCK, self.total // (2 * max(1, self.writers))))

    def try_reserve(self, size: int) -> bool:
        if self._waiters or not self._fits(size):
            return False
        self.used += size
        return True

    async def reserve(self, size: int) -> None:
        if self.try_reserve(size):
            return
        granted = asyncio.get_running_loop().create_future()
        entry = (size, granted)
        self._waiters.append(entry)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(size)
            elif entry in self._waiters:
                self._waiters.remove(entry)
                self._grant()  # a smaller one behind may fit
            raise

    def release(self, size: int) -> None:
        self.used -= size
        self._grant()

    def _grant(self) -> None:
        while self._waiters and (self._waiters[0][1].done() or self._fits(self._waiters[0][0])):
            size, granted = self._waiters.popleft()
            if not granted.done():
                self.used += size
                granted.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.total or self.used == 0  # one message larger than all is let through alone
