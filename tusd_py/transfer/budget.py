"""One bound for the bytes that all uploads together hold in memory, and the blocks they are received into."""

from __future__ import annotations

from tusd_py.asyncutil.byte_limiter import ByteLimiter
from tusd_py.core.buffers import PooledBuffer

MAX_BATCH_SIZE = 4 << 20
MIN_BATCH_SIZE = 16 << 10


class ByteBudget(ByteLimiter):
    """The limit for buffered bytes; an append that waits for a reservation stops reading from its socket."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.writers = 0

    def batch_size(self) -> int:
        """Bytes worth gathering before they are written: a fair share, two batches a writer."""
        return max(MIN_BATCH_SIZE, min(MAX_BATCH_SIZE, self.total // (2 * max(1, self.writers))))


class BufferPool:
    """Blocks of memory to receive into, used again so that their pages are touched for the first time only once.

    A block belongs to a connection while it is being filled, however slowly that goes. So that slow clients never make
    others wait, blocks have a bound of their own (half of the budget), beyond which only the smallest are given out.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._limit = budget.total // 2
        self._lent = 0
        self._free: dict[int, list[PooledBuffer]] = {}
        self._free_size = 0

    def acquire(self) -> PooledBuffer:
        """Lend a buffer of a fair size, or of what is left, but never less than the smallest."""
        size = 1 << (self._budget.batch_size().bit_length() - 1)
        while size > MIN_BATCH_SIZE and self._lent + size > self._limit:
            size //= 2
        self._lent += size
        blocks = self._free.get(size)
        if not blocks:
            return PooledBuffer.of(self, size)
        self._free_size -= size
        return blocks.pop()

    def detach(self, block: PooledBuffer) -> None:
        """Detach a filled block from the pool; its bytes count against `ByteBudget` from now on."""
        self._lent -= len(block)

    def release(self, block: PooledBuffer) -> None:
        """Take a detached buffer back whose bytes nobody reads any more."""
        if self._free_size + len(block) <= self._limit:
            self._free_size += len(block)
            self._free.setdefault(len(block), []).append(block)
