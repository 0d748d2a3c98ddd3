"""Cancellations that a library swallows."""

from __future__ import annotations

import asyncio


class CancellationGuard:
    """Notices a cancellation of the current task that code which was awaited has swallowed.

    `asyncio.wait_for` does so before Python 3.12, when its result comes together with the cancellation.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._requests = task.cancelling()

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the task has been cancelled since the guard was made."""
        if self._task.cancelling() > self._requests:
            raise asyncio.CancelledError
