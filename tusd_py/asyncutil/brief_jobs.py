"""Brief jobs for worker threads: one thread runs all that wait, and others help while one of them blocks.

A change of threads costs more than a job that only writes a few bytes to the page cache, and threads that run such jobs
side by side contend for the interpreter lock at each of their calls to the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from tusd_py.asyncutil.futures import settle

T = TypeVar("T")

PATIENCE = 0.002  # seconds that jobs wait for another one before a further thread helps


class BriefJobs:
    """A queue of brief jobs. Used by one event loop.

    Invariant: a job, or the result of one, waits for a job that blocks no longer than `PATIENCE`, as long as a thread
    is left.
    """

    def __init__(self, start: Callable[[Callable[[], None]], object], count: int) -> None:
        """Use `start` to run a function in a worker thread, for `count` functions at a time."""
        self._start = start
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()  # of the following three
        self._jobs: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._runners = 0  # threads that run jobs
        self._taken = 0  # number of jobs that were taken from the queue
        self._done: deque[tuple[asyncio.Future[Any], Any, Exception | None]] = deque()
        self._taken_before = 0  # at the last look; of the event loop, as the following
        self._is_watching = False

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Call `work` in a thread and return a future of its result. Cancelling the future does not stop the call."""
        result: asyncio.Future[T] = self._loop.create_future()
        with self._guard:
            self._jobs.append((work, result))
            waits = self._runners > 0
            self._runners += not waits
        if not waits:
            self._start(self._run)
        elif not self._is_watching:
            self._is_watching = True
            self._watch_later()
        return result

    def _watch_later(self) -> None:
        self._taken_before = self._taken
        self._loop.call_later(PATIENCE, self._watch)

    def _watch(self) -> None:
        """Deliver results, and get another thread if no job was begun since the last look. Runs in the event loop."""
        self._deliver()
        with self._guard:
            is_stuck = bool(self._jobs) and self._taken == self._taken_before and self._runners < self._count
            self._runners += is_stuck
            self._is_watching = self._runners > 0
        if is_stuck:
            self._start(self._run)
        if self._is_watching:
            self._watch_later()

    def _run(self) -> None:
        """Run jobs until none is left; results are delivered together. Runs in a worker thread."""
        while True:
            with self._guard:
                if not self._jobs:
                    self._runners -= 1
                    break
                work, result = self._jobs.popleft()
                self._taken += 1
            try:
                value, error = work(), None
            except Exception as caught:  # raised in the task that waits for the result
                value, error = None, caught
            self._done.append((result, value, error))
        with contextlib.suppress(RuntimeError):  # the loop has been closed: no task waits for the results
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._done:
            settle(*self._done.popleft())
