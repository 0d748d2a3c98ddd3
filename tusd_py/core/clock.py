"""Clocks: those that records are stamped with, and the one that they are judged by.

A wall clock can be wrong, jump, and differ from that of another host. So records are stamped with the wall clock of
their store (of this host, or of Redis), and judged by a `SteadyClock`, which does not follow a jump forward at once.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Protocol

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MIN_HOLD = 3600.0  # seconds
CATCHING_UP = 0.001  # seconds in a second that the steady clock may gain on the monotonic one
JUMP = 5.0  # seconds; less is a correction, not a jump
PAUSE = 180.0  # seconds between two saved times that need no explanation


class Clock(Protocol):
    """A source of time."""

    def wall(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds since some moment, never set."""

    def era(self) -> str:
        """The name of the time in which values of `monotonic` can be compared, also between processes; empty: none."""


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
    """The wall clock of another machine, as last heard of; until then that of this host."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset: float | None = None  # of the other wall clock to the monotonic one of this host

    def heard(self, wall: float, asked_at: float) -> None:
        """Set this clock to the time `wall` of the other one; `asked_at` is the monotonic time before it was asked."""
        self._offset = wall - (asked_at + self._clock.monotonic()) / 2

    def wall(self) -> float:
        """Return the seconds since the epoch on the other machine."""
        if self._offset is None:
            return self._clock.wall()
        return self._clock.monotonic() + self._offset

    def monotonic(self) -> float:
        """Return the monotonic time of this host, in seconds."""
        return self._clock.monotonic()

    def era(self) -> str:
        """Return nothing: monotonic times of different hosts cannot be compared."""
        return ""  # the other machine is asked by many hosts, each with a monotonic clock of its own


class SteadyClock:
    """A wall clock, and the time that records are judged by, which is never ahead of it.

    `steady` goes on at its pace when the wall clock jumps forward, and follows only when that has lasted for `hold`
    seconds, so that every client had the time to be heard of after the jump. A jump back is followed at once: later
    than necessary nothing is removed too early. Time in which no server ran does not count either, until it is as old.
    """

    def __init__(self, clock: Clock, hold: float = MIN_HOLD) -> None:
        self._clock = clock
        self._hold = max(hold, MIN_HOLD)
        self._looked_at = clock.monotonic()
        self._offset: float | None = None  # of the steady time to the monotonic clock
        self._gap = 0.0  # by which the wall clock was ahead at the last look
        self._held_since: float | None = None

    def wall(self) -> float:
        """The time to stamp records with."""
        return self._clock.wall()

    def monotonic(self) -> float:
        """Return the monotonic time of the clock underneath, in seconds."""
        return self._clock.monotonic()

    def era(self) -> str:
        """Return the era of the clock underneath."""
        return self._clock.era()

    def steady(self) -> float:
        """The time to judge records by, in seconds since the epoch."""
        now = self._clock.monotonic()
        self._look(now, self._clock.wall() - now)
        assert self._offset is not None
        return now + self._offset

    @property
    def is_held(self) -> bool:
        """Whether the wall clock was ahead of what is believed when it was last looked at."""
        return self._held_since is not None

    def _look(self, now: float, offset: float) -> None:
        elapsed, self._looked_at = now - self._looked_at, now
        gap = 0.0 if self._offset is None else offset - self._offset
        if gap <= CATCHING_UP * elapsed or self._offset is None:
            self._offset, self._gap, self._held_since = offset, 0.0, None
            return
        self._offset += CATCHING_UP * elapsed
        if self._held_since is None or gap > self._gap + JUMP:
            self._held_since = now
        if now - self._held_since >= self._hold:
            self._offset, gap, self._held_since = offset, 0.0, None
        self._gap = gap

    def save(self) -> str:
        """The state of this clock as text, for a process that starts later."""
        steady = self.steady()
        held_for = None if self._held_since is None else self._looked_at - self._held_since
        values = {"era": self.era(), "monotonic": self._looked_at, "steady": steady, "held": held_for}
        return json.dumps(values)

    def restore(self, text: str) -> None:
        """Go on from a saved state, as if the clock had run since; a text that is none changes nothing."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(text)
            era, then, steady = str(values["era"]), float(values["monotonic"]), float(values["steady"])
            held_for = None if values["held"] is None else float(values["held"])
            now = self._clock.monotonic()
            if era and era == self.era() and then <= now:
                self._offset, self._held_since = steady - then, None if held_for is None else then - held_for
            elif self._clock.wall() - steady > PAUSE:
                self._offset, self._held_since = steady - now, None
            else:
                return
            self._looked_at = now
            self._gap = self._clock.wall() - now - self._offset


@cache
def _boot_id() -> str:
    """A text that differs after every start of the system; empty if there is none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
