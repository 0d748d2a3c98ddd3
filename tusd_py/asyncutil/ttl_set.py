"""Names noted a moment ago, forgotten after a time."""

from __future__ import annotations

import time
from collections.abc import Callable


class TTLSet:
    """A set whose members are forgotten `period` seconds after they were noted last.

    Invariant: the members are ordered by the time of their last note, so that forgetting costs O(1) a member.
    """

    def __init__(self, period: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Forget names after `period` seconds of the monotonic `clock`."""
        self._period = period
        self._clock = clock
        self._noted: dict[str, float] = {}  # the oldest first

    def note(self, name: str) -> None:
        """Add a name, or renew it."""
        now = self._clock()
        self._noted.pop(name, None)
        self._noted[name] = now
        self._forget(now)

    def __contains__(self, name: str) -> bool:
        self._forget(self._clock())
        return name in self._noted

    def __len__(self) -> int:
        return len(self._noted)

    def _forget(self, now: float) -> None:
        while self._noted:
            name, noted = next(iter(self._noted.items()))
            if now - noted < self._period:
                return
            del self._noted[name]
