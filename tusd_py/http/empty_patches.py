"""Clients that send empty PATCHes without end: slowed down more and more, and refused in the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from tusd_py.http.errors import HTTPError

FREE_PATCHES = 3  # empty PATCHes in a row that are answered at once
PAUSE_STEP = 0.1  # seconds by which the pause grows
MAX_PAUSE = 2.0  # seconds
MOST = 200  # empty PATCHes in a row on one upload
RUN_ENDS = 5.0  # seconds without one, after which the next does not count as in a row
MAX_TRACKED_UPLOADS = 10_000  # uploads


class EmptyPatches:
    """Counts, for each upload, the PATCHes in a row that brought nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, tuple[int, float]] = {}  # by upload: how many, when the last one was answered

    def brought_bytes(self, upload_id: str) -> None:
        if self._runs:
            self._runs.pop(upload_id, None)

    def pause(self, upload_id: str) -> float:
        """Seconds after which one more empty PATCH is to be answered; raises `HTTPError` after too many."""
        now = self._clock()
        count, last = self._runs.pop(upload_id, (0, now))
        count = 1 if now - last > RUN_ENDS else count + 1
        pause = 0.0 if count > MOST else min(MAX_PAUSE, PAUSE_STEP * max(0, count - FREE_PATCHES))
        while len(self._runs) >= MAX_TRACKED_UPLOADS:
            del self._runs[next(iter(self._runs))]
        self._runs[upload_id] = (count, now + pause)
        if count > MOST:
            text = f"more than {MOST} empty PATCH requests in a row: send bytes, or Upload-Length if this is the end"
            raise HTTPError(400, "ERR_ENDLESS_EMPTY_PATCHES", text)
        return pause
