"""Thread that runs the jobs of a SQLite writer, relieved by another one while a step of a job blocks.

A job may have steps before and after its transaction, which store bytes and sync them. Should one of them hang, only
its own job waits: after `TIMEOUT` another thread takes over the queue, with all other jobs of the batch in the states
they have reached. The thread that was blocked queues its job again, and ends. While `MAX_BLOCKED` threads are blocked,
jobs that have a step to take are put aside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tusd_py.asyncutil.futures import settle
from tusd_py.core.outbox import OutboxEvent

logger = logging.getLogger("tusd_py.state")

MAX_JOBS_IN_A_TRANSACTION = 256
TIMEOUT = 0.02  # seconds that jobs wait for a step of another one
MAX_BLOCKED = 8  # threads; with so many no further step begins


@dataclass(slots=True, eq=False)
class Job:
    """Work for the writer, usually one statement, and the future that gets its result.

    The steps run in the order `begin`, `prepare`, `work`, `conclude`. A step that is done is None; `committed` tells
    that `work` is done. After an error no further step runs.
    """

    work: Callable[[sqlite3.Connection], Any]
    durable: bool
    done: asyncio.Future[Any] | None  # None if a thread waits for the job
    compound: bool = False  # whether the work is several statements
    removes: bool = False  # whether the work frees space, or is a step to that
    begin: Callable[[sqlite3.Connection], object] | None = None  # in an earlier transaction, which is not synced
    prepare: Callable[[], object] | None = None  # called between the transactions
    begin_events: Sequence[OutboxEvent] = ()  # to store in the transaction of `begin`
    events: Sequence[OutboxEvent] = ()  # to store in the transaction of `work`
    conclude: Callable[[Any], object] | None = None  # called with the result after the transaction
    committed: bool = False
    result: Any = None
    error: Exception | None = None
    ended: bool = False
    is_watched: bool = False  # whether its steps may block


class JobThreads:
    """A queue of jobs and the thread that runs them; used by one event loop."""

    def __init__(
        self, commit: Callable[[Sequence[Job]], None], maintain: Callable[[int], None], end: Callable[[], None]
    ) -> None:
        """Start the thread.

        Args:
            commit: runs the work of jobs in one transaction, and sets their results or errors.
            maintain: called with the number of jobs after their results were delivered.
            end: called by the thread when it ends.
        """
        self._commit = commit
        self._maintain = maintain
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._submitted: deque[Job] = deque()  # in this turn of the event loop; taken out under the guard
        self._guard = threading.Lock()  # of the following six
        self._jobs: list[Job] = []  # the batch of the thread
        self._current: Job | None = None  # whose step is under way
        self._since = 0.0  # in the time of the monotonic clock
        self._blocked: dict[int, threading.Thread] = {}  # by the number of their turns
        self._turn = 0  # of the thread that runs the jobs
        self._aside: list[Job] = []  # until one of the threads is no longer blocked
        self._watched_jobs = 0  # until their results are delivered; of the event loop
        self._is_watching = False
        self._is_refused = False  # whether the latest thread could not be started
        self._thread = self._start([], self._turn)

    def submit(self, job: Job) -> None:
        """Queue a job for the thread.

        The event loop submits the jobs that have a future, and those with steps beside the transaction; they are handed
        over at the end of its turn, together.
        """
        if job.prepare is not None:
            job.is_watched = True
            self._watched_jobs += 1
            if not self._is_watching:
                self._is_watching = True
                self._loop.call_later(TIMEOUT, self._watch)
        if job.done is None:  # of a thread
            self._queue.put(job)
            return
        if not self._submitted:
            self._loop.call_soon(self._hand_over)
        self._submitted.append(job)

    def _hand_over(self) -> None:
        """Pass on the jobs of one turn of the event loop.

        A thread that woke at the first of them would contend with the loop for the interpreter lock.
        """
        with self._guard:  # the event loop may be at it when `close` is
            while self._submitted:
                self._queue.put(self._submitted.popleft())

    def close(self, timeout: float) -> None:
        """Run the queued jobs, and end the threads; wait at most `timeout` seconds. Blocks."""
        deadline = time.monotonic() + timeout
        for thread in tuple(self._blocked.values()):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._hand_over()
        self._queue.put(None)
        while (thread := self._thread).is_alive() and (left := deadline - time.monotonic()) > 0:
            thread.join(left)

    def _start(self, jobs: list[Job], turn: int) -> threading.Thread:
        """Start a thread; raises `RuntimeError` if the system has no room for one."""
        thread = threading.Thread(target=self._run, args=(jobs, turn), name="tusd-py-state", daemon=True)
        thread.start()
        return thread

    def _watch(self) -> None:
        """Replace the thread if a step has been running for too long. Runs in the event loop."""
        with self._guard:
            late = self._current is not None and time.monotonic() - self._since >= TIMEOUT
            if late and len(self._blocked) < MAX_BLOCKED:
                self._relieve()
        self._is_watching = self._watched_jobs > 0
        if self._is_watching:
            self._loop.call_later(TIMEOUT, self._watch)

    def _relieve(self) -> None:
        """Let another thread take over from the one that is blocked. Called with the guard.

        The new thread waits for the guard before it looks at its turn. While none can be started nothing changes: the
        thread that is blocked goes on with its jobs afterwards, unless a later watch finds room.
        """
        jobs = [job for job in self._jobs if job is not self._current]
        try:
            thread = self._start(jobs, self._turn + 1)
        except RuntimeError as error:
            if not self._is_refused:
                self._is_refused = True
                logger.warning("changes of records wait for a step of another one: %s", error)
            return
        self._is_refused = False
        self._blocked[self._turn] = self._thread
        self._turn += 1
        self._jobs = jobs
        self._current = None
        self._thread = thread

    def _run(self, jobs: list[Job], turn: int) -> None:
        while jobs := jobs or self._wait_for_jobs():
            with self._guard:
                self._jobs = jobs
            self._begin([job for job in jobs if job.begin is not None])
            if not self._each(jobs, _preparation, turn):
                return
            if ready := [job for job in jobs if job.error is None and not job.committed]:
                self._commit(ready)
                for job in ready:
                    job.committed = True
            if not self._each(jobs, _conclusion, turn):
                return
            with self._guard:
                self._jobs = []
            with contextlib.suppress(RuntimeError):  # the loop has been closed: no task awaits the results
                self._loop.call_soon_threadsafe(self._deliver, jobs)
            self._maintain(len(jobs))
            jobs = []
        self._end()

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Take the step `begin` of all jobs in one transaction."""
        beginnings = [
            Job(job.begin, False, None, job.compound, events=job.begin_events) for job in jobs if job.begin is not None
        ]
        if beginnings:
            self._commit(beginnings)
        for job, beginning in zip(jobs, beginnings, strict=True):
            job.begin, job.error = None, beginning.error

    def _deliver(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._watched_jobs -= job.is_watched
            if job.done is not None:
                settle(job.done, job.result, job.error)

    def _wait_for_jobs(self) -> list[Job]:
        """Wait for jobs and return all that are queued; return an empty list when the threads are to end."""
        jobs: list[Job] = []
        job = self._queue.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == MAX_JOBS_IN_A_TRANSACTION or self._queue.empty():
                return jobs
            job = self._queue.get()
        if jobs or self._rejoin():
            self._queue.put(None)
        return jobs or ([] if self._queue.empty() else self._wait_for_jobs())

    def _rejoin(self) -> bool:
        """Wait for the blocked threads; return whether a job is left to run."""
        with self._guard:
            blocked = tuple(self._blocked.values())
        for thread in blocked:
            thread.join()
        return not self._queue.empty()

    def _each(self, jobs: list[Job], step: Callable[[Job], Callable[[], object] | None], turn: int) -> bool:
        """Run one step of every job that has it; return False if this thread was replaced meanwhile."""
        for job in tuple(jobs):
            if (work := step(job)) is None:
                continue
            with self._guard:
                if len(self._blocked) >= MAX_BLOCKED:
                    jobs.remove(job)
                    self._aside.append(job)
                    continue
                _note_taken(job)
                self._current, self._since = job, time.monotonic()
            try:
                work()
            except Exception as error:  # raised in the task or thread that waits for the result
                job.error = error
            with self._guard:
                if self._turn != turn:
                    del self._blocked[turn]
                    for waiting in (job, *self._aside):
                        self._queue.put(waiting)
                    self._aside.clear()
                    return False
                self._current = None
        return True


def _preparation(job: Job) -> Callable[[], object] | None:
    return job.prepare if job.error is None else None


def _conclusion(job: Job) -> Callable[[], object] | None:
    conclude = job.conclude
    return None if conclude is None or job.error is not None else lambda: conclude(job.result)


def _note_taken(job: Job) -> None:
    """Note that the next step of the job is taken."""
    if job.prepare is not None:
        job.prepare = None
    else:
        job.conclude = None
