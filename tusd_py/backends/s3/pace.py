"""Distinction of silent clients from slow ones."""

from __future__ import annotations

MIN_SILENCE = 0.1  # seconds; a shorter pause never counts as silence
MAX_PAUSE = 0.3  # seconds; a longer pause always counts as silence
USUAL_GAPS = 3  # pauses of less than this many times the average one are no silence


class Pace:
    """The pauses between the bytes of one client. Times are seconds on one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._waiting_since = now
        self._waited = 0.0
        self._count = 0
        self._busy = False

    def bytes_came(self, now: float) -> None:
        """Record that bytes came; the time until `bytes_taken` is the storage's, not the client's."""
        self._waited += now - self._waiting_since
        self._count += 1
        self._busy = True

    def bytes_taken(self, now: float) -> None:
        """Record that the storage has taken the bytes, and waits for the client again."""
        self._waiting_since = now
        self._busy = False

    def is_silent(self, now: float) -> bool:
        """Return whether the client has paused for longer than usual."""
        usual = self._waited / max(1, self._count)
        pause = min(MAX_PAUSE, max(MIN_SILENCE, USUAL_GAPS * usual))
        return not self._busy and now - self._waiting_since > pause
