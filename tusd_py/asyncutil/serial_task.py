"""One piece of work at a time that goes on although the request that wanted it was cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from tusd_py.core.errors import StorageUnavailable, UploadError

logger = logging.getLogger("tusd_py.storage")


class SerialTask:
    """Runs jobs one after another; remembers the first thing that failed."""

    def __init__(self) -> None:
        self._job: asyncio.Task[None] | None = None
        self.failure: UploadError | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._job = asyncio.create_task(work)

    async def settle(self) -> None:
        """Wait for the job under way; raises what has failed, now and whenever it is called again."""
        await self.wait()
        self.check()

    async def wait(self) -> None:
        """Wait for the job under way."""
        if self._job is None:
            return
        try:
            await asyncio.shield(self._job)
        except Exception as error:
            self.fail(error)
        self._job = None

    def fail(self, error: Exception) -> None:
        """After this no more bytes are taken."""
        if self.failure is not None:
            return
        if isinstance(error, UploadError):
            self.failure = error
        else:  # of an observer, say: the bytes after it may not be stored either
            logger.error("bytes could not be stored", exc_info=error)
            self.failure = StorageUnavailable()
            self.failure.__cause__ = error

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure
