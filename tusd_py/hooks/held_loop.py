"""Detection of code of the application that holds the event loop, or does not end: nobody is served meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

logger = logging.getLogger("tusd_py.hooks")

T = TypeVar("T")

LONGEST_STEP = 0.25  # seconds that a hook may compute before it awaits something
LOOK_INTERVAL = 1.0  # seconds between two looks for a step that is still under way; it is logged from then on
LATE_AFTER = 5.0  # seconds after its cancellation at which a hook that goes on is logged


@dataclass(slots=True)
class _Step:
    """A step of a hook that is under way; it is logged when it has taken `tell_at` seconds."""

    name: str
    began: float  # monotonic
    tell_at: float = 0.0


class LoopWatch:
    """A thread that logs hooks while they hold the event loop, which itself could do so only afterwards.

    The thread ends when hooks are no longer called, and begins again with the next call.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # of the following three
        self._steps: dict[int, _Step] = {}  # by the thread of the event loop, which makes one step at a time
        self._count = 0  # steps that have begun
        self._is_running = False

    def begin(self, name: str) -> None:
        """Note that a step of the hook `name` begins in this thread."""
        with self._guard:
            self._steps[threading.get_ident()] = _Step(name, time.monotonic())
            self._count += 1
            starts, self._is_running = not self._is_running, True
        if starts:
            threading.Thread(target=self._run, name="tusd-py-hooks", daemon=True).start()

    def end(self) -> float:
        """Note that the step has ended, and return its seconds."""
        with self._guard:
            step = self._steps.pop(threading.get_ident())
        return time.monotonic() - step.began

    def _run(self) -> None:
        seen = -1
        while True:
            time.sleep(LOOK_INTERVAL)
            with self._guard:
                if not self._steps and seen == self._count:
                    self._is_running = False
                    return
                seen = self._count
                steps = list(self._steps.values())
            for step in steps:
                _tell_of(step)


def _tell_of(step: _Step) -> None:
    """Log a step that has taken a look's time, and again whenever that has doubled."""
    seconds = time.monotonic() - step.began
    if seconds >= max(step.tell_at, LOOK_INTERVAL):
        step.tell_at = 2 * seconds
        logger.error(
            "hook %s has held the event loop for %.1f s, and nobody is served: it has to await what takes time,"
            " for example by asyncio.to_thread",
            step.name,
            seconds,
        )


class Watched(Generic[T]):
    """An awaitable that runs a coroutine, and logs every step of it that holds the event loop for too long.

    A coroutine that goes on after its cancellation is logged, too: only its end frees what waits for it.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], name: str, watch: LoopWatch) -> None:
        """Run the coroutine of the hook `name`."""
        self._coroutine = coroutine
        self._name = name
        self._watch = watch
        self._late: asyncio.TimerHandle | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        error: BaseException | None = None
        began = time.monotonic()
        try:
            while True:
                self._watch.begin(self._name)
                try:
                    waiting = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
                finally:
                    self._judge(self._watch.end())
                error = None
                try:
                    yield waiting
                except GeneratorExit:
                    raise
                except BaseException as thrown:  # a cancellation, for the coroutine to handle
                    error = thrown
                    if self._late is None:
                        self._expect_end(began, LATE_AFTER)
        finally:
            if self._late is not None:
                self._late.cancel()
            self._coroutine.close()

    def _expect_end(self, began: float, seconds: float) -> None:
        """Log the hook if it has not ended after `seconds`, and again whenever they have doubled."""

        def tell() -> None:
            logger.error(
                "hook %s has not ended %.1f s after its call although it was cancelled, and its upload waits for it:"
                " it has to let asyncio.CancelledError pass",
                self._name,
                time.monotonic() - began,
            )
            self._expect_end(began, 2 * seconds)

        self._late = asyncio.get_running_loop().call_later(seconds, tell)

    def _judge(self, seconds: float) -> None:
        if seconds > LONGEST_STEP:
            logger.warning(
                "hook %s held the event loop for %.1f s, in which nobody was served: it has to await what takes time,"
                " for example by asyncio.to_thread",
                self._name,
                seconds,
            )
