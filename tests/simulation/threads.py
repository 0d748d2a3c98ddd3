"""Threads, locks, conditions and queues of simulated processes: greenlets that the simulated loop resumes.

A thread runs until it waits: for a lock, for a queue, or for a random time at a call that a real thread may block in
(`pause`). So threads interleave with each other and with the event loop at these points, in an order that the seed
decides. A thread of a dead process is never resumed.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

from tests.simulation.loop import SimulatedLoop


class BlockedLoop(Exception):
    """Code in the event loop would block."""


class Scheduler:
    """The threads of one world."""

    def __init__(self, loop: SimulatedLoop, rng: Random) -> None:
        self.loop = loop
        self.rng = rng
        self.main = getcurrent()
        self.threads: list[SimulatedThread] = []

    @property
    def is_in_thread(self) -> bool:
        return getcurrent() is not self.main

    def sleep(self, seconds: float) -> None:
        """Let others run for so long. Only in a thread."""
        if not self.is_in_thread:
            raise BlockedLoop("a call in the event loop sleeps")
        self.loop.call_later(seconds, getcurrent().switch, context=contextvars.copy_context())
        self.main.switch()

    def pause(self, chance: float = 0.3) -> None:
        """Let others run for a random time, perhaps: a call that may block begins or ends."""
        if self.is_in_thread and self.rng.random() < chance:
            self.sleep(self.latency())

    def latency(self) -> float:
        kind = self.rng.random()
        if kind < 0.8:
            return self.rng.random() * 0.0005
        return self.rng.random() * (0.01 if kind < 0.97 else 0.3)

    def wait(self, waiters: deque[greenlet]) -> None:
        """Wait until another thread or the loop has called `wake`."""
        if not self.is_in_thread:
            raise BlockedLoop("a call in the event loop waits for a thread")
        waiters.append(getcurrent())
        self.main.switch()

    def wake(self, waiting: greenlet) -> None:
        assert waiting.gr_context is not None
        self.loop.call_soon(waiting.switch, context=waiting.gr_context.copy())


class SimulatedThread:
    """A thread of the current process, with the interface of `threading.Thread`."""

    scheduler: Scheduler

    def __init__(
        self, target: Callable[..., object], name: str = "", daemon: bool = True, args: tuple[Any, ...] = ()
    ) -> None:
        self.name = name
        self.daemon = daemon
        self._target = target
        self._args = args
        self._alive = False
        self._joining: deque[greenlet] = deque()

    def start(self) -> None:
        scheduler = self.scheduler
        self._alive = True
        self.greenlet = greenlet(self._run, parent=scheduler.main)
        self.greenlet.gr_context = contextvars.copy_context()
        scheduler.threads.append(self)
        scheduler.loop.call_later(scheduler.latency(), self.greenlet.switch)

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._alive = False
            while self._joining:
                self.scheduler.wake(self._joining.popleft())

    def is_alive(self) -> bool:
        return self._alive

    def join(self, timeout: float | None = None) -> None:
        end = None if timeout is None else self.scheduler.loop.now + timeout
        while self._alive:
            if end is None:
                self.scheduler.wait(self._joining)
            elif self.scheduler.loop.now >= end:
                return
            else:
                self.scheduler.sleep(min(0.05, end - self.scheduler.loop.now) + 1e-6)


class SimulatedLock:
    """A lock between threads; the event loop may take it only while it is free."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self._held = False
        self._waiters: deque[greenlet] = deque()

    def acquire(self) -> bool:
        while self._held:
            self.scheduler.wait(self._waiters)
        self._held = True
        return True

    def release(self) -> None:
        self._held = False
        if self._waiters:
            self.scheduler.wake(self._waiters.popleft())

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SimulatedCondition(SimulatedLock):
    """A condition between threads."""

    def notify_all(self) -> None:
        """Do nothing: those who wait look again from time to time."""

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        end = None if timeout is None else self.scheduler.loop.now + timeout
        while not predicate():
            if end is not None and self.scheduler.loop.now >= end:
                return False
            self.release()
            self.scheduler.sleep(0.01 if end is None else min(0.01, end - self.scheduler.loop.now) + 1e-6)
            self.acquire()
        return True


class SimulatedEvent:
    """An event between threads: one that waits looks at it from time to time."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        end = self.scheduler.loop.now + timeout
        while not self._is_set and self.scheduler.loop.now < end:
            self.scheduler.sleep(min(0.5, end - self.scheduler.loop.now) + 1e-6)
        return self._is_set


class SimulatedQueue:
    """A queue between threads, with the interface of `queue.SimpleQueue`."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiters: deque[greenlet] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiters:
            self.scheduler.wake(self._waiters.popleft())

    def get(self) -> Any:
        while not self._items:
            self.scheduler.wait(self._waiters)
        item = self._items.popleft()
        if self._items and self._waiters:
            self.scheduler.wake(self._waiters.popleft())
        return item

    def empty(self) -> bool:
        return not self._items


class ThreadingModule:
    """A replacement for the module `threading` in the code of the server."""

    Thread = SimulatedThread
    Lock = SimulatedLock
    Condition = SimulatedCondition
    Event = SimulatedEvent

    @staticmethod
    def get_ident() -> int:
        return id(getcurrent())

    @staticmethod
    def current_thread() -> object:
        return None  # not the main thread: no signal handlers are set

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


class QueueModule:
    """A replacement for the module `queue` in the code of the server."""

    SimpleQueue = SimulatedQueue


def use(scheduler: Scheduler) -> None:
    """Have new threads, locks and queues belong to a world."""
    scheduler.loop.start_thread = lambda work: SimulatedThread(target=work).start()
    for kind in (SimulatedThread, SimulatedLock, SimulatedEvent, SimulatedQueue):
        kind.scheduler = scheduler
