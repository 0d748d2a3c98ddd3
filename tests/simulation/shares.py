"""Many seeds in several processes."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

from tests.simulation.runner import plant_defect, run, run_all, shrink, story
from tests.simulation.world import Outcome
from tests.simulation.worlds import DISK


@dataclass(frozen=True, slots=True)
class Task:
    """The way to run seeds."""

    defect: str = ""
    world: str = DISK
    keep_going: bool = False
    twice: bool = False


Share: TypeAlias = tuple[range, Task]
Result: TypeAlias = tuple[list[str], Counter[str], float]


def many(seeds: range, jobs: int, task: Task) -> int:
    """Run the seeds and print what failed, counts and the time; return the exit code."""
    began = time.monotonic()
    shares = [seeds[start::jobs] for start in range(min(jobs, len(seeds)))]
    failed = 0
    counts: Counter[str] = Counter()
    seconds = 0.0
    for share in _results([(share, task) for share in shares]):
        counts.update(share[1])
        seconds += share[2]
        for text in share[0]:
            failed += 1
            print(text, end="\n\n")
    spent = time.monotonic() - began
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    print(f"{len(seeds)} seeds, {seconds / 3600:.1f} hours of virtual time in {spent:.0f} s: {failed} failed")
    return 1 if failed else 0


def _results(shares: list[Share]) -> Iterator[Result]:
    if len(shares) == 1:
        yield _run_share(shares[0])
        return
    with multiprocessing.get_context("spawn").Pool(len(shares)) as pool:
        yield from pool.imap_unordered(_run_share, shares)


def _run_share(work: Share) -> Result:
    """Return the stories of the failures of some seeds, the counts and the seconds of virtual time."""
    seeds, task = work
    plant_defect(task.defect)
    failures: list[str] = []
    counts: Counter[str] = Counter()
    seconds = 0.0
    for outcome in run_all(seeds, task.world):
        counts.update(outcome.counts)
        seconds += outcome.seconds
        if task.twice and (difference := _difference(outcome, run(outcome.seed, (), task.world))):
            failures.append(difference)
        if outcome.violations:
            failures.append(story(shrink(outcome, task.world), task.world))
        if failures and not task.keep_going:
            break
    return failures, counts, seconds


def _difference(first: Outcome, second: Outcome) -> str:
    """Return a text about the first difference between two runs of a seed; empty if they are the same."""
    if (first.digest, first.steps, first.story) == (second.digest, second.steps, second.story):
        return ""
    pairs = zip_longest(first.story, second.story, fillvalue="(the end)")
    one, other = next(((one, other) for one, other in pairs if one != other), ("the same story", "other callbacks"))
    return f"seed {first.seed} runs differently the second time:\n{one}\n{other}"
