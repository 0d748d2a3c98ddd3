"""Command line of the simulation: `python -m tests.simulation --seeds 2000`, or `--seed 17` to replay one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from tests.simulation.runner import Shrunk, plant_defect, run, story
from tests.simulation.shares import Progress, Task, many
from tests.simulation.worlds import DISK, WORLDS

LONG = 10_000  # a run of more seeds can be interrupted


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
    parser.add_argument("--world", choices=WORLDS, default=DISK, help="where the bytes and records are")
    parser.add_argument("--profile", default="", help="the profile of all runs, such as 'failed syncs'")
    parser.add_argument("--next", help="file that names the next seed, to go on from there")
    parser.add_argument("--minutes", type=float, default=0, help="begin nothing more after so many minutes")
    parser.add_argument(
        "--directed",
        nargs="?",
        const="all",
        choices=("all", *WORLDS),
        help="run the directed scenarios, of one kind of world or all, in place of seeds",
    )
    parser.add_argument("--scenario", action="append", default=[], help="run this directed one, with its story")
    options = parser.parse_args(arguments)
    if options.directed or options.scenario:
        from tests.simulation.directed import run_all

        plant_defect(options.plant)
        return run_all(options.scenario, options.directed)
    if options.seed is not None:
        return replay(options.seed, options.without, options.plant, options.world, options.profile)
    seeds = range(options.first, options.first + options.seeds)
    task = Task(options.plant, options.world, options.profile, options.keep_going, options.twice)
    path = options.next or (f".simulation-{options.world}" if len(seeds) > LONG else "")
    return many(seeds, options.jobs, task, Progress(path), options.minutes * 60)


def replay(seed: int, without: Sequence[int], defect: str, kind: str, profile: str) -> int:
    plant_defect(defect)
    outcome = run(seed, without, kind, profile)
    if outcome.violations:
        print(story(Shrunk(outcome, tuple(without)), kind, profile))
        return 1
    print("\n".join(outcome.story))
    print(f"seed {seed}: no violation, {outcome.steps} callbacks, digest {outcome.digest:x}")
    return 0
