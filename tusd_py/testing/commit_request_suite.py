"""The part of the locker suite about requests for a commit."""

from __future__ import annotations

from tusd_py.contracts.locks import Locker
from tusd_py.testing.locker_helpers import UPLOAD, Holder, assert_free, assert_taken
from tusd_py.testing.support import TIMEOUT, within


class CommitRequestTests:
    """The duties of a locker that passes requests for a commit to lock holders."""

    async def test_asking_for_a_commit(self, locker: Locker, neighbour: Locker) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        async with neighbour.request_commit(UPLOAD) as held:
            assert held in (1, 2)  # commits to wait for
            await within(holder.commit_asked.wait())
        assert not holder.release_asked.is_set()
        await assert_taken(neighbour)
        await lock.release()

    async def test_two_ask_for_a_commit_at_once(self, locker: Locker, neighbour: Locker) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        async with neighbour.request_commit(UPLOAD) as first:
            async with neighbour.request_commit(UPLOAD) as second:
                assert first
                assert second
            holder.commit_asked.clear()
            async with neighbour.request_commit(UPLOAD):
                await within(holder.commit_asked.wait())
        await lock.release()

    async def test_asking_for_a_commit_of_what_nobody_holds(self, locker: Locker, neighbour: Locker) -> None:
        other_holder = Holder()
        other = await locker.acquire("another", other_holder, 1)
        async with neighbour.request_commit(UPLOAD) as held:
            assert held == 0
            await assert_free(locker)
        lock = await locker.acquire(UPLOAD, Holder(), 1)
        await lock.release()
        async with neighbour.request_commit(UPLOAD) as held:
            assert held == 0
        await other.release()
        assert not other_holder.commit_asked.is_set()

    async def test_asking_for_a_commit_stands_in_nobodys_way(self, locker: Locker, neighbour: Locker) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        async with neighbour.request_commit(UPLOAD):
            await lock.release()
            await assert_free(neighbour)
            next_holder = Holder()
            lock = await locker.acquire(UPLOAD, next_holder, TIMEOUT)
            assert await neighbour.is_held(UPLOAD)
        await lock.release()
        assert not next_holder.release_asked.is_set()
