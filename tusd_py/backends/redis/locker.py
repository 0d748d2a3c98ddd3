"""Locks between hosts: leases in Redis, with fencing tokens.

The lock of an upload names its holder and expires unless it is renewed, at a third of its lifetime (`LeaseKeeper`). The
record of the upload holds the latest token that was given out, and the token that was released last: if they differ,
the last holder has not released the lock and may still be alive. Such holders count as `unreleased_predecessors` of
every later holder until one of them has moved the offset: from then on, earlier holders cannot reach the new bytes.

Requests to release or to commit go to the holder as messages (`LockChannel`); the holder also sees them when it renews
the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator

from tusd_py.backends.redis.connection import RedisConnection, seconds_of
from tusd_py.backends.redis.lease_keeper import LeaseKeeper, RedisLock
from tusd_py.backends.redis.lock_channel import LockChannel
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import ACQUIRE, ACQUIRE_WITHOUT_ROOM, REQUEST_COMMIT, Script
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import LockHolder
from tusd_py.core.errors import LockTimeout, StateUnavailable
from tusd_py.core.upload_codec import decode_upload

POLL_INTERVAL = 0.5  # seconds between two attempts to acquire a lock, if no message comes
REQUEST_TTL = 2000  # milliseconds


async def servers_with(connection: RedisConnection, prefix: str) -> int:
    """Return the number of processes with an open `RedisLocker` of this prefix: each listens for messages."""
    return await connection.listeners(Keys(prefix).channel)


class RedisLocker:
    """The locker of one process. All processes with the same Redis and prefix exclude each other."""

    def __init__(
        self,
        connection: RedisConnection,
        prefix: str = "tus:",
        ttl: float = 6.0,
        instrumentation: Instrumentation = NO_INSTRUMENTATION,
    ) -> None:
        """Make the locker.

        Args:
            connection: opened and closed with the locker; may be shared.
            prefix: beginning of all keys.
            ttl: lifetime of a lease that is not renewed, in seconds.
            instrumentation: is told of leases that are lost.
        """
        self.connection = connection
        self._keys = Keys(prefix)
        self._ttl = ttl
        self.leases = LeaseKeeper(connection, self._keys, ttl, instrumentation)
        self.messages = LockChannel(connection, self._keys.channel, self.leases)

    async def open(self) -> None:
        """Connect, and listen for messages."""
        await self.connection.open()
        await self.messages.open()

    async def close(self) -> None:
        """End the leases that are held, and disconnect."""
        await self.messages.close()
        await self.leases.close()
        await self.connection.close()

    async def acquire(
        self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False
    ) -> RedisLock:
        """Acquire a lock, see `Locker.acquire`."""
        deadline = time.monotonic() + timeout
        script = ACQUIRE_WITHOUT_ROOM if to_remove else ACQUIRE
        lock = RedisLock(self.leases, upload_id, secrets.token_hex(8), holder)
        with self.messages.released(upload_id) as released:
            while True:
                released.clear()
                expires_in = await self._try_or_release(lock, script, request=timeout > 0)
                if lock.token:
                    return lock
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise LockTimeout
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(POLL_INTERVAL, remaining, expires_in)):
                        await released.wait()

    async def _try_or_release(self, lock: RedisLock, script: Script, *, request: bool) -> float:
        """Do what `_try_acquire` does; if it is cancelled or its reply is lost, release the lease in the background."""
        try:
            return await self._try_acquire(lock, script, request=request)
        except (asyncio.CancelledError, StateUnavailable):
            self.leases.release_soon(lock)
            raise

    async def _try_acquire(self, lock: RedisLock, script: Script, *, request: bool) -> float:
        """Acquire the lock, or return the seconds after which the lease of its holder ends at the latest."""
        sent_at = time.monotonic()
        ttl = round(self._ttl * 1000)
        name = lock.upload_id
        arguments = [lock.lease_id, ttl, name, self._keys.channel, REQUEST_TTL if request else 0]
        keys = [self._keys.lock(name), self._keys.record(name), self._keys.release_request(name)]
        asked_at = self.connection.clock.monotonic()
        token, rest, record, now = await self.connection.run(script, keys, arguments)
        if not token:
            return max(0.001, int(rest) / 1000)
        if now:  # times in records are those of the clock of Redis
            self.connection.clock.synchronize(seconds_of(now), asked_at)
        lock.token = int(token)
        lock.unreleased_predecessors = int(rest)
        with contextlib.suppress(ValueError):  # the record is broken, which the state store reports
            lock.upload = decode_upload(dict(zip(record[::2], record[1::2], strict=True)))
        lock.renewed_at = sent_at
        self.leases.add(lock)
        return 0.0

    @contextlib.asynccontextmanager
    async def request_commit(self, upload_id: str) -> AsyncIterator[int]:
        """Ask the holder to commit, see `Locker.request_commit`."""
        keys = [self._keys.lock(upload_id), self._keys.commit_request(upload_id)]
        yield int(await self.connection.run(REQUEST_COMMIT, keys, [upload_id, self._keys.channel, REQUEST_TTL]))

    async def is_held(self, upload_id: str) -> bool:
        """Return whether any process holds the lock."""
        return bool(await self.connection.command("EXISTS", self._keys.lock(upload_id)))
