"""The faults of a run: drawn from the seed before it begins, so that single ones can be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from tests.simulation.moments import CHANGE, CUT, FAILED_SYNC, HANG
from tests.simulation.profiles import Profile

WAITING = ("kill", "power cut", "power off", "pause", "shutdown")  # these may wait for a moment
MAX_CHANGES = 12
LATER = {CUT: 0.9, FAILED_SYNC: 0.25, HANG: 0.25}  # shares of the faults that wait for changes after a moment too

KINDS = {
    "kill": 4,
    "power cut": 2,
    "pause": 2,
    "shutdown": 2,
    "stall": 3,
    "hang": 3,
    "sync fails": 2,
    "write fails": 1,
    "full": 1,
    "away": 1,
    "clock": 1,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens `at` seconds after the start, and for `seconds`, to the process or host `target`.

    One with a `moment` or `changes` waits from then on for the next such moment, and for so many changes of files after
    it; if it concerns a process, it is the one in whose call its time has come.
    """

    number: int
    at: float
    kind: str
    target: int
    seconds: float
    amount: float
    moment: str = ""
    changes: int = 0

    def __str__(self) -> str:
        text = f"fault {self.number}: {self.kind} (process {self.target}, {self.seconds:.2f} s, {self.amount:.2f})"
        waits = [f"the next {self.moment}"] if self.moment else []
        waits += [f"{self.changes} changes"] if self.changes else []
        return f"{text} after {' and '.join(waits)}" if waits else text

    @property
    def waits(self) -> bool:
        return bool(self.moment or self.changes)


def draw(rng: Random, period: float, profile: Profile, kinds: Mapping[str, int]) -> list[Fault]:
    """Return faults in the order of their times; of these kinds, unless the profile has its own."""
    count = rng.randrange(profile.fewest_faults, profile.most_faults + 1)
    times = sorted(rng.random() * period for _ in range(count))
    weights = profile.kinds or kinds
    return [_draw_one(rng, number, at, _choose(rng, weights), profile) for number, at in enumerate(times)]


def _choose(rng: Random, weights: Mapping[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw_one(rng: Random, number: int, at: float, kind: str, profile: Profile) -> Fault:
    seconds = rng.choice(profile.seconds) * rng.random()
    fault = Fault(number, at, kind, rng.randrange(4), seconds, rng.random())
    if kind not in WAITING or rng.random() >= profile.waits:
        return fault
    moment = _choose(rng, profile.moments)
    changes = rng.randrange(1, MAX_CHANGES + 1)
    if moment == CHANGE:
        return replace(fault, changes=changes)
    return replace(fault, moment=moment, changes=changes if rng.random() < LATER.get(moment, 0.5) else 0)
