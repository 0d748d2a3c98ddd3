"""Worker threads for blocking calls: one queue, and one wake-up of the event loop for each result."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from tusd_py.asyncutil.futures import settle

T = TypeVar("T")
Job: TypeAlias = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Threads:
    """A fixed number of daemon threads, started with the first call; those that could not be with later ones.

    Lighter than `concurrent.futures`. Invariants: calls begin in the order of `run`; a result is delivered in the event
    loop that called `run`.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._lock = threading.Lock()  # between `run` and the end of `close`: no job is left without a thread

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Call `work` in a thread and return a future of its result. Cancelling the future does not stop the call.

        Raises `RuntimeError` if there is no thread, and none can be started.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        with self._lock:
            if len(self._threads) < self._count and not self._closing:
                self._start()
            self._jobs.put((work, loop, result))
        return result

    def _start(self) -> None:
        """Start the threads that are missing; fewer will do."""
        for number in range(len(self._threads), self._count):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no room for more
                if not self._threads:
                    raise
                return
            self._threads.append(thread)

    def close(self, timeout: float | None = None) -> bool:
        """Wait until every call has returned, at most `timeout` seconds; return whether all have. Blocks.

        Work given to `run` during a close is called before it returns True, work given after it by new threads. After
        False, call it again.
        """
        with self._lock:
            threads = tuple(self._threads)
            for _ in range(0 if self._closing else len(threads)):
                self._jobs.put(None)
            self._closing = bool(threads)
        if not threads:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._closing = bool(self._threads)
            rest = [] if self._threads else self._take_jobs()
        for job in rest:
            _run_job(job)
        return not self._threads

    def _take_jobs(self) -> list[Job]:
        """Return the jobs that came after the last thread was told to end."""
        jobs: list[Job] = []
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                jobs.append(job)
        return jobs

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            if not _run_job(job):
                return
            del job


def _run_job(job: Job) -> bool:
    """Call the work of a job and deliver its result; return False if its event loop is closed, and nobody waits."""
    work, loop, result = job
    try:
        value, error = work(), None
    except Exception as caught:  # raised in the task that waits for the result
        value, error = None, caught
    try:
        loop.call_soon_threadsafe(settle, result, value, error)
    except RuntimeError:
        return False
    return True
