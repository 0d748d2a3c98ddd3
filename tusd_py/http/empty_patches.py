"""A limit for clients that send one empty PATCH after another: longer and longer pauses, then a refusal."""

from __future__ import annotations

import time
from collections.abc import Callable

from tusd_py.http.errors import HTTPError

FREE_PATCHES = 3  # empty PATCHes in a row that are answered at once
PAUSE_STEP = 0.1  # seconds by which the pause grows
MAX_PAUSE = 2.0  # seconds
MAX_EMPTY_PATCHES = 200  # empty PATCHes in a row on one upload
RUN_TIMEOUT = 5.0  # seconds without an empty PATCH after which counting begins again
MAX_TRACKED_UPLOADS = 10_000


class EmptyPatches:
    """The number of consecutive PATCH requests without bytes, for each upload."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, tuple[int, float]] = {}  # upload id -> number, monotonic time of the last response

    def brought_bytes(self, upload_id: str) -> None:
        """Reset the count of an upload after a PATCH with bytes."""
        if self._runs:
            self._runs.pop(upload_id, None)

    def pause(self, upload_id: str) -> float:
        """Return the seconds to wait before one more empty PATCH is answered; raises `HTTPError` after too many."""
        now = self._clock()
        count, last = self._runs.pop(upload_id, (0, now))
        count = 1 if now - last > RUN_TIMEOUT else count + 1
        pause = 0.0 if count > MAX_EMPTY_PATCHES else min(MAX_PAUSE, PAUSE_STEP * max(0, count - FREE_PATCHES))
        while len(self._runs) >= MAX_TRACKED_UPLOADS:
            del self._runs[next(iter(self._runs))]
        self._runs[upload_id] = (count, now + pause)
        if count > MAX_EMPTY_PATCHES:
            advice = "send bytes, or Upload-Length if this is the end"
            text = f"more than {MAX_EMPTY_PATCHES} empty PATCH requests in a row: {advice}"
            raise HTTPError(400, "ERR_ENDLESS_EMPTY_PATCHES", text)
        return pause
