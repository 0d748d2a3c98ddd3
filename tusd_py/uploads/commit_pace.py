"""The seconds between two commits of an append, by what its latest commits have taken. No I/O."""

from __future__ import annotations

WATCHED_INTERVAL = 0.4  # seconds between two commits of an upload that somebody watches
COMMIT_SHARE = 4  # times the seconds of a commit until the next one, so that slow storages are not busy with commits


class CommitPace:
    """The pace of one append."""

    __slots__ = ("_last", "_usual")

    def __init__(self) -> None:
        self._last = 0.0  # seconds of the last commit
        self._usual = 0.0  # of the faster one of the last two: a single slow one does not make a slow storage

    def committed(self, seconds: float) -> None:
        """Take note of the time of a commit."""
        self._usual, self._last = min(self._last, seconds), seconds

    def watched_interval(self, interval: float) -> float:
        """Return the seconds until the next commit of an upload that somebody watches; `interval` is that of others."""
        return min(interval, max(WATCHED_INTERVAL, COMMIT_SHARE * self._usual))
