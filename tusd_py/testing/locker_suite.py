"""The contract suite of a locker (`tusd_py.contracts.locks`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

from tusd_py.contracts.locks import Locker, named_lock
from tusd_py.core.errors import LockTimeout
from tusd_py.testing.commit_request_suite import CommitRequestTests
from tusd_py.testing.locker_helpers import (
    UPLOAD,
    Holder,
    all_have_had_it,
    assert_free,
    assert_taken,
    let_go_when_asked,
    take_and_release,
    waiting_for_it,
)
from tusd_py.testing.support import TIMEOUT, Instances, line_of, other_process, pytest, pytest_asyncio, within


class LockerSuite(CommitRequestTests):
    """The duties of a locker.

    Subclass it and make the locker::

        class TestFileLocker(LockerSuite):
            def make(self, place: Path) -> Locker:
                return FileLocker(place / "locks")
    """

    pytestmark = pytest.mark.asyncio
    spans_processes: ClassVar[bool] = True  # False for a locker in the memory of one process

    def make(self, place: Path) -> Locker:
        """Return a locker that is not open yet. All lockers of one place exclude each other.

        Args:
            place: a directory of the test; its path will do as a unique name where there are no directories.
        """
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def lockers(self, tmp_path: Path) -> AsyncIterator[Instances[Locker]]:
        """Several lockers of one place."""
        instances = Instances(self.make, tmp_path)
        yield instances
        await instances.close_all()

    @pytest_asyncio.fixture
    async def locker(self, lockers: Instances[Locker]) -> Locker:
        """One open locker."""
        return await lockers.open()

    @pytest_asyncio.fixture(params=["same process", "other process"])
    async def neighbour(self, request: pytest.FixtureRequest, lockers: Instances[Locker], locker: Locker) -> Locker:
        """The locker of the next request: the same one, or one of another process."""
        return locker if request.param == "same process" else await lockers.open()

    # Exclusion.

    @pytest.mark.parametrize("upload_id", [UPLOAD, "a", "A-z_0" * 25, "f" * 128])
    @pytest.mark.parametrize("timeout", [0, TIMEOUT])
    async def test_a_held_lock_excludes_until_it_is_released(
        self, locker: Locker, neighbour: Locker, upload_id: str, timeout: float
    ) -> None:
        await assert_free(locker, upload_id)
        lock = await locker.acquire(upload_id, Holder(), timeout)
        assert lock.upload_id == upload_id
        await assert_taken(neighbour, upload_id)
        await assert_taken(locker, upload_id)
        await lock.release()
        await assert_free(neighbour, upload_id)
        await assert_free(locker, upload_id)

    async def test_uploads_do_not_exclude_each_other(self, locker: Locker, neighbour: Locker) -> None:
        holders = [Holder() for _ in range(200)]
        locks = [
            await (locker if number % 2 else neighbour).acquire(f"upload-{number}", holder, 0)
            for number, holder in enumerate(holders)
        ]
        await locks[0].release()
        await assert_free(locker, "upload-0")
        for number in range(1, 200):
            await assert_taken(locker, f"upload-{number}")
        for lock in locks:
            await lock.release()
        assert not any(holder.release_asked.is_set() for holder in holders)

    async def test_named_locks_exclude_their_own_name_only(self, locker: Locker, neighbour: Locker) -> None:
        lock = await locker.acquire(named_lock(UPLOAD), Holder(), 0, to_remove=True)
        assert lock.upload is None
        await assert_taken(neighbour, named_lock(UPLOAD))
        await assert_free(neighbour, named_lock("other"))
        await assert_free(neighbour, UPLOAD)
        await lock.release()
        await assert_free(neighbour, named_lock(UPLOAD))

    async def test_tokens_only_grow(self, lockers: Instances[Locker], locker: Locker, neighbour: Locker) -> None:
        tokens = []
        for number in range(20):
            lock = await (locker if number % 2 else neighbour).acquire(UPLOAD, Holder(), 1)
            tokens.append(lock.token)
            await lock.release()
        await lockers.close_all()
        lock = await (await lockers.open()).acquire(UPLOAD, Holder(), 1)
        tokens.append(lock.token)
        assert tokens == sorted(set(tokens))
        assert tokens[0] > 0  # what a record starts with

    async def test_releasing_twice_is_fine(self, locker: Locker, neighbour: Locker) -> None:
        lock = await locker.acquire(UPLOAD, Holder(), 1)
        await lock.release()
        await lock.release()
        await assert_free(neighbour)

    async def test_releasing_again_does_not_free_the_next_holder(self, locker: Locker, neighbour: Locker) -> None:
        first = await locker.acquire(UPLOAD, Holder(), 1)
        await first.release()
        second = await neighbour.acquire(UPLOAD, Holder(), 1)
        await first.release()
        await assert_taken(locker)
        await assert_taken(neighbour)
        await second.release()
        await assert_free(locker)

    async def test_locks_end_with_their_locker(self, lockers: Instances[Locker], locker: Locker) -> None:
        other = await lockers.open()
        await locker.acquire(UPLOAD, Holder(), 1)
        await lockers.close(locker)
        lock = await other.acquire(UPLOAD, Holder(), TIMEOUT)
        await lock.release()

    async def test_a_lock_dies_with_its_process(self, locker: Locker, tmp_path: Path) -> None:
        if not self.spans_processes:
            pytest.skip("the locker is known to one process only")
        before = await locker.acquire(UPLOAD, Holder(), 1)
        await before.release()
        with other_process("hold", type(self), str(tmp_path), UPLOAD) as process:
            token = int(await line_of(process))
            assert token > before.token
            await assert_taken(locker)
            waiting = asyncio.ensure_future(locker.acquire(UPLOAD, Holder(), TIMEOUT))
            os.kill(process.pid, signal.SIGKILL)
            lock = await within(waiting)
        assert lock.token > token
        await lock.release()
        await assert_free(locker)

    # Waiting.

    async def test_waiting_ends_in_time(self, locker: Locker, neighbour: Locker) -> None:
        lock = await locker.acquire(UPLOAD, Holder(), 1)
        started = time.monotonic()
        with pytest.raises(LockTimeout):
            await within(neighbour.acquire(UPLOAD, Holder(), 0.5))
        assert 0.4 < time.monotonic() - started < 5
        await assert_taken(neighbour)
        await lock.release()
        await assert_free(neighbour)

    async def test_who_waits_asks_the_holder_to_release(self, locker: Locker, neighbour: Locker) -> None:
        holder = Holder()
        first = await locker.acquire(UPLOAD, holder, 1)
        releasing = asyncio.create_task(let_go_when_asked(first, holder))
        second = await within(neighbour.acquire(UPLOAD, Holder(), TIMEOUT))
        await releasing
        assert second.token > first.token
        await assert_taken(locker)
        await second.release()
        await assert_free(locker)

    async def test_every_holder_is_asked_while_somebody_waits(self, locker: Locker, neighbour: Locker) -> None:
        """The wish is not used up by the first holder that heard it."""
        tokens: list[int] = []

        async def hold(where: Locker) -> None:
            holder = Holder()
            lock = await where.acquire(UPLOAD, holder, TIMEOUT)
            tokens.append(lock.token)
            if len(tokens) < 6:
                await let_go_when_asked(lock, holder)
            else:  # nobody is left to ask for it
                await lock.release()

        await within(asyncio.gather(*(hold(where) for where in [locker, neighbour] * 3)))
        assert tokens == sorted(set(tokens))

    async def test_a_single_try_disturbs_nobody(self, locker: Locker, neighbour: Locker) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        with pytest.raises(LockTimeout):
            await neighbour.acquire(UPLOAD, Holder(), 0)
        async with neighbour.request_commit(UPLOAD):
            await within(holder.commit_asked.wait())  # a request to release would have arrived before this
        assert not holder.release_asked.is_set()
        await lock.release()

    async def test_a_wish_ends_with_who_had_it(self, locker: Locker, neighbour: Locker) -> None:
        first_holder, second_holder = Holder(), Holder()
        first = await locker.acquire(UPLOAD, first_holder, 1)
        waiting = asyncio.ensure_future(neighbour.acquire(UPLOAD, Holder(), TIMEOUT))
        await within(first_holder.release_asked.wait())
        waiting.cancel()
        await asyncio.wait([waiting])
        await first.release()
        second = await locker.acquire(UPLOAD, second_holder, TIMEOUT)
        async with neighbour.request_commit(UPLOAD):
            await within(second_holder.commit_asked.wait())
        assert not second_holder.release_asked.is_set()
        await second.release()

    async def test_everybody_who_waits_gets_it(self, locker: Locker, neighbour: Locker) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        tasks = await waiting_for_it(locker, holder, 5) + await waiting_for_it(neighbour, holder, 5)
        await lock.release()
        await all_have_had_it(tasks)

    @pytest.mark.parametrize("cancelled", [0, 1, 2])
    async def test_a_cancelled_wait_is_in_nobodys_way(self, locker: Locker, neighbour: Locker, cancelled: int) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        tasks = await waiting_for_it(neighbour, holder, 3)
        tasks.pop(cancelled).cancel()
        await asyncio.sleep(0)
        await lock.release()
        await all_have_had_it(tasks)
        await assert_free(locker)

    @pytest.mark.parametrize("cancelled", [0, 1, 2])
    async def test_a_wait_that_is_cancelled_when_its_turn_comes(
        self, locker: Locker, neighbour: Locker, cancelled: int
    ) -> None:
        holder = Holder()
        lock = await locker.acquire(UPLOAD, holder, 1)
        tasks = await waiting_for_it(neighbour, holder, 3)
        await lock.release()
        tasks.pop(cancelled).cancel()  # it has been woken, and has not run yet
        await all_have_had_it(tasks)
        await assert_free(locker)

    async def test_who_waits_is_not_forgotten_when_others_come_in_between(self, locker: Locker) -> None:
        holder = Holder()
        first = await locker.acquire(UPLOAD, holder, 1)
        tasks = await waiting_for_it(locker, holder, 2)
        await first.release()  # one of them is woken,
        tasks.append(asyncio.create_task(take_and_release(locker)))  # another comes before it runs,
        second = await locker.acquire(UPLOAD, Holder(), TIMEOUT)  # and one overtakes them all
        await second.release()
        await all_have_had_it(tasks)
        await assert_free(locker)

    async def test_no_update_is_lost_under_contention(self, lockers: Instances[Locker]) -> None:
        counter, tokens = 0, []

        async def increment(locker: Locker) -> None:
            nonlocal counter
            for _ in range(4):
                lock = await locker.acquire(UPLOAD, Holder(), TIMEOUT)
                tokens.append(lock.token)
                seen = counter
                await asyncio.sleep(0)
                counter = seen + 1
                await lock.release()

        instances = [await lockers.open() for _ in range(3)]
        await within(asyncio.gather(*(increment(locker) for locker in instances * 6)))
        assert counter == 3 * 6 * 4
        assert tokens == sorted(set(tokens))

    @pytest.mark.parametrize("seed", range(3))
    async def test_nothing_stays_locked_after_timeouts_and_cancellations(
        self, lockers: Instances[Locker], seed: int
    ) -> None:
        choose = random.Random(seed)
        instances = [await lockers.open() for _ in range(2)]
        holding = 0

        async def use(locker: Locker, timeout: float) -> None:
            nonlocal holding
            with contextlib.suppress(LockTimeout):
                lock = await locker.acquire(UPLOAD, Holder(), timeout)
                try:
                    holding += 1
                    assert holding == 1
                    await asyncio.sleep(choose.choice([0, 0.001, 0.01]))
                finally:
                    holding -= 1
                    await lock.release()

        tasks = []
        for _ in range(150):
            tasks.append(asyncio.create_task(use(choose.choice(instances), choose.choice([0, 0.001, 0.02, 0.1]))))
            if choose.random() < 0.3:
                choose.choice(tasks).cancel()
            await asyncio.sleep(choose.choice([0, 0, 0.002]))
        for result in await within(asyncio.gather(*tasks, return_exceptions=True)):
            assert result is None or isinstance(result, asyncio.CancelledError)
        for locker in instances:
            await assert_free(locker)
