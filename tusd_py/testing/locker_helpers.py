"""Lock holders and checks for the suites of a locker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tusd_py.contracts.locks import Lock, Locker
from tusd_py.core.errors import LockTimeout
from tusd_py.testing.support import TIMEOUT, pytest, within

UPLOAD = "upload"


class Holder:
    """A lock holder that records the requests it receives, and ignores them."""

    def __init__(self) -> None:
        self.release_asked = asyncio.Event()
        self.commit_asked = asyncio.Event()

    def release_requested(self) -> None:
        self.release_asked.set()

    def commit_requested(self) -> None:
        self.commit_asked.set()

    def lock_lost(self) -> None: ...


async def let_go_when_asked(lock: Lock, holder: Holder) -> None:
    await within(holder.release_asked.wait())
    await lock.release()


async def assert_free(locker: Locker, upload_id: str = UPLOAD) -> None:
    assert not await locker.is_held(upload_id)
    lock = await locker.acquire(upload_id, Holder(), 0)
    await lock.release()


async def assert_taken(locker: Locker, upload_id: str = UPLOAD) -> None:
    assert await locker.is_held(upload_id)
    with pytest.raises(LockTimeout):
        await locker.acquire(upload_id, Holder(), 0)


async def take_and_release(locker: Locker) -> int:
    lock = await locker.acquire(UPLOAD, Holder(), TIMEOUT / 3)
    try:
        for _ in range(5):  # others run meanwhile
            await asyncio.sleep(0)
    finally:  # also if it is cancelled
        await lock.release()
    return lock.token


async def all_have_had_it(tasks: Sequence[asyncio.Task[int]]) -> None:
    tokens = await within(asyncio.gather(*tasks))
    assert len(set(tokens)) == len(tasks)


async def waiting_for_it(locker: Locker, holder: Holder, count: int) -> list[asyncio.Task[int]]:
    """Start tasks that wait for the lock of this holder, for the context."""
    tasks = [asyncio.create_task(take_and_release(locker)) for _ in range(count)]
    await within(holder.release_asked.wait())
    return tasks
