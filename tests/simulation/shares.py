"""Many seeds in several processes."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from tests.simulation.runner import plant_defect, run_all, shrink, story

Share: TypeAlias = tuple[range, str, str, bool]
Result: TypeAlias = tuple[list[str], Counter[str], float]


def many(seeds: range, jobs: int, defect: str, kind: str, *, keep_going: bool) -> int:
    """Run the seeds and print what failed, counts and the time; return the exit code."""
    began = time.monotonic()
    shares = [seeds[start::jobs] for start in range(min(jobs, len(seeds)))]
    failed = 0
    counts: Counter[str] = Counter()
    seconds = 0.0
    for share in _results([(share, defect, kind, keep_going) for share in shares]):
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
    seeds, defect, kind, keep_going = work
    plant_defect(defect)
    failures: list[str] = []
    counts: Counter[str] = Counter()
    seconds = 0.0
    for outcome in run_all(seeds, kind):
        counts.update(outcome.counts)
        seconds += outcome.seconds
        if outcome.violations:
            failures.append(story(shrink(outcome, kind), kind))
            if not keep_going:
                break
    return failures, counts, seconds
