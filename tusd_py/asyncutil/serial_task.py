"""One job at a time that goes on although the caller who waits for it is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from tusd_py.core.errors import StorageUnavailable, UploadError

logger = logging.getLogger("tusd_py.storage")


class SerialTask:
    """Runs jobs one after another. Used by one event loop.

    Invariants: a job is started only after the one before has settled; a caller that is cancelled while waiting does
    not cancel the job; the first failure is kept, and raised by every later `settle` and `check`.
    """

    def __init__(self) -> None:
        self._job: asyncio.Future[Any] | None = None
        self.failure: UploadError | None = None

    def start(self, work: Coroutine[Any, Any, None] | asyncio.Future[Any]) -> None:
        """Begin a job: a coroutine, which gets a task of its own, or what runs already, in a thread for example."""
        self._job = asyncio.ensure_future(work)

    async def settle(self) -> None:
        """Wait for the job under way. Raises the first failure of all jobs."""
        await self.wait()
        self.check()

    async def wait(self) -> None:
        """Wait for the job under way, without raising its failure."""
        if self._job is None:
            return
        try:
            await asyncio.shield(self._job)
        except Exception as error:
            self.fail(error)
        self._job = None

    def forget(self) -> None:
        """Leave the job under way alone: neither `wait` nor its failure concerns it any more."""
        self._job = None

    def fail(self, error: Exception) -> None:
        """Keep this failure if it is the first one; an error that is not of an upload is logged."""
        if self.failure is not None:
            return
        if isinstance(error, UploadError):
            self.failure = error
        else:  # of an observer, for example: no bytes may be stored after those that it missed
            logger.error("bytes could not be stored", exc_info=error)
            self.failure = StorageUnavailable()
            self.failure.__cause__ = error

    def check(self) -> None:
        """Raise the first failure, if there is one."""
        if self.failure is not None:
            raise self.failure
