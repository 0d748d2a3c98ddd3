"""A set of names with a time to live."""

from __future__ import annotations

import time
from collections.abc import Callable


class TTLSet:
    """A set whose members are dropped `period` seconds after they were last added.

    Invariant: the members are in the order of their last addition, so that dropping costs O(1) a member.
    """

    def __init__(self, period: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Drop names after `period` seconds of the monotonic `clock`."""
        self._period = period
        self._clock = clock
        self._added_at: dict[str, float] = {}  # name -> time of the clock, the oldest first

    def add(self, name: str) -> None:
        """Add a name, or renew its time."""
        now = self._clock()
        self._added_at.pop(name, None)
        self._added_at[name] = now
        self._drop_expired(now)

    def __contains__(self, name: str) -> bool:
        self._drop_expired(self._clock())
        return name in self._added_at

    def __len__(self) -> int:
        return len(self._added_at)

    def _drop_expired(self, now: float) -> None:
        while self._added_at:
            name, added_at = next(iter(self._added_at.items()))
            if now - added_at < self._period:
                return
            del self._added_at[name]
