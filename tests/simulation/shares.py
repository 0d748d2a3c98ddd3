"""Many seeds in several processes, in shares; a run that was interrupted goes on where it was."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.simulation.runner import plant_defect, run, run_all, shrink, story, warm_up
from tests.simulation.world import Outcome
from tests.simulation.worlds import DISK

SHARE = 25  # seeds that a process runs at a time
AHEAD = 2  # shares of each process that wait


@dataclass(frozen=True, slots=True)
class Task:
    """The way to run seeds.

    Attributes:
        defect: planted first; empty for none.
        world: the kind of the world.
        profile: of all runs; empty if each seed draws one.
        keep_going: whether every failing seed is told of, not the first only.
        twice: whether every seed is run twice, and both runs compared.
    """

    defect: str = ""
    world: str = DISK
    profile: str = ""
    keep_going: bool = False
    twice: bool = False


@dataclass(slots=True)
class Result:
    """The stories of failures of some seeds, counts, and seconds of virtual time."""

    seeds: range
    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Progress:
    """A file with the next seed, from which an interrupted run goes on; without a path nothing is noted."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None

    def rest(self, seeds: range) -> range:
        """Return the seeds that are left."""
        if self._path is None or not self._path.exists():
            return seeds
        left = range(max(seeds.start, int(self._path.read_text(encoding="utf-8"))), seeds.stop)
        print(f"goes on at seed {left.start}, which {self._path} names", flush=True)
        return left

    def note(self, seed: int) -> None:
        """Note the next seed."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_name(f"{self._path.name}.new")
            beside.write_text(f"{seed}\n", encoding="utf-8")
            beside.replace(self._path)

    def end(self) -> None:
        """Forget the file: all seeds were run."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def many(seeds: range, jobs: int, task: Task, progress: Progress, seconds: float) -> int:
    """Run the seeds, for at most so many seconds if not 0; print what failed and the counts; return the exit code."""
    began = time.monotonic()
    left = progress.rest(seeds)
    total, failed, next_seed = Result(left), 0, left.start
    for result in _results(left, jobs, task, began + seconds if seconds else None):
        total.counts.update(result.counts)
        total.seconds += result.seconds
        failed += len(result.failures)
        for text in result.failures:
            print(text, end="\n\n", flush=True)
        if result.failures and not task.keep_going:
            break
        next_seed = result.seeds.stop
        progress.note(next_seed)
    if next_seed >= seeds.stop:
        progress.end()
    spent = time.monotonic() - began
    print(", ".join(f"{name}: {count}" for name, count in sorted(total.counts.items())))
    done = next_seed - left.start
    print(f"{done} seeds, {total.seconds / 3600:.1f} hours of virtual time in {spent:.0f} s: {failed} failed")
    return 1 if failed else 0


def _results(seeds: range, jobs: int, task: Task, end: float | None) -> Iterator[Result]:
    """Yield the results of shares of the seeds in their order; begin none after the time `end`."""
    shares = (seeds[start : start + SHARE] for start in range(0, len(seeds), SHARE))
    plant_defect(task.defect)
    if jobs == 1:
        for share in shares:
            if end is not None and time.monotonic() >= end:
                return
            yield _run_share(share, task)
        return
    warm_up(task.world)
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        waiting: deque[Any] = deque()
        for share in shares:
            if end is not None and time.monotonic() >= end:
                break
            waiting.append(pool.apply_async(_run_share, (share, task)))
            if len(waiting) >= AHEAD * jobs:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def _run_share(seeds: range, task: Task) -> Result:
    result = Result(seeds)
    for outcome in run_all(seeds, task.world, task.profile):
        result.counts.update(outcome.counts)
        result.seconds += outcome.seconds
        if task.twice and (difference := _difference(outcome, run(outcome.seed, (), task.world, task.profile))):
            result.failures.append(difference)
        if outcome.violations:
            result.failures.append(story(shrink(outcome, task.world, task.profile), task.world, task.profile))
        if result.failures and not task.keep_going:
            break
    return result


def _difference(first: Outcome, second: Outcome) -> str:
    """Return a text about the first difference between two runs of a seed; empty if they are the same."""
    if (first.digest, first.steps, first.story) == (second.digest, second.steps, second.story):
        return ""
    pairs = zip_longest(first.story, second.story, fillvalue="(the end)")
    one, other = next(((one, other) for one, other in pairs if one != other), ("the same story", "other callbacks"))
    return f"seed {first.seed} runs differently the second time:\n{one}\n{other}"
