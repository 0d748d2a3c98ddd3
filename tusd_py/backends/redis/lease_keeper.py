"""The leases that a process holds: renewed in time, reported as lost if that fails, released."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import RELEASE, RENEW
from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.contracts.locks import LockHolder
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.upload import Upload

logger = logging.getLogger("tusd_py.locks")

RENEWALS_PER_LEASE = 3  # renewals within the lifetime of a lease
CHECKS_PER_LEASE = 12  # checks of the ages of leases within the lifetime of one
EXPIRY_MARGIN = 0.1  # share of its lifetime before whose end a lease counts as lost
RELEASE_TIMEOUT = 1.0  # seconds; a lease that cannot be released ends by itself
CANCEL_INTERVAL = 0.2  # seconds


class RedisLock:
    """A lease in Redis, and the record of its upload as it was when the lease was granted.

    Attributes:
        upload_id: the upload, or the name of a named lock.
        lease_id: identifies the lease in Redis, so that a repeated attempt to acquire it finds its own.
        token: the fencing token; 0 as long as the lease is not granted.
        unreleased_predecessors: number of earlier holders that may still write.
        renewed_at: monotonic time before the request that was granted last was sent.
    """

    def __init__(self, keeper: LeaseKeeper, upload_id: str, lease_id: str, holder: LockHolder) -> None:
        self._keeper = keeper
        self.upload_id = upload_id
        self.lease_id = lease_id
        self.holder = holder
        self.token = 0
        self.unreleased_predecessors = 0
        self.upload: Upload | None = None
        self.renewed_at = 0.0
        self.renewing = False
        self.lost = False
        self.release_was_requested = False

    def request_release(self) -> None:
        """Tell the holder once that another request waits for the lock."""
        if not self.release_was_requested:
            self.release_was_requested = True
            self.holder.release_requested()

    def mark_lost(self) -> None:
        """Tell the holder once that the lease may have been granted to another one."""
        if not self.lost:
            self.lost = True
            logger.warning("the lease of upload %s was lost", self.upload_id)
            self.holder.lock_lost()

    async def raise_token(self, token: int) -> None:
        """Do nothing: the script that grants a lease has looked at the record."""

    async def release(self) -> None:
        """End the lease, unless it is lost or released already."""
        await self._keeper.release(self)


class LeaseKeeper:
    """The leases of a process, renewed at a third of their lifetime of `ttl` seconds."""

    def __init__(self, connection: RedisConnection, keys: Keys, ttl: float, instrumentation: Instrumentation) -> None:
        self._redis = connection
        self._keys = keys
        self._ttl = ttl
        self._instrumentation = instrumentation
        self._leases: dict[str, RedisLock] = {}  # by lease id
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewal_task: asyncio.Task[None] | None = None

    def add(self, lock: RedisLock) -> None:
        """Renew a lease that was granted, until it is released."""
        self._leases[lock.lease_id] = lock
        if self._renewal_task is None:
            self._renewal_task = asyncio.create_task(self._renew_all())

    def find(self, lease_id: str) -> RedisLock | None:
        """Return the lease with this id if this process holds it."""
        return self._leases.get(lease_id)

    async def release(self, lock: RedisLock) -> None:
        """End a lease whose holder writes nothing more."""
        if self._leases.pop(lock.lease_id, None) is not None:
            await self._release_lease(lock, clean=True)

    def release_soon(self, lock: RedisLock) -> None:
        """End a lease in the background that may have been granted after its caller stopped waiting."""
        self._start_task(self._release_lease(lock, clean=True))

    async def close(self) -> None:
        """Stop renewing, and end every lease that is still held.

        The next holder is not told that these leases were released cleanly: their holders may still write.
        """
        await cancel(self._renewal_task)
        self._renewal_task = None
        await asyncio.gather(*(self._release_lease(lock, clean=False) for lock in list(self._leases.values())))
        self._leases.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _release_lease(self, lock: RedisLock, *, clean: bool) -> None:
        name = lock.upload_id
        keys = [self._keys.lock(name), self._keys.record(name), self._keys.release_request(name)]
        arguments = [lock.lease_id, lock.token, name, self._keys.channel, int(clean)]
        try:
            await self._redis.run(RELEASE, keys, arguments, RELEASE_TIMEOUT)
        except StateUnavailable:
            logger.warning("the lease of upload %s could not be released; it ends by itself", lock.upload_id)

    async def _renew_all(self) -> None:
        """Renew the leases in time, and mark those as lost that could not be renewed."""
        while self._leases:
            now = time.monotonic()
            for lock in list(self._leases.values()):
                age = now - lock.renewed_at
                if age >= self._ttl * (1 - EXPIRY_MARGIN):
                    self._report_lost(lock)
                elif age >= self._ttl / RENEWALS_PER_LEASE and not lock.renewing:
                    lock.renewing = True
                    self._start_task(self._renew(lock))
            await asyncio.sleep(self._ttl / CHECKS_PER_LEASE)
        self._renewal_task = None

    async def _renew(self, lock: RedisLock) -> None:
        sent_at = time.monotonic()
        name = lock.upload_id
        keys = [
            self._keys.lock(name),
            self._keys.record(name),
            self._keys.release_request(name),
            self._keys.commit_request(name),
        ]
        arguments = [lock.lease_id, lock.token, round(self._ttl * 1000)]
        try:
            held, release, commit = await self._redis.run(RENEW, keys, arguments, self._ttl / RENEWALS_PER_LEASE)
        except StateUnavailable:
            return  # the next check renews the lease again, or marks it as lost
        finally:
            lock.renewing = False
        if lock.lease_id not in self._leases:
            return
        if not held:
            self._report_lost(lock)
            return
        lock.renewed_at = sent_at
        if release:
            lock.request_release()
        elif commit:
            lock.holder.commit_requested()

    def _report_lost(self, lock: RedisLock) -> None:
        if not lock.lost:
            self._instrumentation.lease_lost()
        lock.mark_lost()

    def _start_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved


async def cancel(task: asyncio.Task[None] | None) -> None:
    """Cancel a task until it has ended: before Python 3.12, `wait_for` can lose a cancellation."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CANCEL_INTERVAL)
