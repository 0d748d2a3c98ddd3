"""The faults of a run: drawn from the seed before it begins, so that single ones can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

KINDS = {
    "kill": 4,
    "power cut": 2,
    "pause": 2,
    "shutdown": 2,
    "stall": 3,
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

    def __str__(self) -> str:
        return f"fault {self.number}: {self.kind} (process {self.target}, {self.seconds:.2f} s, {self.amount:.2f})"


def draw(rng: Random, period: float, most: int, kinds: dict[str, int]) -> list[Fault]:
    """Return faults in the order of their times."""
    count = rng.randrange(most + 1)
    times = sorted(rng.random() * period for _ in range(count))
    names, weights = list(kinds), list(kinds.values())
    return [
        Fault(
            number,
            at,
            rng.choices(names, weights)[0],
            rng.randrange(4),
            rng.choice((0.05, 0.5, 3.0, 12.0, 40.0)) * rng.random(),
            rng.random(),
        )
        for number, at in enumerate(times)
    ]
