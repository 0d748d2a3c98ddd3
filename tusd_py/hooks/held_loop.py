"""Detection of code of the application that holds the event loop: nobody is served meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

logger = logging.getLogger("tusd_py.hooks")

T = TypeVar("T")

LONGEST_STEP = 0.25  # seconds that a hook may compute before it awaits something


class Watched(Generic[T]):
    """An awaitable that runs a coroutine, and logs every step of it that holds the event loop for too long."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], name: str) -> None:
        """Run the coroutine of the hook `name`."""
        self._coroutine = coroutine
        self._name = name

    def __await__(self) -> Generator[Any, Any, T]:
        error: BaseException | None = None
        try:
            while True:
                started = time.monotonic()
                try:
                    waiting = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
                except StopIteration as end:
                    result: T = end.value
                    return result
                finally:
                    self._judge(time.monotonic() - started)
                error = None
                try:
                    yield waiting
                except GeneratorExit:
                    raise
                except BaseException as thrown:  # a cancellation, for the coroutine to handle
                    error = thrown
        finally:
            self._coroutine.close()

    def _judge(self, seconds: float) -> None:
        if seconds > LONGEST_STEP:
            logger.warning(
                "hook %s held the event loop for %.1f s, in which nobody was served: it has to await what takes time,"
                " for example by asyncio.to_thread",
                self._name,
                seconds,
            )
