"""Periodic jobs: when they run, in which process, and after failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contracts.parts import within
from tests.support.timing import scaled
from tests.support.watched import watch
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import StorageUnavailable
from tusd_py.events.bus import EventBus
from tusd_py.events.types import JobFinished
from tusd_py.jobs import duties, scheduler
from tusd_py.jobs.scheduler import Job, Scheduler
from tusd_py.uploads.sweeping import SweepSummary


class Process:
    """One process that runs jobs on shared records."""

    def __init__(self, place: Path) -> None:
        self.state = SQLiteState(place / "records")
        self.locker = LocalLocker(place / "locks")
        self.events = EventBus()
        self.finished: list[JobFinished] = []
        self.events.observe(JobFinished, self.finished.append)
        self._schedulers: list[Scheduler] = []

    async def open(self) -> None:
        await self.state.open()
        await self.locker.open()

    def start(self, *jobs: Job) -> Scheduler:
        running = Scheduler(jobs, self.state, self.locker, SteadyClock(self.state.clock, hold=0), self.events)
        running.start()
        self._schedulers.append(running)
        return running

    async def close(self) -> None:
        for running in self._schedulers:
            await running.stop()
        await self.locker.close()
        await self.state.close()


class Counter:
    """A job that counts its runs, and fails as often as it is told to."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.runs = 0
        self._failures = failures
        self._error = error or StorageUnavailable("the disk is away")
        self._changed = asyncio.Event()

    async def run(self) -> None:
        self.runs += 1
        self._changed.set()
        if self.runs <= self._failures:
            raise self._error

    async def reach(self, runs: int) -> None:
        while self.runs < runs:
            self._changed.clear()
            await within(self._changed.wait())


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Path]:
    blockbuster = watch()
    yield tmp_path
    blockbuster.deactivate()


@pytest.fixture
async def process(place: Path) -> AsyncIterator[Process]:
    one = Process(place)
    await one.open()
    yield one
    await one.close()


async def test_a_job_runs_again_and_again(process: Process) -> None:
    job = Counter()
    process.start(Job("counter", 0.02, job.run))
    await job.reach(4)
    assert all(event.succeeded and event.name == "counter" for event in process.finished)


async def test_the_time_of_the_next_run_outlasts_the_process(process: Process) -> None:
    job, other = Counter(), Counter()
    first = process.start(Job("counter", 3600, job.run))
    await job.reach(1)
    await first.stop()
    second = process.start(Job("counter", 3600, job.run), Job("other", 3600, other.run))
    await other.reach(1)
    await asyncio.sleep(0.1)
    assert job.runs == 1
    await second.stop()
    # An hour later, in yet another process.
    last = await process.state.read_metadata("job:counter")
    assert last is not None
    assert await process.state.write_metadata("job:counter", repr(float(last) - 3601), before=last)
    process.start(Job("counter", 3600, job.run))
    await job.reach(2)


@pytest.mark.parametrize("last_run", ["9999999999999.0", "nonsense", "nan"])
async def test_a_last_run_that_cannot_be_right_makes_a_job_due(process: Process, last_run: str) -> None:
    assert await process.state.write_metadata("job:counter", last_run, before=None)
    job = Counter()
    process.start(Job("counter", 3600, job.run))
    await job.reach(1)


async def test_a_job_that_begins_every_process_runs_although_it_is_not_due(process: Process) -> None:
    job = Counter()
    for runs in (1, 2, 3):
        running = process.start(Job("counter", 3600, job.run, at_start=True))
        await job.reach(runs)
        await running.stop()


async def test_a_job_runs_in_one_of_several_processes(place: Path) -> None:
    processes = [Process(place) for _ in range(3)]
    counters = [Counter() for _ in processes]
    for one, counter in zip(processes, counters, strict=True):
        await one.open()
        one.start(Job("counter", 3600, counter.run))
    runs = [asyncio.ensure_future(counter.reach(1)) for counter in counters]
    await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.2)
    for run in runs:
        run.cancel()
    assert sum(counter.runs for counter in counters) == 1
    for one in processes:
        await one.close()


@pytest.mark.parametrize("error", [StorageUnavailable("the disk is away"), RuntimeError("a bug")], ids=type)
async def test_a_job_that_fails_is_reported_and_tried_again_soon(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(scheduler, "FIRST_RETRY", 0.01)
    job = Counter(failures=3, error=error)
    with caplog.at_level(logging.WARNING, "tusd_py.jobs"):
        process.start(Job("counter", 3600, job.run, at_start=True))
        await job.reach(4)
    assert [event.succeeded for event in process.finished[:3]] == [False] * 3
    assert sum("job counter failed" in record.message for record in caplog.records) == 3


async def test_jobs_do_not_wait_for_each_other(process: Process) -> None:
    forever = asyncio.Event()
    job = Counter()
    process.start(Job("stuck", 1, forever.wait), Job("counter", 0.01, job.run))
    await job.reach(3)


async def test_stop_ends_a_job_in_the_middle_and_lets_its_lock_go(process: Process) -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(scaled(600))

    running = process.start(Job("stuck", 1, hang))
    await within(begun.wait())
    await within(running.stop())
    assert not await process.locker.is_held(".stuck")


async def test_stop_ends_a_job_that_has_swallowed_a_cancellation(process: Process) -> None:
    begun = asyncio.Event()

    async def swallow() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):  # as `asyncio.wait_for` may with a result that comes with it
            await asyncio.sleep(scaled(600))

    running = process.start(Job("swallowing", 3600, swallow))
    await within(begun.wait())
    await within(running.stop())
    assert not await process.locker.is_held(".swallowing")


@pytest.mark.parametrize("sweep_interval", [0.01, 3600])
async def test_orphans_are_removed_soon_after_the_first_start(
    process: Process, monkeypatch: pytest.MonkeyPatch, sweep_interval: float
) -> None:
    cleaned = asyncio.Event()

    class Storage:
        async def clean(self) -> None: ...

    class Sweeper:
        def __init__(self, service: Any) -> None: ...

        async def sweep(self) -> SweepSummary:
            return SweepSummary()

    class OrphanCleaner:
        def __init__(self, service: Any) -> None: ...

        async def clean(self) -> list[Any]:
            cleaned.set()
            return []

    assert max(duties.FIRST_CLEAN) <= 120
    monkeypatch.setattr(duties, "FIRST_CLEAN", (0.02, 0.05))
    monkeypatch.setattr(duties, "Sweeper", Sweeper)
    monkeypatch.setattr(duties, "OrphanCleaner", OrphanCleaner)
    service: Any = SimpleNamespace(
        storage=Storage(),
        state=process.state,
        locker=process.locker,
        clock=SteadyClock(process.state.clock, hold=0),
        events=process.events,
    )
    running = duties.scheduler_of(service, sweep_interval)
    running.start()
    try:
        await within(cleaned.wait())
    finally:
        await running.stop()
