"""Clocks: one that stamps records, and one that decides whether records have expired.

A wall clock can be wrong, jump, and differ from that of another host. Records are therefore stamped with the wall clock
of their store (of this host, or of Redis), and judged by a `SteadyClock`, which does not follow a jump forward at once.
"""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Protocol

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MIN_HOLD = 3600.0  # seconds
CATCH_UP_RATE = 0.001  # seconds per second that the steady clock may gain on the monotonic clock
JUMP = 5.0  # seconds; a smaller change of the wall clock is a correction, not a jump
MAX_PAUSE = 180.0  # seconds after a saved time within which a restart needs no hold


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as a time in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Clock(Protocol):
    """A source of time."""

    def wall(self) -> float:
        """Return the seconds since the epoch."""

    def monotonic(self) -> float:
        """Return the seconds since a fixed moment; this time is never set."""

    def era(self) -> str:
        """Return the name of the span in which processes can compare values of `monotonic`; empty if there is none."""


class SystemClock:
    """The clock of this host."""

    def wall(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return the seconds since the boot of this host."""
        return time.monotonic()

    def era(self) -> str:
        """Return the id of the boot."""
        return _boot_id()


class RemoteClock:
    """The wall clock of another machine, as last asked; that of this host before the first answer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset: float | None = None  # other wall clock minus monotonic clock of this host
        self._error = 0.0  # seconds that this clock may be ahead of the other one

    def synchronize(self, wall: float, asked_at: float) -> None:
        """Set this clock to the answer `wall` of the other one; `asked_at` is the monotonic time of the question."""
        now = self._clock.monotonic()
        self._offset = wall - (asked_at + now) / 2
        self._error = (now - asked_at) / 2

    def wall(self) -> float:
        """Return the seconds since the epoch on the other machine."""
        if self._offset is None:
            return self._clock.wall()
        return self._clock.monotonic() + self._offset

    def earliest(self) -> float:
        """Return the time on the other machine at the earliest, however long its last answer was on the way."""
        return self.wall() - self._error

    def monotonic(self) -> float:
        """Return the monotonic time of this host, in seconds."""
        return self._clock.monotonic()

    def era(self) -> str:
        """Return nothing: monotonic times of different hosts cannot be compared."""
        return ""  # each host that asks the other machine has a monotonic clock of its own


class SteadyClock:
    """A wall clock, and a time to judge records by that is never ahead of it.

    `steady` keeps its pace when the wall clock jumps forward, and follows only when the jump has lasted for `hold`
    seconds, so that every client had the time to send something. A jump back is followed at once: it can only delay a
    removal. Time in which no server ran does not count either, until it is as old.
    """

    def __init__(self, clock: Clock, hold: float = MIN_HOLD) -> None:
        self._clock = clock
        self._hold = max(hold, MIN_HOLD)
        self._last_read_at = clock.monotonic()
        self._offset: float | None = None  # steady time minus monotonic clock
        self._gap = 0.0  # seconds by which the wall clock was ahead at the last read
        self._held_since: float | None = None

    def wall(self) -> float:
        """Return the time to stamp records with, in seconds since the epoch."""
        return self._clock.wall()

    def monotonic(self) -> float:
        """Return the monotonic time of the underlying clock, in seconds."""
        return self._clock.monotonic()

    def era(self) -> str:
        """Return the era of the underlying clock."""
        return self._clock.era()

    def steady(self) -> float:
        """Return the time to judge records by, in seconds since the epoch."""
        now = self._clock.monotonic()
        self._advance(now, self._clock.wall() - now)
        assert self._offset is not None
        return now + self._offset

    @property
    def is_held(self) -> bool:
        """Whether the wall clock was ahead of the steady time at the last read."""
        return self._held_since is not None

    def _advance(self, now: float, offset: float) -> None:
        elapsed, self._last_read_at = now - self._last_read_at, now
        gap = 0.0 if self._offset is None else offset - self._offset
        if gap <= CATCH_UP_RATE * elapsed or self._offset is None:
            self._offset, self._gap, self._held_since = offset, 0.0, None
            return
        self._offset += CATCH_UP_RATE * elapsed
        if self._held_since is None or gap > self._gap + JUMP:
            self._held_since = now
        if now - self._held_since >= self._hold:
            self._offset, gap, self._held_since = offset, 0.0, None
        self._gap = gap

    def save(self) -> str:
        """Return the state of this clock as text, for a process that starts later."""
        steady = self.steady()
        held_for = None if self._held_since is None else self._last_read_at - self._held_since
        values = {"era": self.era(), "monotonic": self._last_read_at, "steady": steady, "held": held_for}
        return json.dumps(values)

    def restore(self, text: str) -> None:
        """Continue from a saved state, as if the clock had run since; ignore an invalid text."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(text)
            era, then, steady = str(values["era"]), float(values["monotonic"]), float(values["steady"])
            held_for = None if values["held"] is None else float(values["held"])
            now = self._clock.monotonic()
            if era and era == self.era() and then <= now:
                self._offset, self._held_since = steady - then, None if held_for is None else then - held_for
            elif self._clock.wall() - steady > MAX_PAUSE:
                self._offset, self._held_since = steady - now, None
            else:
                return
            self._last_read_at = now
            self._gap = self._clock.wall() - now - self._offset


def _boot_id() -> str:
    """Return an id that differs after every boot of the system; empty if there is none."""
    with contextlib.suppress(OSError):  # which may pass, as of too many open files
        return _read_boot_id()
    return ""


@cache
def _read_boot_id() -> str:
    return BOOT_ID.read_text().strip()
