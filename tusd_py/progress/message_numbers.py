"""The numbers of messages, by which clients that come back name the last one that they have got."""

from __future__ import annotations

from tusd_py.core.clock import Clock


class MessageNumbers:
    """Numbers from the time of the records, so that they ascend over processes too."""

    def __init__(self, clock: Clock) -> None:
        """Take the clock of the records."""
        self._clock = clock
        self._last = 0

    def __call__(self, is_last: bool) -> int:
        """Return a number above all others; that of the last message about an upload is odd."""
        number = max(int(self._clock.wall() * 1000) * 2, self._last + 1)
        self._last = number + (number % 2 != is_last)
        return self._last
