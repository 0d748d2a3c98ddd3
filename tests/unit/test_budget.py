from __future__ import annotations

import asyncio
import random

import pytest

from tusd_py.core.buffers import PooledBuffer
from tusd_py.transfer.budget import MAX_BATCH_SIZE, MIN_BATCH_SIZE, BufferPool, ByteBudget


class Waiters:
    """Tasks that reserve bytes, and the names of those that got them, in order."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.got: list[str] = []

    async def _reserve(self, name: str, size: int) -> None:
        await self._budget.reserve(size)
        self.got.append(name)

    def start(self, name: str, size: int) -> asyncio.Task[None]:
        return asyncio.create_task(self._reserve(name, size))


async def others_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(100)


@pytest.fixture
def waiters(budget: ByteBudget) -> Waiters:
    return Waiters(budget)


async def test_reservation_that_fits_is_granted_at_once(budget: ByteBudget) -> None:
    await budget.reserve(60)
    assert budget.try_reserve(40)
    assert budget.used == 100
    assert not budget.try_reserve(1)
    assert budget.try_reserve(0)
    budget.release(60)
    assert budget.try_reserve(60)
    budget.release(100)
    assert budget.used == 0


async def test_reservation_larger_than_the_rest_waits(budget: ByteBudget, waiters: Waiters) -> None:
    await budget.reserve(80)
    waiting = waiters.start("late", 30)
    await others_run()
    assert waiters.got == []
    budget.release(5)
    await others_run()
    assert waiters.got == []
    budget.release(5)
    await waiting
    assert budget.used == 100


async def test_waiting_reservations_are_granted_in_order(budget: ByteBudget, waiters: Waiters) -> None:
    await budget.reserve(90)
    large, small = waiters.start("large", 50), waiters.start("small", 5)
    await others_run()
    assert not budget.try_reserve(5)
    assert waiters.got == []
    budget.release(40)
    await large
    assert waiters.got == ["large"]
    budget.release(50)
    await small
    assert waiters.got == ["large", "small"]
    assert budget.used == 55


async def test_one_release_may_serve_several(budget: ByteBudget, waiters: Waiters) -> None:
    await budget.reserve(100)
    tasks = [waiters.start(str(number), 20) for number in range(8)]
    await others_run()
    budget.release(100)
    await others_run()
    assert waiters.got == ["0", "1", "2", "3", "4"]
    assert budget.used == 100
    budget.release(60)
    await asyncio.gather(*tasks)
    assert waiters.got == [str(number) for number in range(8)]


async def test_reservation_larger_than_the_budget_is_granted_alone(budget: ByteBudget, waiters: Waiters) -> None:
    await budget.reserve(1)
    huge = waiters.start("huge", 1000)
    await others_run()
    assert waiters.got == []
    behind = waiters.start("behind", 1)
    budget.release(1)
    await huge
    await others_run()
    assert waiters.got == ["huge"]
    assert budget.used == 1000
    budget.release(1000)
    await behind
    assert budget.used == 1


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_wait_takes_nothing(budget: ByteBudget, waiters: Waiters, cancelled: int) -> None:
    await budget.reserve(100)
    tasks = [waiters.start(str(number), 30) for number in range(3)]
    await others_run()
    tasks.pop(cancelled).cancel()
    await others_run()
    assert budget.used == 100
    budget.release(100)
    await asyncio.gather(*tasks)
    assert budget.used == 60


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_wait_that_is_cancelled_when_its_turn_has_come(
    budget: ByteBudget, waiters: Waiters, cancelled: int
) -> None:
    await budget.reserve(100)
    tasks = [waiters.start(str(number), 40) for number in range(3)]
    await others_run()
    budget.release(100)  # two of them have it and do not know yet
    tasks.pop(cancelled).cancel()
    await asyncio.gather(*tasks)
    assert budget.used == 80


async def test_a_large_one_that_gives_up_lets_the_small_ones_behind_it_pass(
    budget: ByteBudget, waiters: Waiters
) -> None:
    await budget.reserve(80)
    large, small = waiters.start("large", 50), waiters.start("small", 10)
    await others_run()
    large.cancel()
    await small
    assert budget.used == 90


@pytest.mark.parametrize("seed", range(5))
async def test_byte_budget_is_balanced_after_random_operations(budget: ByteBudget, seed: int) -> None:
    choose = random.Random(seed)
    buffered = 0

    async def use(size: int) -> None:
        nonlocal buffered
        await budget.reserve(size)
        buffered += size
        assert buffered <= 100 or buffered == size
        try:
            await asyncio.sleep(choose.choice([0, 0, 0.001]))
        finally:
            buffered -= size
            budget.release(size)

    tasks = []
    for _ in range(400):
        tasks.append(asyncio.create_task(use(choose.choice([1, 10, 40, 99, 150]))))
        if choose.random() < 0.4:
            choose.choice(tasks).cancel()
        if choose.random() < 0.5:
            await asyncio.sleep(0)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError)
    assert budget.used == buffered == 0
    assert budget.try_reserve(100)


@pytest.mark.parametrize(
    ("total", "writers", "expected"),
    [
        (1 << 30, 0, MAX_BATCH_SIZE),
        (1 << 30, 1, MAX_BATCH_SIZE),
        (32 << 20, 4, 4 << 20),
        (32 << 20, 16, 1 << 20),
        (32 << 20, 10_000, MIN_BATCH_SIZE),
        (1 << 20, 1, 512 << 10),
    ],
)
def test_blocks_are_a_fair_share(total: int, writers: int, expected: int) -> None:
    budget = ByteBudget(total)
    budget.writers = writers
    assert budget.batch_size() == expected


# Blocks of memory.

MEBI = 1 << 20


def test_blocks_have_a_bound_of_their_own() -> None:
    """Bytes that somebody holds and blocks that are being filled do not stand in each other's way."""
    budget = ByteBudget(32 * MEBI)
    pool = BufferPool(budget)
    block = pool.acquire()
    assert len(block) == MAX_BATCH_SIZE
    assert budget.used == 0


def test_blocks_are_used_again() -> None:
    budget = ByteBudget(32 * MEBI)
    pool = BufferPool(budget)
    first, second = pool.acquire(), pool.acquire()
    assert first is not second
    for block in (first, second):
        pool.detach(block)
        pool.release(block)
    assert {id(pool.acquire()), id(pool.acquire())} == {id(first), id(second)}
    assert pool.acquire() is not first


@pytest.mark.parametrize("writers", [1, 3, 5, 16, 100, 5000])
def test_blocks_are_a_fair_share_too(writers: int) -> None:
    budget = ByteBudget(32 * MEBI)
    budget.writers = writers
    block = BufferPool(budget).acquire()
    assert MIN_BATCH_SIZE <= len(block) <= budget.batch_size()
    assert len(block) * 2 > budget.batch_size()


def test_blocks_get_smaller_where_little_is_left_and_never_run_out() -> None:
    """A connection has to read something to learn that its client has gone, however many hold a block."""
    pool = BufferPool(ByteBudget(2 * MEBI))
    blocks = [pool.acquire() for _ in range(10)]
    sizes = [len(block) for block in blocks]
    assert sizes[0] == MEBI  # all of the half that is for blocks
    assert set(sizes[1:]) == {MIN_BATCH_SIZE}
    for block in blocks:
        pool.detach(block)
    assert len(pool.acquire()) == MEBI


def test_the_pool_keeps_no_more_than_its_bound() -> None:
    pool = BufferPool(ByteBudget(4 * MEBI))
    blocks = [PooledBuffer.of(pool, MEBI) for _ in range(5)]
    for block in blocks:
        pool.release(block)
    budget_of_one_writer = [pool.acquire()]
    assert [len(block) for block in budget_of_one_writer] == [2 * MEBI]
    pool.detach(budget_of_one_writer.pop())
    smaller = BufferPool(ByteBudget(2 * MEBI))
    for block in blocks:
        smaller.release(block)
    kept = smaller.acquire()
    assert any(kept is block for block in blocks)
    smaller.detach(kept)
    assert not any(smaller.acquire() is block for block in blocks)  # one was kept, and it is in use


def test_free_buffers_of_another_size_make_room_for_those_of_the_size_in_use() -> None:
    pool = BufferPool(ByteBudget(4 * MEBI))
    for block in [PooledBuffer.of(pool, MEBI) for _ in range(2)]:
        pool.release(block)
    small = [PooledBuffer.of(pool, MEBI // 2) for _ in range(5)]
    for block in small:
        pool.release(block)
    pool._budget.writers = 4
    lent = [pool.acquire() for _ in range(4)]
    assert {id(block) for block in lent} == {id(block) for block in small[:4]}
    assert pool._free_size == 0
