"""Tails, objects with bytes that do not fill a part yet: names, merging and removal. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.backends.s3.layout import Tail

DELETE_BATCH_SIZE = 16  # tails deleted in one request
MAX_SUPERSEDED = 256  # names in a record


class SupersededTails:
    """Names of tails that are no longer needed, in the order in which they were superseded.

    Invariant: a tail that the committed record may name is not deletable; the names at the front are.
    """

    def __init__(self, deletable: Sequence[str], others: Sequence[str]) -> None:
        self.names = [*deletable, *others]
        self._deletable = len(deletable)
        self._deleted = 0
        self._in_snapshot = 0  # number of tails superseded until the last snapshot, deleted ones included

    def add(self, name: str) -> None:
        """Add a tail that the next record does not need."""
        self.names.append(name)

    def snapshot_taken(self) -> None:
        """Record that a record with this snapshot does not need the tails superseded so far."""
        self._in_snapshot = self._deleted + len(self.names)

    def snapshot_committed(self) -> None:
        """Make the tails deletable that the record, which now has the last snapshot, does not need."""
        self._deletable = max(self._deletable, self._in_snapshot - self._deleted)

    def next_batch(self) -> list[str]:
        """Return the names to delete now; none if they are too few for a request."""
        return self.names[: self._deletable] if self._deletable >= DELETE_BATCH_SIZE else []

    def deleted(self, names: Sequence[str], *, done: bool) -> None:
        """Remove the names of a batch if it is `done` or they are too many: the orphan cleaner finds those tails."""
        if done or len(self.names) > MAX_SUPERSEDED:
            del self.names[: len(names)]
            self._deleted += len(names)
            self._deletable = 0

    def replace(self, names: Sequence[str]) -> None:
        """Start again with these names; none is deletable before the next commit."""
        self.names = list(names)
        self._deletable = self._deleted = self._in_snapshot = 0


def tails_to_merge(tails: Sequence[Tail], start: int, end: int) -> list[Tail]:
    """Return the tails that a new tail of the bytes between these offsets replaces.

    Invariant: no tail is followed by one of its size or larger. So there are never more tails than the logarithm of the
    number of requests, and no byte is stored more often than that.
    """
    merged: list[Tail] = []
    for tail in reversed(tails):
        if tail.size > end - start:
            break
        merged.insert(0, tail)
        start = tail.start
    return merged
