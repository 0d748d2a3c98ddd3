"""The limit for the bytes of parts that all uploads together hold in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Protocol

from tusd_py.asyncutil.byte_limiter import ByteLimiter
from tusd_py.core.buffers import Buffer, PooledBuffer
from tusd_py.core.errors import StorageUnavailable


class BufferingUpload(Protocol):
    """An upload whose part is still filling up."""

    @property
    def expected(self) -> int:
        """Bytes that the upload will soon add to a part that it was admitted to fill."""

    @property
    def spillable(self) -> int:
        """Bytes that the upload could store as a tail and so release now."""

    @property
    def silent(self) -> bool:
        """Whether the client has sent nothing for longer than it usually does."""

    def spill(self) -> asyncio.Future[None]:
        """Begin to store the buffered bytes as a tail; the future ends when they are released, or that has failed.

        Invariant: `spillable` is 0 from this call until the future ends.
        """


@dataclass(frozen=True, slots=True)
class CachedPart:
    """The bytes of a part that an upload left behind, for its next request."""

    storage_state: str  # the state that the record must have then, with the offset after these bytes
    start: int
    pieces: list[Buffer]
    size: int


CHUNK_SIZE = 256 << 10  # bytes of one buffer of the pool
ADMISSION_POLL = 0.05  # seconds
MAX_SPILLS = 4  # of silent uploads at a time
STALLED = 1.0  # seconds without a released byte after which the next upload is admitted anyway


class ChunkPool:
    """Buffers of `CHUNK_SIZE` bytes that are used again: freed and allocated by many threads they would leave gaps."""

    def __init__(self, total: int) -> None:
        self._limit = total // CHUNK_SIZE
        self._free: list[PooledBuffer] = []

    def acquire(self) -> PooledBuffer:
        """Lend a buffer. May be called in any thread."""
        try:
            return self._free.pop()
        except IndexError:
            return PooledBuffer.of(self, CHUNK_SIZE)

    def release(self, buffer: PooledBuffer) -> None:
        """Take a buffer back."""
        if len(self._free) < self._limit:
            self._free.append(buffer)

    def release_all(self, pieces: Sequence[Buffer]) -> None:
        """Take back the buffers among `pieces` that this pool has lent; nobody may read any of them later."""
        for piece in pieces:
            if isinstance(piece, PooledBuffer) and piece.pool is self:
                self.release(piece)


class MemoryLimiter(ByteLimiter):
    """Limits the memory of all part buffers. A reservation waits only for S3, never for another client.

    A part is begun when there is room for all of it, beside what the others are about to add at their pace: many fast
    uploads fill parts in turn, instead of each a bit of one.

    Bytes on their way to S3 are released when they have arrived there. While a reservation waits, uploads whose clients
    are silent have to store their buffered bytes as tails; if no request will release bytes and no client is silent,
    the upload that holds most has to.

    Invariant: `used` never exceeds `total`.
    """

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.chunks = ChunkPool(total)
        self._releasing = 0  # requests that release bytes when they have ended
        self._spilling = 0  # of them, those that store what an upload was told to spill
        self._filling: dict[int, BufferingUpload] = {}
        self._cached: OrderedDict[str, CachedPart] = OrderedDict()  # the oldest first
        self._cached_size = 0
        self._queue: deque[tuple[BufferingUpload, int, asyncio.Future[None], float]] = deque()  # to be admitted
        self._ticking = False
        self._admitted_at = 0.0

    async def reserve(self, size: int) -> None:
        """Wait until `size` bytes are free, and reserve them.

        Raises `StorageUnavailable` for more than the limit, as for a part of a fixed size that was begun with more.
        """
        if size > self.total:
            raise StorageUnavailable(f"a part of {size} bytes does not fit into --s3-buffer-size, {self.total} bytes")
        await super().reserve(size)

    def register(self, filling: BufferingUpload) -> None:
        """Take an upload into account from now on."""
        self._filling[id(filling)] = filling

    def unregister(self, filling: BufferingUpload) -> None:
        """Leave an upload out of account from now on."""
        self._filling.pop(id(filling), None)

    @contextlib.contextmanager
    def releasing(self) -> Iterator[None]:
        """The time of a request that will release bytes: meanwhile no busy upload has to spill."""
        self._releasing += 1
        try:
            yield
        finally:
            self._releasing -= 1

    async def admit(self, filling: BufferingUpload, size: int) -> None:
        """Wait until there is room for a part of `size` bytes."""
        if not self._queue and self._has_room(filling, size):
            return
        admitted = asyncio.get_running_loop().create_future()
        self._queue.append((filling, size, admitted, time.monotonic()))
        self._poll()
        await admitted

    def rebalance(self) -> None:
        """Grant what can be granted; if no request will release bytes, make room."""
        super().rebalance()
        if self._waiters:
            self._spill_silent()
        if self._waiters and not self._releasing:
            fullest = max(self._filling.values(), key=lambda filling: filling.spillable, default=None)
            if fullest is not None and fullest.spillable:
                self._spill(fullest)
        self._admit()

    def _has_waiter(self) -> None:
        self.rebalance()

    def _fits(self, size: int) -> bool:
        while self.used + size > self.total and self._cached:
            self._drop_oldest()
        return self.used + size <= self.total

    # Admission: the turn of uploads to fill parts.

    def _tick(self) -> None:
        """Look again at the queue: the paces of clients change with time."""
        self._ticking = False
        self._admit()
        self._poll()

    def _poll(self) -> None:
        if self._queue and not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(ADMISSION_POLL, self._tick)

    def _admit(self) -> None:
        while self._queue:
            filling, size, admitted, since = self._queue[0]
            stalled = not self._releasing and time.monotonic() - max(since, self._admitted_at) > STALLED
            if not admitted.done() and not stalled and not self._has_room(filling, size):
                self._spill_silent()
                return
            self._queue.popleft()
            if not admitted.done():
                admitted.set_result(None)
                self._admitted_at = time.monotonic()
                return  # its expected bytes count from its next step on

    def _has_room(self, filling: BufferingUpload, size: int) -> bool:
        others = sum(other.expected for other in self._filling.values() if other is not filling)
        while self._cached and self.used + others + size > self.total:
            self._drop_oldest()
        return self.used + others + size <= self.total

    # Spilling: uploads that store their buffered bytes as tails.

    def _spill_silent(self) -> None:
        """Have silent uploads spill, the largest first.

        Then uploads that wait to be admitted themselves, the last ones first, if the little that each of them may hold
        has become much in sum.
        """
        free = MAX_SPILLS - self._spilling
        if free <= 0:
            return
        silent = [filling for filling in self._filling.values() if filling.silent and filling.spillable]
        for filling in nlargest(free, silent, key=lambda filling: filling.spillable):
            self._spill(filling)
            free -= 1
        waiting = [filling for filling, _, admitted, _ in self._queue if filling.spillable and not admitted.done()]
        if free and sum(filling.spillable for filling in waiting) > self.total // 4:
            for filling in waiting[-free:]:
                self._spill(filling)

    def _spill(self, filling: BufferingUpload) -> None:
        self._releasing += 1
        self._spilling += 1
        filling.spill().add_done_callback(self._spilled)

    def _spilled(self, _: asyncio.Future[None]) -> None:
        self._releasing -= 1
        self._spilling -= 1
        self.rebalance()

    # Bytes cached for the next request of an upload; the first to be dropped when memory is short.

    def cache(self, upload_id: str, part: CachedPart) -> None:
        """Take over bytes that are reserved already."""
        self.drop_cached(upload_id)
        self._cached[upload_id] = part
        self._cached_size += part.size
        while self._cached_size > self.total // 2:
            self._drop_oldest()
        self.rebalance()

    def take_cached(self, upload_id: str, storage_state: str, offset: int) -> CachedPart | None:
        """Return the cached bytes if they belong to this state and offset; they stay reserved."""
        part = self._cached.pop(upload_id, None)
        if part is None:
            return None
        self._cached_size -= part.size
        if part.storage_state == storage_state and part.start + part.size == offset:
            return part
        self.release(part.size)
        return None

    def drop_cached(self, upload_id: str) -> None:
        """Release what is cached for an upload."""
        part = self._cached.pop(upload_id, None)
        if part is not None:
            self._cached_size -= part.size
            self.used -= part.size

    def _drop_oldest(self) -> None:
        self.drop_cached(next(iter(self._cached)))
