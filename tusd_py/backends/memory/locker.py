"""Locks in the memory of one process, for tests and examples."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tusd_py.contracts.locks import LockHolder
from tusd_py.core.errors import LockTimeout
from tusd_py.core.upload import Upload


@dataclass(eq=False, slots=True)
class Waiter:
    """A request that waits for a lock."""

    locker: MemoryLocker
    holder: LockHolder
    lock: asyncio.Future[MemoryLock]


@dataclass(slots=True)
class MemoryLocks:
    """All locks of one or several lockers: lockers that share this object exclude each other."""

    held: dict[str, MemoryLock] = field(default_factory=dict)
    waiting: dict[str, deque[Waiter]] = field(default_factory=dict)
    last_token: int = 0


class MemoryLock:
    """A lock, perhaps released; see `Lock`."""

    unreleased_predecessors = 0  # a lock that lives in memory cannot be lost
    upload: Upload | None = None

    def __init__(self, locks: MemoryLocks, upload_id: str, holder: LockHolder) -> None:
        self._locks = locks
        self.upload_id = upload_id
        self.holder = holder
        locks.last_token += 1
        self.token = locks.last_token

    async def raise_token(self, token: int) -> None:
        """See `Lock.raise_token`."""
        self._locks.last_token = self.token = max(self._locks.last_token, token) + 1

    async def release(self) -> None:
        """See `Lock.release`."""
        self.hand_over()

    def hand_over(self) -> None:
        """Give the lock to the request that has waited longest, if this is still the lock of the upload."""
        locks, upload_id = self._locks, self.upload_id
        if locks.held.get(upload_id) is not self:
            return
        del locks.held[upload_id]
        waiting = locks.waiting.get(upload_id, deque())
        while waiting:
            waiter = waiting.popleft()
            if not waiter.lock.done():
                waiter.lock.set_result(waiter.locker.take(upload_id, waiter.holder))
                return
        locks.waiting.pop(upload_id, None)


class MemoryLocker:
    """A locker in the memory of this process. Locks are granted in the order of the requests.

    Example::

        tus = TusServer(storage=MemoryStorage(), state=MemoryState(), locker=MemoryLocker())
    """

    def __init__(self, locks: MemoryLocks | None = None) -> None:
        """Use `locks`, if they are given."""
        self._locks = MemoryLocks() if locks is None else locks
        self._taken: list[MemoryLock] = []  # locks of this locker, some of them released

    async def open(self) -> None:
        """See `Locker.open`."""

    async def close(self) -> None:
        """See `Locker.close`."""
        while self._taken:
            self._taken.pop().hand_over()

    async def acquire(
        self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False
    ) -> MemoryLock:
        """See `Locker.acquire`."""
        current = self._locks.held.get(upload_id)
        if current is None:
            return self.take(upload_id, holder)
        if timeout <= 0:
            raise LockTimeout
        waiter = Waiter(self, holder, asyncio.get_running_loop().create_future())
        waiting = self._locks.waiting.setdefault(upload_id, deque())
        waiting.append(waiter)
        current.holder.release_requested()
        try:
            async with asyncio.timeout(timeout):
                return await waiter.lock
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter in waiting:
                waiting.remove(waiter)
            elif not waiter.lock.cancelled():  # the lock came at the same moment: the next request has it
                waiter.lock.result().hand_over()
            if isinstance(error, TimeoutError):
                raise LockTimeout from None
            raise

    def take(self, upload_id: str, holder: LockHolder) -> MemoryLock:
        """Create a lock that no request holds; the requests that wait for it ask the new holder to release it."""
        lock = MemoryLock(self._locks, upload_id, holder)
        self._locks.held[upload_id] = lock
        self._taken = [*(taken for taken in self._taken if self._locks.held.get(taken.upload_id) is taken), lock]
        if any(not waiter.lock.done() for waiter in self._locks.waiting.get(upload_id, ())):
            holder.release_requested()
        return lock

    @contextlib.asynccontextmanager
    async def request_commit(self, upload_id: str) -> AsyncIterator[int]:
        """See `Locker.request_commit`."""
        lock = self._locks.held.get(upload_id)
        if lock is not None:
            lock.holder.commit_requested()
        yield 0 if lock is None else 1

    async def is_held(self, upload_id: str) -> bool:
        """See `Locker.is_held`."""
        return upload_id in self._locks.held
