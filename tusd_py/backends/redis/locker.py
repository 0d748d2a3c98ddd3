"""Locks between hosts: leases in Redis, with fencing tokens.

`{prefix}{<id>}:lock` names the holder and expires unless it is renewed, which happens at a third of its life. The
newest token that was given out, and the one that was released last, are noted in the record of the upload: if they
differ, the holder before has not let go by itself and may still be alive (`Lock.inherited`), and so for every later
holder until one of them has moved the offset: from then on the bytes of the earlier one are out of the way.

Wishes ("release", "commit") go to the holder as messages; it also sees them when it renews the lease, in case a message
got lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from tusd_py.backends.redis.connection import RedisConnection, Script, seconds_of
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import LockHolder
from tusd_py.core.errors import LockTimeout, StateUnavailable
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import decode

logger = logging.getLogger("tusd_py.locks")

POLL_INTERVAL = 0.5  # seconds between two tries while a lock is waited for, if no message comes
REQUEST_TTL = 2000  # milliseconds
RENEWALS = 3  # in the life of a lease
CHECKS_PER_LEASE = 12  # looks at the clock in the life of a lease
MARGIN = 0.1  # of its life that a lease counts as ended early
RELEASE_TIMEOUT = 1.0  # seconds; a lease that cannot be released ends by itself
RECONNECT_PAUSE = 0.2  # seconds
LISTEN_TIMEOUT = 5.0  # seconds
CANCEL_INTERVAL = 0.2  # seconds

# `lock` holds "nonce:token:inherited"; the nonce makes a repeated attempt find its own lock. Without a record the
# clock of Redis alone makes tokens grow: nothing is fenced by them.
ACQUIRE = Script(
    "acquire",
    """
local nonce, ttl, id, channel, wish_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('GET', KEYS[1])
if held then
  local owner, token, inherited = string.match(held, '^(%x+):(%d+):(%d+)$')
  if owner == nonce then
    redis.call('PEXPIRE', KEYS[1], ttl)
    return {token, inherited, {}, {}}
  end
  if wish_ttl ~= '0' then
    redis.call('SET', KEYS[3], owner, 'PX', wish_ttl)
    redis.call('PUBLISH', channel, 'release ' .. id .. ' ' .. owner)
  end
  local left = redis.call('PTTL', KEYS[1])
  if left > 10 * ttl then  -- the clock was set back: a living holder renews the lock in a moment
    redis.call('PEXPIRE', KEYS[1], ttl)
    left = tonumber(ttl)
  end
  return {'', left, {}, {}}
end
local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local inherited = 0
local record = redis.call('HMGET', KEYS[2], 'id', 'token', 'fence', 'released', 'suspect')
if record[1] then
  local fence = record[3] or record[2]
  token = math.max(token, (tonumber(record[2]) or 0) + 1, (tonumber(fence) or 0) + 1)
  inherited = tonumber(record[5] or 0) or 0
  local forgotten = not record[3] and record[2] ~= '0'  -- Redis lost what it knew of a lock: its token is in the record
  local older = record[3] and (tonumber(record[3]) or 0) < (tonumber(record[2]) or 0)
  if forgotten or older or (record[3] and record[3] ~= record[4]) then
    inherited = inherited + 1
    redis.call('HSET', KEYS[2], 'suspect', inherited)
  end
end
token = string.format('%.0f', token)
if record[1] then redis.call('HSET', KEYS[2], 'fence', token) end
redis.call('SET', KEYS[1], nonce .. ':' .. token .. ':' .. inherited, 'PX', ttl)
return {token, tostring(inherited), redis.call('HGETALL', KEYS[2]), time}
""",
)
# For removing or looking at an upload: Redis gives this lock even when it has reached `maxmemory`.
ACQUIRE_WITHOUT_ROOM = Script("acquire", ACQUIRE.text, allow_oom=True)
# A lease that ran out is taken up again if nobody came in between, which the record tells.
RENEW = Script(
    "renew",
    """
local nonce, token, ttl = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^%x+') == nonce then
  redis.call('PEXPIRE', KEYS[1], ttl)
elseif held then
  return {0, 0, 0}
else
  local record = redis.call('HMGET', KEYS[2], 'fence', 'released')
  if record[1] ~= token or record[2] == token then return {0, 0, 0} end
  redis.call('SET', KEYS[1], nonce .. ':' .. token .. ':0', 'PX', ttl)
end
local release, commit = redis.call('GET', KEYS[3]), redis.call('GET', KEYS[4])
return {1, release == nonce and 1 or 0, commit == nonce and 1 or 0}
""",
    allow_oom=True,
)
RELEASE = Script(
    "release",
    """
local nonce, token, id, channel, clean = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('GET', KEYS[1])
local owner, given = string.match(held or '', '^(%x+):(%d+)')
if owner == nonce then
  token = given  -- the holder does not know it if the answer was lost
  redis.call('DEL', KEYS[1])
end
local record = redis.call('HMGET', KEYS[2], 'fence', 'token')
if clean == '1' and (record[1] or record[2]) == token then  -- made under the lock, a record has no fence yet
  redis.call('HSET', KEYS[2], 'fence', token, 'released', token)
end
redis.call('PUBLISH', channel, 'released ' .. id .. ' -')
return 1
""",
    allow_oom=True,
)
ASK_FOR_COMMIT = Script(
    "commit",
    """
local held = redis.call('GET', KEYS[1])
if not held then return 0 end
local owner = string.match(held, '^%x+')
redis.call('SET', KEYS[2], owner, 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[2], 'commit ' .. ARGV[1] .. ' ' .. owner)
return 1
""",
    allow_oom=True,
)


async def servers_with(connection: RedisConnection, prefix: str) -> int:
    """The number of processes that have opened a `RedisLocker` with this prefix: each listens for messages."""
    return await connection.listeners(channel_of(prefix))


def channel_of(prefix: str) -> str:
    return f"{prefix}wishes"


class RedisLock:
    """One lease that is held."""

    def __init__(self, locker: RedisLocker, upload_id: str, nonce: str, holder: LockHolder) -> None:
        self._locker = locker
        self.upload_id = upload_id
        self.nonce = nonce
        self.holder = holder
        self.token = 0
        self.unreleased_predecessors = 0
        self.record: Upload | None = None
        self.renewed_at = 0.0  # on the monotonic clock, before the request was sent
        self.renewing = False
        self.lost = False
        self.release_was_requested = False

    def request_release(self) -> None:
        if not self.release_was_requested:
            self.release_was_requested = True
            self.holder.release_requested()

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            logger.warning("the lease of upload %s was lost", self.upload_id)
            self.holder.lock_lost()

    async def raise_token(self, token: int) -> None:
        """Do nothing: the script that takes a lock looks at the record."""

    async def release(self) -> None:
        await self._locker._release(self)


class RedisLocker:
    """The locker of one process. All processes with the same Redis and prefix exclude each other."""

    def __init__(
        self,
        connection: RedisConnection,
        prefix: str = "tus:",
        ttl: float = 6.0,
        instrumentation: Instrumentation = NO_INSTRUMENTATION,
    ) -> None:
        """A lease lives for `ttl` seconds without being renewed."""
        self._redis = connection
        self._prefix = prefix
        self._channel = channel_of(prefix)
        self._ttl = ttl
        self._instrumentation = instrumentation
        self._held: dict[str, RedisLock] = {}  # by nonce
        self._waiters: dict[str, set[asyncio.Event]] = {}  # by upload
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._redis.open()
        subscribed = asyncio.Event()
        self._listener = asyncio.create_task(self._listen(subscribed))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_TIMEOUT):
                await subscribed.wait()

    async def close(self) -> None:
        for task in (self._listener, self._watch):
            while task is not None and not task.done():  # before Python 3.12, wait_for can lose a cancellation
                task.cancel()
                await asyncio.wait((task,), timeout=CANCEL_INTERVAL)
        self._listener = self._watch = None
        # A process that still holds a lock has not said that it is done: the next holder is not told otherwise.
        await asyncio.gather(*(self._let_go(lock, clean=False) for lock in list(self._held.values())))
        self._held.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._redis.close()

    def _keys(self, upload_id: str, *names: str) -> list[str]:
        return [f"{self._prefix}{{{upload_id}}}:{name}" for name in names]

    async def acquire(
        self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False
    ) -> RedisLock:
        deadline = time.monotonic() + timeout
        script = ACQUIRE_WITHOUT_ROOM if to_remove else ACQUIRE
        lock = RedisLock(self, upload_id, secrets.token_hex(8), holder)
        released = asyncio.Event()
        self._waiters.setdefault(upload_id, set()).add(released)
        try:
            while True:
                released.clear()
                expires_in = await self._try_safely(lock, script, request=timeout > 0)
                if lock.token:
                    return lock
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise LockTimeout
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(POLL_INTERVAL, remaining, expires_in)):
                        await released.wait()
        finally:
            waiters = self._waiters[upload_id]
            waiters.discard(released)
            if not waiters:
                del self._waiters[upload_id]

    async def _try_safely(self, lock: RedisLock, script: Script, *, request: bool) -> float:
        """Like `_try`; what is obtained although the request was cancelled, or the answer was lost, is given back."""
        try:
            return await self._try(lock, script, request=request)
        except (asyncio.CancelledError, StateUnavailable):
            self._start(self._let_go(lock, clean=True))
            raise

    async def _try(self, lock: RedisLock, script: Script, *, request: bool) -> float:
        """Take the lock, or return after how many seconds it ends at the latest."""
        sent_at = time.monotonic()
        ttl = round(self._ttl * 1000)
        arguments = [lock.nonce, ttl, lock.upload_id, self._channel, REQUEST_TTL if request else 0]
        keys = self._keys(lock.upload_id, "lock", "record", "release")
        asked_at = self._redis.clock.monotonic()
        token, rest, record, now = await self._redis.run(script, keys, arguments)
        if not token:
            return max(0.001, int(rest) / 1000)
        if now:  # the work under this lock is stamped by the clock of Redis
            self._redis.clock.heard(seconds_of(now), asked_at)
        lock.token = int(token)
        lock.unreleased_predecessors = int(rest)
        with contextlib.suppress(ValueError):  # it is broken, as the state store will say
            lock.record = decode(dict(zip(record[::2], record[1::2], strict=True)))
        lock.renewed_at = sent_at
        self._held[lock.nonce] = lock
        if self._watch is None:
            self._watch = asyncio.create_task(self._keep())
        return 0.0

    async def _release(self, lock: RedisLock) -> None:
        if self._held.pop(lock.nonce, None) is not None:
            await self._let_go(lock, clean=True)

    async def _let_go(self, lock: RedisLock, *, clean: bool) -> None:
        arguments = [lock.nonce, lock.token, lock.upload_id, self._channel, int(clean)]
        try:
            await self._redis.run(RELEASE, self._keys(lock.upload_id, "lock", "record"), arguments, RELEASE_TIMEOUT)
        except StateUnavailable:
            logger.warning("the lease of upload %s could not be released; it ends by itself", lock.upload_id)

    @contextlib.asynccontextmanager
    async def request_commit(self, upload_id: str) -> AsyncIterator[int]:
        keys = self._keys(upload_id, "lock", "commit")
        yield int(await self._redis.run(ASK_FOR_COMMIT, keys, [upload_id, self._channel, REQUEST_TTL]))

    async def is_held(self, upload_id: str) -> bool:
        return bool(await self._redis.command("EXISTS", *self._keys(upload_id, "lock")))

    # Leases.

    async def _keep(self) -> None:
        """Renew the leases of this process, and give up those that could not be renewed in time."""
        while self._held:
            now = time.monotonic()
            for lock in list(self._held.values()):
                age = now - lock.renewed_at
                if age >= self._ttl * (1 - MARGIN):
                    self._lose(lock)
                elif age >= self._ttl / RENEWALS and not lock.renewing:
                    lock.renewing = True
                    self._start(self._renew(lock))
            await asyncio.sleep(self._ttl / CHECKS_PER_LEASE)
        self._watch = None

    async def _renew(self, lock: RedisLock) -> None:
        sent_at = time.monotonic()
        keys = self._keys(lock.upload_id, "lock", "record", "release", "commit")
        arguments = [lock.nonce, lock.token, round(self._ttl * 1000)]
        try:
            held, release, commit = await self._redis.run(RENEW, keys, arguments, self._ttl / RENEWALS)
        except StateUnavailable:
            return  # the next tick tries again, or gives up
        finally:
            lock.renewing = False
        if lock.nonce not in self._held:
            return
        if not held:
            self._lose(lock)
            return
        lock.renewed_at = sent_at
        if release:
            lock.request_release()
        elif commit:
            lock.holder.commit_requested()

    def _lose(self, lock: RedisLock) -> None:
        if not lock.lost:
            self._instrumentation.lease_lost()
        lock.lose()

    # Messages.

    async def _listen(self, subscribed: asyncio.Event) -> None:
        """Pass on what is published, on a connection that is made anew whenever it breaks."""
        while True:
            subscriber = self._redis.subscriber()
            try:
                await subscriber.subscribe(self._channel)
                silent = False
                while True:
                    message = await subscriber.get_message(timeout=LISTEN_TIMEOUT)
                    if message is None:
                        if silent:
                            raise TimeoutError("the server has gone without a word")
                        await subscriber.subscribe(self._channel)  # once more: that is answered
                    elif message["type"] == "subscribe":
                        subscribed.set()
                        self._wake_all()  # a message may have been missed
                    else:
                        self._received(str(message["data"]))
                    silent = message is None
            except Exception as error:  # whatever broke it; until it is back, renewals and polling do its work
                logger.debug("the connection for messages broke: %s", error)
            finally:
                with contextlib.suppress(Exception):  # it is broken, or on its way out
                    await subscriber.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(RECONNECT_PAUSE)

    def _received(self, text: str) -> None:
        kind, _, rest = text.partition(" ")
        upload_id, _, nonce = rest.partition(" ")
        lock = self._held.get(nonce)
        if kind == "released":
            for waiter in self._waiters.get(upload_id, ()):
                waiter.set()
        elif lock is not None and kind == "release":
            lock.request_release()
        elif lock is not None and kind == "commit":
            lock.holder.commit_requested()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller that waits for it has it too
