"""Types of bytes in memory, shared by all modules that move bytes."""

from __future__ import annotations

from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


class BufferOwner(Protocol):
    """A pool that lends buffers."""

    def release(self, buffer: PooledBuffer) -> None:
        """Take back a buffer that is no longer read."""


class PooledBuffer(bytearray):
    """A buffer lent by a pool: its holder reads and writes it until `buffer.pool.release(buffer)`.

    Invariant: after the release neither the buffer nor a view of it is used; its bytes belong to the next holder.
    """

    __slots__ = ("pool",)

    pool: BufferOwner

    @classmethod
    def of(cls, pool: BufferOwner, size: int) -> PooledBuffer:
        """Return a new buffer of `size` bytes that is lent by `pool`."""
        buffer = cls(size)
        buffer.pool = pool
        return buffer
