"""Command line of the simulation: `python -m tests.simulation --seeds 2000`, or `--seed 17` to replay one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tests.simulation.runner import Shrunk, plant_defect, run, story
from tests.simulation.shares import Task, many
from tests.simulation.worlds import DISK, WORLDS

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
    parser.add_argument("--twice", action="store_true", help="run every seed twice, and compare both runs")
    parser.add_argument("--world", choices=WORLDS, default=DISK, help="where the bytes are")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.without, options.plant, options.world)
    seeds = range(options.first, options.first + options.seeds)
    task = Task(options.plant, options.world, options.keep_going, options.twice)
    return many(seeds, options.jobs, task)


def replay(seed: int, without: Sequence[int], defect: str, kind: str) -> int:
    plant_defect(defect)
    outcome = run(seed, without, kind)
    if outcome.violations:
        print(story(Shrunk(outcome, tuple(without)), kind))
        return 1
    print("\n".join(outcome.story))
    print(f"seed {seed}: no violation, {outcome.steps} callbacks, digest {outcome.digest:x}")
    return 0


if __name__ == "__main__":
    if os.environ.get(HASHES) != "0":
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, HASHES: "0"})
    sys.exit(main(sys.argv[1:]))
