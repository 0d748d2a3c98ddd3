"""The keys of a model of Redis: they expire by its own clock, and a loss takes the changes of the last moments back."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

KEPT_HISTORY = 10.0  # seconds of virtual time whose changes can be lost


@dataclass(slots=True)
class Entry:
    """The value of a key: bytes, a dictionary (hash, sorted set, set) or a list, and the time of its end.

    `expires_at` is in milliseconds of the clock of this Redis.
    """

    value: Any
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    at: float  # virtual time
    key: bytes
    before: Entry | None


@dataclass(slots=True)
class Store:
    """The keys, and the clock by which they expire.

    Attributes:
        now: returns the virtual time, in seconds.
        epoch: seconds since the epoch at virtual time 0, by the clock of this Redis; may jump.
        entries: the values; each is replaced as a whole.
        changes: number of all changes.
    """

    now: Callable[[], float]
    epoch: float
    entries: dict[bytes, Entry] = field(default_factory=dict)
    changes: int = 0
    _history: list[_Change] = field(default_factory=list)

    def microseconds(self) -> int:
        return int((self.epoch + self.now()) * 1e6)

    def milliseconds(self) -> int:
        return self.microseconds() // 1000

    def entry(self, key: bytes) -> Entry | None:
        """Return what a key stands for, unless it has expired."""
        found = self.entries.get(key)
        if found is not None and found.expires_at is not None and found.expires_at <= self.milliseconds():
            self.put(key, None)
            return None
        return found

    def value(self, key: bytes, default: Any = None) -> Any:
        """Return the value of a key, which the caller does not change."""
        found = self.entry(key)
        return default if found is None else found.value

    def copied(self, key: bytes, default: Any) -> Any:
        """Return a copy of the value of a key, for a change."""
        return copy(self.value(key, default))

    def change(self, key: bytes, value: Any) -> None:
        """Replace the value of a key, which keeps its end; an empty one removes the key."""
        found = self.entry(key)
        self.put(key, Entry(value, None if found is None else found.expires_at) if value else None)

    def put(self, key: bytes, entry: Entry | None) -> None:
        """Replace or remove a key, and remember what it was."""
        now = self.now()
        self._history.append(_Change(now, key, self.entries.pop(key, None)))
        if entry is not None:
            self.entries[key] = entry
        if self._history[0].at < now - 2 * KEPT_HISTORY:
            self._history = [change for change in self._history if change.at >= now - KEPT_HISTORY]
        self.changes += 1

    def lose(self, seconds: float) -> int:
        """Take all changes of the last seconds back; return their number."""
        begin = self.now() - seconds
        lost = 0
        while self._history and self._history[-1].at >= begin:
            change = self._history.pop()
            self.entries.pop(change.key, None)
            if change.before is not None:
                self.entries[change.key] = change.before
            lost += 1
        return lost
