"""The limit for the bytes of parts that all uploads of a process hold in memory."""

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
    """An upload that is filling a part."""

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
        """Start to store the buffered bytes as a tail; the future is done when they are released, or that failed.

        Invariant: `spillable` is 0 from this call until the future is done.
        """


@dataclass(frozen=True, slots=True)
class CachedPart:
    """The bytes of a part that an append left in memory for the next one of the upload."""

    layout: str  # layout that the record must have for the next append, with the offset after these bytes
    start: int
    pieces: list[Buffer]
    size: int


CHUNK_SIZE = 256 << 10  # bytes of one buffer of the pool
ADMISSION_POLL = 0.05  # seconds
MAX_SPILLS = 4  # spills of silent uploads at a time
STALL_TIMEOUT = 1.0  # seconds without an admission and without a releasing request, after which one is admitted anyway


class ChunkPool:
    """Buffers of `CHUNK_SIZE` bytes that are used again, since freeing them in many threads would fragment the heap."""

    def __init__(self, total: int) -> None:
        self._limit = total // CHUNK_SIZE
        self._free: list[PooledBuffer] = []

    def acquire(self) -> PooledBuffer:
        """Lend a buffer. Runs in any thread."""
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
    """The limit for the memory of all part buffers. A reservation waits only for S3, never for another client.

    A part is begun when there is room for all of it, beside the bytes that other uploads are expected to add: many fast
    uploads fill parts in turn, instead of all of them a bit of one.

    Bytes are released when S3 has stored them. While a reservation waits, uploads with silent clients have to store
    their buffered bytes as tails; if no request will release bytes and no client is silent, the upload that holds most
    bytes has to.

    Invariant: `used` never exceeds `total`.
    """

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.chunks = ChunkPool(total)
        self._releasing_requests = 0  # requests that release bytes when they have ended
        self._spilling = 0  # those of them that store a spill
        self._uploads: dict[int, BufferingUpload] = {}
        self._cached: OrderedDict[str, CachedPart] = OrderedDict()  # the oldest first
        self._cached_size = 0
        self._admission_queue: deque[tuple[BufferingUpload, int, asyncio.Future[None], float]] = deque()
        self._poll_scheduled = False
        self._admitted_at = 0.0

    async def reserve(self, size: int) -> None:
        """Wait until `size` bytes are free, and reserve them.

        Raises `StorageUnavailable` for more than the limit, as for a part of a fixed size that was begun with more.
        """
        if size > self.total:
            raise StorageUnavailable(f"a part of {size} bytes does not fit into --s3-buffer-size, {self.total} bytes")
        await super().reserve(size)

    def register(self, upload: BufferingUpload) -> None:
        """Count the expected and spillable bytes of an upload from now on."""
        self._uploads[id(upload)] = upload

    def unregister(self, upload: BufferingUpload) -> None:
        """Count an upload no longer."""
        self._uploads.pop(id(upload), None)

    @contextlib.contextmanager
    def releasing(self) -> Iterator[None]:
        """Mark the context as a request that will release bytes: meanwhile no busy upload has to spill."""
        self._releasing_requests += 1
        try:
            yield
        finally:
            self._releasing_requests -= 1

    async def admit(self, upload: BufferingUpload, size: int) -> None:
        """Wait until there is room for a part of `size` bytes of `upload`."""
        if not self._admission_queue and self._has_room(upload, size):
            return
        admitted = asyncio.get_running_loop().create_future()
        self._admission_queue.append((upload, size, admitted, time.monotonic()))
        self._schedule_poll()
        await admitted

    def rebalance(self) -> None:
        """Grant the reservations that fit; if none does and no request will release bytes, make an upload spill."""
        super().rebalance()
        if self._waiters:
            self._spill_silent()
        if self._waiters and not self._releasing_requests:
            fullest = max(self._uploads.values(), key=lambda upload: upload.spillable, default=None)
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

    def _poll_admissions(self) -> None:
        """Check the queue again, since the expected bytes of other uploads change with time."""
        self._poll_scheduled = False
        self._admit()
        self._schedule_poll()

    def _schedule_poll(self) -> None:
        if self._admission_queue and not self._poll_scheduled:
            self._poll_scheduled = True
            asyncio.get_running_loop().call_later(ADMISSION_POLL, self._poll_admissions)

    def _admit(self) -> None:
        while self._admission_queue:
            upload, size, admitted, since = self._admission_queue[0]
            stalled = not self._releasing_requests and time.monotonic() - max(since, self._admitted_at) > STALL_TIMEOUT
            if not admitted.done() and not stalled and not self._has_room(upload, size):
                self._spill_silent()
                return
            self._admission_queue.popleft()
            if not admitted.done():
                admitted.set_result(None)
                self._admitted_at = time.monotonic()
                return  # the expected bytes of this upload count only after its next step

    def _has_room(self, upload: BufferingUpload, size: int) -> bool:
        others = sum(other.expected for other in self._uploads.values() if other is not upload)
        while self._cached and self.used + others + size > self.total:
            self._drop_oldest()
        return self.used + others + size <= self.total

    # Spilling: uploads that store their buffered bytes as tails.

    def _spill_silent(self) -> None:
        """Make silent uploads spill, the largest first.

        Then uploads that wait to be admitted, the last ones first, if the little that each of them may hold has become
        much in sum.
        """
        free = MAX_SPILLS - self._spilling
        if free <= 0:
            return
        silent = [upload for upload in self._uploads.values() if upload.silent and upload.spillable]
        for upload in nlargest(free, silent, key=lambda upload: upload.spillable):
            self._spill(upload)
            free -= 1
        waiting = [
            upload for upload, _, admitted, _ in self._admission_queue if upload.spillable and not admitted.done()
        ]
        if free and sum(upload.spillable for upload in waiting) > self.total // 4:
            for upload in waiting[-free:]:
                self._spill(upload)

    def _spill(self, upload: BufferingUpload) -> None:
        self._releasing_requests += 1
        self._spilling += 1
        upload.spill().add_done_callback(self._spill_ended)

    def _spill_ended(self, _: asyncio.Future[None]) -> None:
        self._releasing_requests -= 1
        self._spilling -= 1
        self.rebalance()

    # Bytes cached for the next request of an upload; the first to be dropped when memory is short.

    def cache(self, upload_id: str, part: CachedPart) -> None:
        """Take over reserved bytes for the next append of an upload."""
        self.drop_cached(upload_id)
        self._cached[upload_id] = part
        self._cached_size += part.size
        while self._cached_size > self.total // 2:
            self._drop_oldest()
        self.rebalance()

    def take_cached(self, upload_id: str, layout: str, offset: int) -> CachedPart | None:
        """Return the cached bytes of an upload if they belong to this layout and offset; they stay reserved."""
        part = self._cached.pop(upload_id, None)
        if part is None:
            return None
        self._cached_size -= part.size
        if part.layout == layout and part.start + part.size == offset:
            return part
        self.release(part.size)
        return None

    def drop_cached(self, upload_id: str) -> None:
        """Release the cached bytes of an upload."""
        part = self._cached.pop(upload_id, None)
        if part is not None:
            self._cached_size -= part.size
            self.used -= part.size

    def _drop_oldest(self) -> None:
        self.drop_cached(next(iter(self._cached)))
