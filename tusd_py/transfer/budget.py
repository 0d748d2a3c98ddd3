"""The byte budget of all appends of a process, and the pool of buffers that request bodies are received into."""

from __future__ import annotations

from typing import Protocol

from tusd_py.asyncutil.byte_limiter import ByteLimiter
from tusd_py.core.buffers import PooledBuffer

MAX_BATCH_SIZE = 4 << 20
MIN_BATCH_SIZE = 16 << 10


class ByteBudget(ByteLimiter):
    """The limit for bytes held in memory; an append that waits for a reservation stops reading from its socket."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.writers = 0

    def batch_size(self) -> int:
        """Return the size of a batch in bytes: a fair share of the budget, for two batches of each writer."""
        return max(MIN_BATCH_SIZE, min(MAX_BATCH_SIZE, self.total // (2 * max(1, self.writers))))


class LendsBuffers(Protocol):
    """A lender of buffers to receive into."""

    def acquire(self, most: int = MAX_BATCH_SIZE) -> PooledBuffer:
        """Lend a buffer of at most `most` bytes, or of `MIN_BATCH_SIZE` if that is more."""
        ...

    def detach(self, buffer: PooledBuffer) -> None:
        """Count a filled buffer no longer as lent; `ByteBudget` counts its bytes from now on."""
        ...

    def release(self, buffer: PooledBuffer) -> None:
        """Take back a detached buffer that is no longer read."""
        ...


class BufferPool:
    """Buffers to receive into, used again so that the kernel maps their pages only once.

    A connection owns a buffer while it is being filled, however slowly. So that slow clients never make others wait,
    the pool has a limit of its own (half of the budget); beyond it only the smallest buffers are lent.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._limit = budget.total // 2
        self._lent = 0
        self._free: dict[int, list[PooledBuffer]] = {}
        self._free_size = 0

    def acquire(self, most: int = MAX_BATCH_SIZE) -> PooledBuffer:
        """Lend a buffer of a fair size or of the room that is left, at least `MIN_BATCH_SIZE`, and of `most` bytes."""
        size = 1 << (max(MIN_BATCH_SIZE, min(most, self._budget.batch_size())).bit_length() - 1)
        while size > MIN_BATCH_SIZE and self._lent + size > self._limit:
            size //= 2
        self._lent += size
        buffers = self._free.get(size)
        if not buffers:
            return PooledBuffer.of(self, size)
        self._free_size -= size
        return buffers.pop()

    def detach(self, buffer: PooledBuffer) -> None:
        """Detach a filled buffer from the pool; `ByteBudget` counts its bytes from now on."""
        self._lent -= len(buffer)

    def release(self, buffer: PooledBuffer) -> None:
        """Take back a detached buffer that is no longer read."""
        size = len(buffer)
        while self._free_size + size > self._limit:
            if not self._drop_free_buffer(size):
                return
        self._free_size += size
        self._free.setdefault(size, []).append(buffer)

    def _drop_free_buffer(self, kept_size: int) -> bool:
        """Drop a free buffer of a size other than `kept_size`; return False if there is none.

        The size that is fair changes with the number of appends, so that buffers of other sizes stay behind.
        """
        for size, buffers in self._free.items():
            if buffers and size != kept_size:
                buffers.pop()
                self._free_size -= size
                return True
        return False


class SmallBuffers:
    """A view of a pool that lends small buffers, to a receiver that has to wait between them."""

    def __init__(self, pool: LendsBuffers, most: int) -> None:
        """Lend buffers of `pool` that have `most` bytes, or `MIN_BATCH_SIZE` if that is more."""
        self._pool = pool
        self._most = most

    def acquire(self, most: int = MAX_BATCH_SIZE) -> PooledBuffer:
        """See `LendsBuffers.acquire`."""
        return self._pool.acquire(min(most, self._most))

    def detach(self, buffer: PooledBuffer) -> None:
        """See `LendsBuffers.detach`."""
        self._pool.detach(buffer)

    def release(self, buffer: PooledBuffer) -> None:
        """See `LendsBuffers.release`."""
        self._pool.release(buffer)
