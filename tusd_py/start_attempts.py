"""The start of a server by the requests that find it not running."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tusd_py.core.errors import StateUnavailable, UploadError

logger = logging.getLogger("tusd_py")

RETRY_INTERVAL = 1.0  # seconds between two attempts


class StartAttempts:
    """Attempts to start a server, one at a time, which all requests that wait for it share.

    After a failed attempt the next one is made a second later at the earliest.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the server by `start`, which raises the reason why it cannot."""
        self._start = start
        self._attempt: asyncio.Task[None] | None = None
        self._last_logged_error = ""  # the same error is not logged again
        self.next_at = 0.0  # monotonic time from which on the next attempt may be made

    def forget(self) -> None:
        """Let the next request make an attempt of its own, as in a new event loop."""
        self._attempt = None

    async def error(self, timeout: float) -> UploadError | None:
        """Return the reason why the latest attempt has failed; None if it has not, or lasts longer than `timeout`.

        An attempt continues if a caller is cancelled. `timeout` is in seconds.
        """
        if self._attempt is None or (self._attempt.done() and time.monotonic() >= self.next_at):
            self._attempt = asyncio.create_task(self._start())
            self._attempt.add_done_callback(self._log)
        done, _ = await asyncio.wait((self._attempt,), timeout=timeout)
        error = self._attempt.exception() if done and not self._attempt.cancelled() else None
        if error is None or isinstance(error, UploadError):
            return error
        return StateUnavailable("the server could not start")

    def _log(self, attempt: asyncio.Task[None]) -> None:
        """Log the result of an attempt: a failure once for each reason, and the first success after it."""
        self.next_at = time.monotonic() + RETRY_INTERVAL
        error = None if attempt.cancelled() else attempt.exception()
        if error is None:
            if self._last_logged_error:
                logger.info("the server has started")
            self._last_logged_error = ""
        elif str(error) != self._last_logged_error:
            self._last_logged_error = str(error)
            unknown = None if isinstance(error, UploadError) else error
            logger.error("the server could not start, requests try it again: %s", error, exc_info=unknown)
