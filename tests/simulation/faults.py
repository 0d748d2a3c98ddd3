"""The faults of a run: drawn from the seed before it begins, so that single ones can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

DEATHS = ("kill", "power cut")  # these may wait for a change of a file
MAX_CHANGES = 12

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
    """Something that happens `at` seconds after the start, and for `seconds`, to the process or host `target`."""

    number: int
    at: float
    kind: str
    target: int
    seconds: float
    amount: float
    after: int = 0  # changes of files that come first
    after_cut: bool = False  # they are counted from the next time that a file is cut off

    def __str__(self) -> str:
        text = f"fault {self.number}: {self.kind} (process {self.target}, {self.seconds:.2f} s, {self.amount:.2f})"
        return f"{text} after {'a cut and ' * self.after_cut}{self.after} changes" if self.after else text


def draw(rng: Random, period: float, most: int, kinds: dict[str, int]) -> list[Fault]:
    """Return faults in the order of their times."""
    count = rng.randrange(most + 1)
    times = sorted(rng.random() * period for _ in range(count))
    names, weights = list(kinds), list(kinds.values())
    return [_draw_one(rng, number, at, rng.choices(names, weights)[0]) for number, at in enumerate(times)]


def _draw_one(rng: Random, number: int, at: float, kind: str) -> Fault:
    seconds = rng.choice((0.05, 0.5, 3.0, 12.0, 40.0)) * rng.random()
    waits = kind in DEATHS and rng.random() < 0.6
    return Fault(
        number,
        at,
        kind,
        rng.randrange(4),
        seconds,
        rng.random(),
        after=rng.randrange(1, MAX_CHANGES + 1) if waits else 0,
        after_cut=waits and rng.random() < 0.4,
    )
