"""Tells a client that is silent from one that is slow."""

from __future__ import annotations

MIN_SILENCE = 0.1  # seconds
MAX_PAUSE = 0.3  # seconds; nobody is waited for longer, however slow
USUAL_GAPS = 3  # so many times as long as between its bytes so far is no silence yet


class Pace:
    """The pauses between the bytes of one client. Times are seconds on one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._waiting_since = now
        self._waited = 0.0
        self._count = 0
        self._busy = False

    def bytes_came(self, now: float) -> None:
        """Take note that bytes came; the time until `bytes_taken` is the storage's, not the client's."""
        self._waited += now - self._waiting_since
        self._count += 1
        self._busy = True

    def bytes_taken(self, now: float) -> None:
        self._waiting_since = now
        self._busy = False

    def is_silent(self, now: float) -> bool:
        usual = self._waited / max(1, self._count)
        pause = min(MAX_PAUSE, max(MIN_SILENCE, USUAL_GAPS * usual))
        return not self._busy and now - self._waiting_since > pause
