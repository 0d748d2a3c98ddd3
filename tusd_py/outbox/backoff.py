"""Pauses between attempts of a delivery. Pure functions and values."""

from __future__ import annotations

import random

FIRST_PAUSE = 1.0  # seconds after the first failed attempt, doubled with every further one
MAX_PAUSE = 600.0  # seconds
MAX_RETRY_AFTER = 3600.0  # seconds; a receiver cannot park an event for longer
FIRST_SINK_PAUSE = 0.5  # seconds after the failure with which a sink counts as away, doubled with every further one
MAX_SINK_PAUSE = 30.0  # seconds
AWAY_AFTER = 3  # different events that fail in a row


def pause_after(attempts: int, retry_after: float | None = None, chance: float | None = None) -> float:
    """Return the seconds until the next attempt of an event: exponential, with jitter.

    Args:
        attempts: failed attempts so far, from 1.
        retry_after: seconds for which the receiver asked; respected up to `MAX_RETRY_AFTER`.
        chance: place in the jitter, 0 to 1, random without it: the pause is between half and all of the full one.
    """
    full = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(attempts - 1, 30))
    pause = full * (0.5 + 0.5 * (random.random() if chance is None else chance))
    return max(pause, min(retry_after or 0.0, MAX_RETRY_AFTER))


class SinkHealth:
    """The health of a sink, judged by its last answers.

    A single event that fails again and again does not count against the sink. Once `AWAY_AFTER` different events have
    failed in a row, the sink is away: then one event at a time is tried, after growing pauses, whatever number waits.
    """

    def __init__(self) -> None:
        self._failed: set[str] = set()  # ids since the last success, `AWAY_AFTER` at most
        self._failures_away = 0
        self._paused_until = 0.0  # monotonic

    @property
    def is_away(self) -> bool:
        """Whether no event gets through."""
        return len(self._failed) >= AWAY_AFTER

    def succeeded(self) -> None:
        """Note a delivery."""
        self._failed.clear()
        self._failures_away = 0
        self._paused_until = 0.0

    def failed(self, event_id: str, now: float, retry_after: float | None = None) -> None:
        """Note a failed attempt at the monotonic time `now`, and the seconds for which the receiver asked."""
        if not self.is_away:
            self._failed.add(event_id)
        if self.is_away:
            pause = min(MAX_SINK_PAUSE, FIRST_SINK_PAUSE * 2.0 ** min(self._failures_away, 30))
            self._failures_away += 1
            self._paused_until = now + max(pause, min(retry_after or 0.0, MAX_RETRY_AFTER))

    def pause(self, now: float) -> float:
        """Return the seconds from the monotonic time `now` in which nothing is to be tried."""
        return max(0.0, self._paused_until - now)

    def slots(self, limit: int) -> int:
        """Return how many events may be tried at the same time, `limit` at most."""
        return 1 if self.is_away else limit
