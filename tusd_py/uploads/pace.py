"""Durations of the latest storage steps, by which an append decides whether the next step needs a thread of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FAST_SYNC = 0.0005  # seconds of a step with a sync that needs no thread of its own
FAST_WRITE = 0.002  # the same without a sync: most of the time is that of the processor
STALLED = 0.02  # seconds after which a running step counts as stalled
SAMPLES = 8  # number of latest steps that are kept
DECIDING_SAMPLE = 2  # index in ascending order; the slower samples may have waited for a processor


class Pace:
    """The pace of steps of one kind. `begin` and `end` run in any thread."""

    def __init__(self, *, syncs: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Take steps that end with a sync for slow, and others for fast, while too few are known."""
        self._fast = FAST_SYNC if syncs else FAST_WRITE
        self._was_fast = not syncs  # by the latest steps
        self._clock = clock
        self._latest: deque[float] = deque(maxlen=SAMPLES)  # seconds
        self._under_way: dict[object, float] = {}  # running step -> time when it began

    def begin(self, step: object) -> None:
        """Record that a step begins."""
        self._under_way[step] = self._clock()

    def end(self, step: object, *, counts: bool) -> float:
        """Record that a step has ended; return its seconds. `counts` tells that it succeeded and is of this kind."""
        duration = self._clock() - self._under_way.pop(step)
        if counts:
            self._latest.append(duration)
            latest = sorted(self._latest.copy())  # other threads may add theirs
            if len(latest) > DECIDING_SAMPLE:
                self._was_fast = latest[DECIDING_SAMPLE] < self._fast
        return duration

    @property
    def is_stalled(self) -> bool:
        """Whether a step has been running for longer than `STALLED` seconds."""
        if not self._under_way:
            return False
        now = self._clock()
        return now - min(self._under_way.copy().values(), default=now) > STALLED  # empty: a thread has just ended one

    @property
    def is_fast(self) -> bool:
        """Whether the latest steps were fast and none is stalled."""
        return self._was_fast and not self.is_stalled
