"""Tails that are no longer needed, and since when: a tail that a record may still name must stay."""

from __future__ import annotations

from collections.abc import Sequence

DELETE_BATCH_SIZE = 16  # tails deleted in one request
MOST = 256


class SupersededTails:
    """Names in the order in which they were dropped; those at the front may be deleted."""

    def __init__(self, deletable: Sequence[str], others: Sequence[str]) -> None:
        self.names = [*deletable, *others]
        self._deletable = len(deletable)
        self._deleted = 0
        self._counts: dict[int, int] = {}  # how many had ever been dropped when a layout told of this offset

    def add(self, name: str) -> None:
        self.names.append(name)

    def told(self, offset: int) -> None:
        """A layout that names them goes with a record at this offset."""
        self._counts.setdefault(offset, self._deleted + len(self.names))

    def committed(self, offset: int) -> None:
        """The record is at this offset now: what it did not need is needed by nothing."""
        count = self._counts.get(offset, 0) - self._deleted
        self._deletable = max(self._deletable, count)

    def batch(self) -> list[str]:
        """Return the names to delete now, if they are worth a request."""
        return self.names[: self._deletable] if self._deletable >= DELETE_BATCH_SIZE else []

    def deleted(self, names: Sequence[str], *, done: bool) -> None:
        """If it was not done it is tried again, unless there are too many: then the janitor finds them."""
        if done or len(self.names) > MOST:
            del self.names[: len(names)]
            self._deleted += len(names)
            self._deletable = 0

    def replace(self, names: Sequence[str]) -> None:
        """Begin anew; nothing is deletable before the next commit."""
        self.names = list(names)
        self._deletable = self._deleted = 0
        self._counts.clear()
