"""One bound for the bytes of parts that all uploads together hold in memory."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Protocol

from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StorageUnavailable


class BufferingUpload(Protocol):
    """An upload whose part is still filling up."""

    @property
    def expected(self) -> int:
        """Bytes that it will soon add to a part that it was admitted to fill."""

    @property
    def spillable(self) -> int:
        """Bytes that it could store as a tail and so let go of now."""

    @property
    def silent(self) -> bool:
        """Whether its client has sent nothing for longer than it usually does."""

    def spill(self) -> None:
        """Schedule the storing of the buffered bytes as a tail."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The bytes of a part that an upload left behind, for its next request."""

    layout: str  # as it has to be committed then, with the offset after these bytes
    start: int
    pieces: list[Buffer]
    size: int


BLOCK = 256 << 10  # bytes; memory of this size is used again
ADMISSION_POLL = 0.05  # seconds
MAX_SPILLS = 4  # of silent uploads at a time
STALLED = 1.0  # seconds without a byte let go of after which the next one is admitted anyway


class MemoryLimiter:
    """Counts bytes; an upload that wants more than is left waits, only ever for S3, never for another client.

    A part is begun when there is room for all of it, beside what the others are about to add at their pace: many fast
    uploads fill parts in turn, instead of each a bit of one.

    Bytes on their way to S3 are let go of when they have arrived there. While somebody waits, uploads whose clients
    are silent have to store what they hold as tails; if nothing is on its way and nobody is silent, the one that holds
    most.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.moving = 0  # requests that let go of bytes when they have ended
        self.spilling = 0  # of them, those that store what a silent upload holds
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._filling: dict[int, BufferingUpload] = {}
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._kept_size = 0
        self._queue: deque[tuple[BufferingUpload, int, asyncio.Future[None], float]] = deque()  # to be admitted
        self._ticking = False
        self._admitted_at = 0.0
        self._blocks: list[bytearray] = []

    def register(self, filling: BufferingUpload) -> None:
        self._filling[id(filling)] = filling

    def unregister(self, filling: BufferingUpload) -> None:
        self._filling.pop(id(filling), None)

    def try_take(self, size: int) -> bool:
        if self._waiters or not self._fits(size):
            return False
        self.used += size
        return True

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and count them as used.

        Raises `StorageUnavailable` for more than there is in all, as for a part that was begun with a larger memory.
        """
        if self.try_take(size):
            return
        if size > self.total:
            raise StorageUnavailable(f"a part of {size} bytes does not fit into --s3-buffer-size, {self.total} bytes")
        granted = asyncio.get_running_loop().create_future()
        entry = (size, granted)
        self._waiters.append(entry)
        self.rebalance()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(size)
            elif entry in self._waiters:
                self._waiters.remove(entry)
                self.rebalance()
            raise

    def release(self, size: int) -> None:
        self.used -= size
        self.rebalance()

    async def admit(self, filling: BufferingUpload, size: int) -> None:
        """Wait until there is room for a part of this size."""
        if not self._queue and self._has_room(filling, size):
            return
        admitted = asyncio.get_running_loop().create_future()
        self._queue.append((filling, size, admitted, time.monotonic()))
        self._poll()
        await admitted

    def _tick(self) -> None:
        """Paces change with time."""
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
            stalled = not self.moving and time.monotonic() - max(since, self._admitted_at) > STALLED
            if not admitted.done() and not stalled and not self._has_room(filling, size):
                self._spill_silent()
                return
            self._queue.popleft()
            if not admitted.done():
                admitted.set_result(None)
                self._admitted_at = time.monotonic()
                return  # what it expects to add counts from its next step on

    def _has_room(self, filling: BufferingUpload, size: int) -> bool:
        others = sum(other.expected for other in self._filling.values() if other is not filling)
        while self._kept and self.used + others + size > self.total:
            self._forget_oldest()
        return self.used + others + size <= self.total

    def rebalance(self) -> None:
        """Grant what can be granted; if nothing moves, make room."""
        while self._waiters:
            size, granted = self._waiters[0]
            if granted.done():
                self._waiters.popleft()
            elif self._fits(size):
                self._waiters.popleft()
                self.used += size
                granted.set_result(None)
            elif self._kept:
                self._forget_oldest()
            else:
                break
        if self._waiters:
            self._spill_silent()
        if self._waiters and not self.moving:
            fullest = max(self._filling.values(), key=lambda filling: filling.spillable, default=None)
            if fullest is not None and fullest.spillable:
                fullest.spill()
        self._admit()

    def _spill_silent(self) -> None:
        """Have silent uploads store what they hold as tails, the largest first.

        Then uploads that wait to be admitted themselves, the last ones first, if the little that each of them may hold
        has become much in sum.
        """
        free = MAX_SPILLS - self.spilling
        if free <= 0:
            return
        silent = [filling for filling in self._filling.values() if filling.silent and filling.spillable]
        for filling in nlargest(free, silent, key=lambda filling: filling.spillable):
            filling.spill()
            free -= 1
        waiting = [filling for filling, _, admitted, _ in self._queue if filling.spillable and not admitted.done()]
        if free and sum(filling.spillable for filling in waiting) > self.total // 4:
            for filling in waiting[-free:]:
                filling.spill()

    def _fits(self, size: int) -> bool:
        while self.used + size > self.total and self._kept:
            self._forget_oldest()
        return self.used + size <= self.total

    # Blocks of memory that are used again: freed and allocated by many threads they would leave gaps.

    def block(self) -> bytearray:
        """Called in any thread."""
        try:
            return self._blocks.pop()
        except IndexError:
            return bytearray(BLOCK)

    def release_buffers(self, pieces: Sequence[Buffer]) -> None:
        """Nobody looks at these any more."""
        room = max(0, self.total // BLOCK - len(self._blocks))
        blocks = [piece for piece in pieces if isinstance(piece, bytearray) and len(piece) == BLOCK]
        self._blocks += blocks[:room]

    # Bytes kept for the next request of an upload; the first to go.

    def keep(self, upload_id: str, kept: Kept) -> None:
        """Take over bytes that are counted already."""
        self.forget(upload_id)
        self._kept[upload_id] = kept
        self._kept_size += kept.size
        while self._kept_size > self.total // 2:
            self._forget_oldest()
        self.rebalance()

    def recall(self, upload_id: str, layout: str, offset: int) -> Kept | None:
        """Give back what was kept, if it belongs to this layout and offset; it stays counted."""
        kept = self._kept.pop(upload_id, None)
        if kept is None:
            return None
        self._kept_size -= kept.size
        if kept.layout == layout and kept.start + kept.size == offset:
            return kept
        self.release(kept.size)
        return None

    def forget(self, upload_id: str) -> None:
        kept = self._kept.pop(upload_id, None)
        if kept is not None:
            self._kept_size -= kept.size
            self.used -= kept.size

    def _forget_oldest(self) -> None:
        self.forget(next(iter(self._kept)))
