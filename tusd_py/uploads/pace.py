"""Durations of the latest storage steps, from which follows whether the next one is worth a thread of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FAST = 0.0005  # seconds of a step that is not worth one
STALLED = 0.02  # seconds
SAMPLES = 8
FASTER = 2  # of the samples, which must be fast: others may have waited for the processor


class Pace:
    """The pace of steps that end with a sync. `begin` and `end` are called in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: deque[float] = deque(maxlen=SAMPLES)  # seconds
        self._under_way: dict[object, float] = {}  # the begin of each step

    def begin(self, step: object) -> None:
        """Note that a step begins."""
        self._under_way[step] = self._clock()

    def end(self, step: object, *, synced: bool) -> None:
        """Note that a step has ended; `synced` says that it has ended well, and with a sync."""
        duration = self._clock() - self._under_way.pop(step)
        if synced:
            self._latest.append(duration)

    @property
    def is_stalled(self) -> bool:
        """Whether a step has been under way for long."""
        if not self._under_way:
            return False
        now = self._clock()
        return now - min(self._under_way.copy().values(), default=now) > STALLED  # empty: a thread has just ended one

    @property
    def is_fast(self) -> bool:
        """Whether steps are fast, as far as known."""
        latest = sorted(self._latest.copy())
        return len(latest) > FASTER and latest[FASTER] < FAST and not self.is_stalled
