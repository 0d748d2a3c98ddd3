"""Durations of the latest storage steps, by which an append decides whether the next step needs a thread of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FAST = 0.0005  # seconds of a step that needs no thread of its own
STALLED = 0.02  # seconds after which a running step counts as stalled
SAMPLES = 8  # number of latest steps that are kept
FASTER = 2  # index of the sample, in ascending order, that must be fast: slower ones may have waited for a processor


class Pace:
    """The pace of steps that end with a sync. `begin` and `end` run in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: deque[float] = deque(maxlen=SAMPLES)  # seconds
        self._under_way: dict[object, float] = {}  # running step -> time when it began

    def begin(self, step: object) -> None:
        """Record that a step begins."""
        self._under_way[step] = self._clock()

    def end(self, step: object, *, synced: bool) -> None:
        """Record that a step has ended; `synced` tells that it has succeeded with a sync."""
        duration = self._clock() - self._under_way.pop(step)
        if synced:
            self._latest.append(duration)

    @property
    def is_stalled(self) -> bool:
        """Whether a step has been running for longer than `STALLED` seconds."""
        if not self._under_way:
            return False
        now = self._clock()
        return now - min(self._under_way.copy().values(), default=now) > STALLED  # empty: a thread has just ended one

    @property
    def is_fast(self) -> bool:
        """Whether the latest steps were fast and none is stalled; False while too few are known."""
        latest = sorted(self._latest.copy())
        return len(latest) > FASTER and latest[FASTER] < FAST and not self.is_stalled
