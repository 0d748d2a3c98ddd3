"""The timer that makes the commits of one append due."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from tusd_py.uploads.commit_pace import CommitPace

IDLE_STEP = 0.25  # seconds between the moments at which the timers of idle appends fire


class CommitTimer:
    """The timer of a running append, which fires at shorter intervals while somebody watches the upload."""

    def __init__(
        self,
        interval: float,
        pace: CommitPace,
        is_watched: Callable[[], bool],
        is_idle: Callable[[float], bool],
        due: Callable[[], object],
    ) -> None:
        """Take the state of the append.

        Args:
            interval: seconds between two commits of an upload that nobody watches.
            pace: the pace of the append.
            is_watched: tells whether somebody watches the upload.
            is_idle: tells whether all bytes are committed, and none has come since a moment of `time.monotonic`.
            due: is called when a commit is due, and wakes the append.
        """
        self._usual_interval = interval
        self._pace = pace
        self._is_watched = is_watched
        self._is_idle = is_idle
        self._due = due
        self._handle: asyncio.TimerHandle | None = None
        self._is_hurried = False  # whether the interval is that of an upload that somebody watches
        self._woken_at: float | None = None  # monotonic time when a commit was made due, if no bytes came since

    def start(self) -> None:
        """Begin an interval."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._interval(), self._passed)

    def stop(self) -> None:
        """Make no commit due any more."""
        if self._handle is not None:
            self._handle.cancel()

    def bytes_came(self) -> None:
        """Take note that the append is not idle."""
        self._woken_at = None

    def watchers_changed(self) -> None:
        """Begin a shorter interval, if somebody has begun to watch the upload."""
        if self._handle is not None and not self._is_hurried and self._is_watched():
            self.start()

    def _interval(self) -> float:
        """Return the seconds until the next commit, and note whether somebody watches the upload."""
        self._is_hurried = self._is_watched()
        return self._pace.watched_interval(self._usual_interval) if self._is_hurried else self._usual_interval

    def _passed(self) -> None:
        if self._woken_at is not None and self._is_idle(self._woken_at):
            self._start_idle()
            return
        self._woken_at = time.monotonic()
        self._due()

    def _start_idle(self) -> None:
        """Begin an interval of an idle append: those of all idle appends end together, which wakes the process less."""
        loop = asyncio.get_running_loop()
        at = loop.time() + self._interval()
        if not self._is_hurried:
            at = math.ceil(at / IDLE_STEP) * IDLE_STEP
        self._handle = loop.call_at(at, self._passed)
