"""Command line of the simulation: `python -m tests.simulation --seeds 2000`, or `--seed 17` to replay one."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

HASHES = "PYTHONHASHSEED"  # the order of sets of texts depends on it


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=2000, help="number of seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one and print its story")
    parser.add_argument("--without", type=int, action="append", default=[], help="leave out this fault")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument("--plant", default="", help="plant this defect first (tests/simulation/planted.py)")
    parser.add_argument("--keep-going", action="store_true", help="report every failing seed, not the first only")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.without, options.plant)
    seeds = range(options.first, options.first + options.seeds)
    return many(seeds, options.jobs, options.plant, keep_going=options.keep_going)


def replay(seed: int, without: Sequence[int], defect: str) -> int:
    from tests.simulation.runner import Shrunk, plant_defect, run, story

    plant_defect(defect)
    outcome = run(seed, without)
    if outcome.violations:
        print(story(Shrunk(outcome, tuple(without))))
        return 1
    print("\n".join(outcome.story))
    print(f"seed {seed}: no violation, {outcome.steps} callbacks, digest {outcome.digest:x}")
    return 0


def many(seeds: range, jobs: int, defect: str, *, keep_going: bool) -> int:
    began = time.monotonic()
    shares = [seeds[start::jobs] for start in range(min(jobs, len(seeds)))]
    failed = 0
    counts: Counter[str] = Counter()
    seconds = 0.0
    with multiprocessing.get_context("spawn").Pool(len(shares)) as pool:
        for share in pool.imap_unordered(_run_share, [(share, defect, keep_going) for share in shares]):
            counts.update(share[1])
            seconds += share[2]
            for text in share[0]:
                failed += 1
                print(text, end="\n\n")
    spent = time.monotonic() - began
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    print(f"{len(seeds)} seeds, {seconds / 3600:.1f} hours of virtual time in {spent:.0f} s: {failed} failed")
    return 1 if failed else 0


def _run_share(work: tuple[range, str, bool]) -> tuple[list[str], Counter[str], float]:
    from tests.simulation.runner import plant_defect, run_all, shrink, story

    seeds, defect, keep_going = work
    plant_defect(defect)
    failures: list[str] = []
    counts: Counter[str] = Counter()
    seconds = 0.0
    for outcome in run_all(seeds):
        counts.update(outcome.counts)
        seconds += outcome.seconds
        if outcome.violations:
            failures.append(story(shrink(outcome)))
            if not keep_going:
                break
    return failures, counts, seconds


if __name__ == "__main__":
    if os.environ.get(HASHES) != "0":
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, HASHES: "0"})
    sys.exit(main(sys.argv[1:]))
