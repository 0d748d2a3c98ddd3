"""The log of failures of an authenticator of the application: once a second, and without what may be a token."""

from __future__ import annotations

import logging
import time
import traceback

logger = logging.getLogger("tusd_py.auth")

LOG_INTERVAL = 1.0  # seconds


class WrongAnswer(Exception):
    """An authenticator of the application has returned a value of another type; the text holds no value."""


class FailureLog:
    """The log of failures that may come with every request."""

    def __init__(self) -> None:
        self._last: tuple[str, float] = ("", 0.0)

    def tell(self, error: Exception) -> None:
        """Log the type of an error and where it was raised, unless the same type was logged within a second.

        The text of the error stays out of the log: that of a `KeyError`, for example, is the key that was looked for.
        """
        kind, now = type(error).__name__, time.monotonic()
        last, last_at = self._last
        if kind == last and now - last_at < LOG_INTERVAL:
            return
        self._last = kind, now
        reason = str(error) if isinstance(error, WrongAnswer) else kind
        frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        logger.error("the authenticator of the application has failed: %s%s", reason, frames and f"\n{frames}")
