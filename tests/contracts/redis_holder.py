"""Actions in a process that a test freezes: `URL PREFIX UPLOAD` takes the lock of an upload in Redis.

The process prints its token, then each message of the locker, and when the lock is lost, the outcome of a change of the
record.
"""

from __future__ import annotations

import asyncio
import sys

from tests.contracts.parts import TIMEOUT
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.backends.redis.state import RedisState
from tusd_py.core.errors import UploadError

LEASE = 2.0  # seconds


class Talkative:
    """A lock holder that prints the requests it receives, and does not release the lock."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def release_requested(self) -> None:
        print("release", flush=True)

    def commit_requested(self) -> None:
        print("commit", flush=True)

    def lock_lost(self) -> None:
        print("lost", flush=True)
        self.lost.set()


async def hold(url: str, prefix: str, upload_id: str) -> None:
    redis = RedisConnection(url)
    state, locker = RedisState(redis, prefix), RedisLocker(redis, prefix, LEASE)
    await state.open()
    await locker.open()
    holder = Talkative()
    lock = await locker.acquire(upload_id, holder, TIMEOUT)
    record = await state.get(upload_id)
    assert record is not None
    print(lock.token, flush=True)
    await holder.lost.wait()
    try:
        await state.update(record, record.at(record.offset + 1), lock.token)
        print("changed", flush=True)
    except UploadError as error:
        print(type(error).__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
