"""The threads that receive the bodies of fast clients while they store them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from tusd_py.asyncutil.threads import Threads

T = TypeVar("T")


class ReceivingThreads(Threads):
    """Threads beside those of the storage, which therefore serves others while clients keep these busy."""

    def __init__(self, count: int) -> None:
        super().__init__(count, "tusd-py-receive")
        self._spare = count
        self.splices = True  # until the kernel or the file system has refused it

    @property
    def is_possible(self) -> bool:
        """Whether a thread is spare, and the file system can be used in this way."""
        missing = self._count - len(self._threads) if self._threads else 0  # could not be started
        return self.splices and self._spare > missing

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        result = super().run(work)
        self._spare -= 1
        result.add_done_callback(self._ended)
        return result

    def _ended(self, _: object) -> None:
        self._spare += 1
