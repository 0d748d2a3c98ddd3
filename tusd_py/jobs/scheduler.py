"""The scheduler of periodic jobs: one process at a time runs a job, at times that outlive the processes.

The state store keeps the time of the last run of each job. So a job runs even if its interval is longer than the life
of a process, and only one of the processes that share the records runs it when it is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from tusd_py.contracts.locks import Locker, named_lock
from tusd_py.contracts.state import StateStore
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import LockTimeout, StateFull, UploadError
from tusd_py.events.bus import EventBus
from tusd_py.events.types import JobFinished
from tusd_py.uploads.lock_holders import NonInterruptibleHolder

logger = logging.getLogger("tusd_py.jobs")

FIRST_RETRY = 5.0  # seconds until a job that failed is tried again; doubled with every failure, up to its interval
CANCEL_INTERVAL = 0.5  # seconds until a cancelled job that still runs is cancelled again
LAST_RUN_PREFIX = "job:"  # beginning of the names under which the state store keeps the times of the last runs


@dataclass(frozen=True, slots=True)
class Job:
    """A periodic job.

    Attributes:
        name: of the metric, the log lines, the lock and the persisted time.
        interval: seconds from the beginning of a run to that of the next one.
        run: does the work once, and returns a text for the log that says what was done, or anything else if there was
            nothing to do. The scheduler logs an exception, and tries the job again before the interval is over.
        first_delay: range of seconds after the start of a process in which its first run is, if one is due by then.
        at_start: whether every process begins with a run, due or not.
    """

    name: str
    interval: float
    run: Callable[[], Awaitable[object]]
    first_delay: tuple[float, float] = (0.0, 0.0)
    at_start: bool = False


class Scheduler:
    """The runner of periodic jobs, from `start` to `stop`."""

    def __init__(
        self, jobs: Sequence[Job], state: StateStore, locker: Locker, clock: SteadyClock, events: EventBus
    ) -> None:
        self._jobs = jobs
        self._state = state
        self._locker = locker
        self._clock = clock
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start one task for each job, in the running event loop."""
        self._tasks = [asyncio.create_task(self._run_forever(job)) for job in self._jobs]

    async def stop(self) -> None:
        """Cancel the jobs and wait until they have ended.

        A job is cancelled repeatedly until it ends: a cancellation that comes together with the result that a job waits
        for may get lost, as in `asyncio.wait_for` of Python 3.11.
        """
        running = set(self._tasks)
        while running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=CANCEL_INTERVAL)
        self._tasks = []

    async def _run_forever(self, job: Job) -> None:
        await asyncio.sleep(random.uniform(*job.first_delay))
        failures = 0
        forced = job.at_start
        while True:
            began = time.monotonic()
            try:
                wait = await self._run_if_due(job, forced=forced)
                failures, forced = 0, False
            except UploadError as error:
                logger.warning("job %s failed: %s", job.name, error.message)
                failures += 1
            except Exception:  # the next run may do better, and must come
                logger.exception("job %s failed", job.name)
                failures += 1
            if failures:
                wait = min(job.interval, FIRST_RETRY * 2 ** (failures - 1))
            await asyncio.sleep(max(0.0, began + wait - time.monotonic()))

    async def _run_if_due(self, job: Job, *, forced: bool) -> float:
        """Run a job if it is due and no other process runs it; return the seconds until the next check."""
        remaining = 0.0 if forced else self._remaining(job, await self._last_run(job))
        if remaining > 0:
            return remaining
        async with self._job_lock(job) as acquired:
            if not acquired:
                return job.interval
            last = await self._last_run(job)
            remaining = 0.0 if forced else self._remaining(job, last)
            if remaining > 0:  # another process has run it meanwhile
                return remaining
            with contextlib.suppress(StateFull):  # this job may be the one that makes room
                await self._state.write_metadata(
                    f"{LAST_RUN_PREFIX}{job.name}", repr(self._clock.steady()), before=last
                )
            await self._run(job)
        return job.interval

    async def _run(self, job: Job) -> None:
        began = time.monotonic()
        summary: object = None
        succeeded = False
        try:
            summary = await job.run()
            succeeded = True
        finally:
            seconds = time.monotonic() - began
            self._events.publish(JobFinished(job.name, seconds, succeeded))
        if isinstance(summary, str) and summary:
            logger.info("job %s %s in %.1f s", job.name, summary, seconds)
        else:
            logger.debug("job %s had nothing to do, seen in %.1f s", job.name, seconds)

    async def _last_run(self, job: Job) -> str | None:
        return await self._state.read_metadata(f"{LAST_RUN_PREFIX}{job.name}")

    def _remaining(self, job: Job, last: str | None) -> float:
        """Return the seconds until a job is due; 0 for a last run that cannot be right, as of a wrong clock."""
        try:
            elapsed = self._clock.steady() - float(last or "nan")
        except ValueError:
            return 0.0
        return job.interval - elapsed if 0 <= elapsed < job.interval else 0.0

    @contextlib.asynccontextmanager
    async def _job_lock(self, job: Job) -> AsyncIterator[bool]:
        """Acquire the lock of a job for the context; yield whether this process has it, and so runs the job.

        Two processes that both have it, as after a lost lease, are harmless: every upload has its own lock.
        """
        try:
            lock = await self._locker.acquire(named_lock(job.name), NonInterruptibleHolder(), 0, to_remove=True)
        except LockTimeout:
            yield False
            return
        try:
            yield True
        finally:
            await lock.release()
