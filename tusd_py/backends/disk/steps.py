"""Steps of the storage that run in threads of other components."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


class ExternalSteps:
    """The steps of a storage that run in threads of other components, counted so that `close` can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._guard = threading.Lock()  # of the count and of who waits; a condition would take ten calls for each step
        self._waiting: list[threading.Event] = []

    def run(self, submit: Callable[[Callable[[], S]], asyncio.Future[T]], step: Callable[[], S]) -> asyncio.Future[T]:
        """Do what `StoresInThreads.run_external` does."""
        begun = False

        def counted() -> S:
            nonlocal begun
            begun = True
            try:
                return step()
            finally:
                self._end()

        def ended(outcome: asyncio.Future[T]) -> None:
            if not begun and not outcome.cancelled():
                self._end()

        self._begin()
        try:
            result = submit(counted)
        except Exception:  # whatever it was, no step will run
            self._end()
            raise
        result.add_done_callback(ended)
        return result

    def _begin(self) -> None:
        with self._guard:
            self._count += 1

    def _end(self) -> None:
        with self._guard:
            self._count -= 1
            if not self._count:
                for waiting in self._waiting:
                    waiting.set()

    def wait(self, timeout: float | None) -> bool:
        """Wait until no step is under way; return False if one is after `timeout` seconds. Blocks."""
        ended = threading.Event()
        with self._guard:
            if not self._count:
                return True
            self._waiting.append(ended)
        return ended.wait(timeout)
