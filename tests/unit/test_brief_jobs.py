"""Brief jobs: they share a thread, and no job waits for one that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial

import pytest

from tusd_py.asyncutil.brief_jobs import BriefJobs
from tusd_py.asyncutil.threads import Threads

LIMIT = 60.0  # seconds; only reached by a failure
COUNT = 3


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(COUNT, "test")
    yield threads
    assert await asyncio.to_thread(threads.close, LIMIT)


@pytest.fixture
async def jobs(threads: Threads) -> BriefJobs:
    return BriefJobs(threads.run, COUNT)


class Block:
    """Work that blocks until `event` is set."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.event = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.event.wait(LIMIT)
        return "blocked"


async def test_jobs_of_one_turn_run_in_one_thread_in_their_order(jobs: BriefJobs) -> None:
    order: list[int] = []

    def note(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    block = Block()
    first = jobs.run(block)
    names = [jobs.run(partial(note, number)) for number in range(50)]
    block.event.set()
    async with asyncio.timeout(LIMIT):
        assert await first == "blocked"
        threads_of_jobs = [await name for name in names]
    assert len(order) == 50
    if len(set(threads_of_jobs)) == 1:  # otherwise the machine was so slow that another thread helped
        assert order == sorted(order)


async def test_job_behind_one_that_blocks_is_run_by_another_thread(jobs: BriefJobs) -> None:
    block = Block()
    blocked = jobs.run(block)
    async with asyncio.timeout(LIMIT):
        assert await asyncio.gather(*(jobs.run(partial(int, number)) for number in range(5))) == [*range(5)]
        assert not blocked.done()
        block.event.set()
        assert await blocked == "blocked"


async def test_result_before_a_job_that_blocks_is_delivered(jobs: BriefJobs) -> None:
    gate, block = Block(), Block()
    first, blocked = jobs.run(gate), jobs.run(block)
    gate.event.set()
    async with asyncio.timeout(LIMIT):
        assert await first == "blocked"
        await asyncio.to_thread(block.begun.wait, LIMIT)
        assert not blocked.done()
        block.event.set()
        await blocked


async def test_jobs_wait_while_all_threads_are_blocked(jobs: BriefJobs) -> None:
    blocks = [Block() for _ in range(COUNT)]
    blocked = [jobs.run(block) for block in blocks]
    async with asyncio.timeout(LIMIT):
        for block in blocks:
            await asyncio.to_thread(block.begun.wait, LIMIT)
        late = jobs.run(lambda: "late")
        assert not late.done()
        blocks[0].event.set()
        assert await late == "late"
        for block in blocks:
            block.event.set()
        assert await asyncio.gather(*blocked) == ["blocked"] * COUNT


async def test_error_of_a_job_is_that_of_its_caller_alone(jobs: BriefJobs) -> None:
    def fail() -> None:
        raise OSError("full")

    results = await asyncio.gather(jobs.run(fail), jobs.run(lambda: "done"), return_exceptions=True)
    assert isinstance(results[0], OSError)
    assert results[1] == "done"


async def test_cancelled_call_does_not_stop_the_job_or_the_next_one(jobs: BriefJobs) -> None:
    ran: list[str] = []
    block = Block()
    first = jobs.run(block)
    cancelled = jobs.run(lambda: ran.append("cancelled"))
    cancelled.cancel()
    block.event.set()
    async with asyncio.timeout(LIMIT):
        await first
        await jobs.run(lambda: ran.append("next"))
    assert ran == ["cancelled", "next"]


async def test_close_of_the_threads_waits_for_jobs() -> None:
    threads = Threads(1, "test")
    jobs = BriefJobs(threads.run, 1)
    block = Block()
    results = [jobs.run(block), jobs.run(lambda: "done")]
    closing = asyncio.create_task(asyncio.to_thread(threads.close, LIMIT))
    await asyncio.to_thread(block.begun.wait, LIMIT)
    assert not closing.done()
    block.event.set()
    assert await closing
    assert await asyncio.gather(*results) == ["blocked", "done"]
