"""Jobs of one object, run one at a time, that continue if the task that waits for them is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from tusd_py.core.errors import StorageUnavailable, UploadError

logger = logging.getLogger("tusd_py.storage")


class SerialTask:
    """A runner of one job after another. Used by one event loop.

    Invariants: a job is started only after the one before has settled; a caller that is cancelled while waiting does
    not cancel the job; the first failure is kept, and raised by every later `settle` and `check`.
    """

    def __init__(self) -> None:
        self._job: asyncio.Future[Any] | None = None
        self.failure: UploadError | None = None

    def start(self, work: Coroutine[Any, Any, None] | asyncio.Future[Any]) -> None:
        """Start a job: a coroutine, which gets a task of its own, or a future of work that runs already."""
        self._job = asyncio.ensure_future(work)

    async def settle(self) -> None:
        """Wait for the current job. Raises the first failure of all jobs."""
        await self.wait()
        self.check()

    async def wait(self) -> None:
        """Wait for the current job, without raising its failure."""
        if self._job is None:
            return
        try:
            await asyncio.shield(self._job)
        except Exception as error:
            self.fail(error)
        self._job = None

    def detach(self) -> None:
        """Detach the current job: later calls neither wait for it nor raise its failure."""
        self._job = None

    def fail(self, error: Exception) -> None:
        """Keep `error` if it is the first failure; one that is not an `UploadError` is logged."""
        if self.failure is not None:
            return
        if isinstance(error, UploadError):
            self.failure = error
        else:  # for example of an observer, which would miss bytes: no later bytes may be stored
            logger.error("bytes could not be stored", exc_info=error)
            self.failure = StorageUnavailable()
            self.failure.__cause__ = error

    def check(self) -> None:
        """Raise the first failure, if a job has failed."""
        if self.failure is not None:
            raise self.failure
