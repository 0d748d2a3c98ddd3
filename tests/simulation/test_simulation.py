"""The simulation as a test: in processes of its own, since it replaces modules under the code of the server."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.worlds import WORLDS

SEEDS = {"disk": "200", "s3": "100", "s3-redis": "60", "redis": "80", "memory": "80"}
# An upload expires just before the end; a sync fails in a completion whose bytes are synced; one write takes a part of
# a completion record. A final upload is asked for after a failover of Redis has taken back one of its parts.
FOUND = (("disk", "442"), ("disk", "99"), ("disk", "518"), ("redis", "2139"), ("redis", "1067"), ("s3-redis", "32"))


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


@pytest.mark.parametrize("world", WORLDS)
def test_simulation_runs_the_same_seed_twice_in_the_same_way(world: str) -> None:
    first, second = (simulate("--world", world, "--seed", "3") for _ in range(2))

    assert first.stdout == second.stdout
    assert "digest" in first.stdout, first.stderr


@pytest.mark.parametrize("world", WORLDS)
def test_simulation_runs_seeds_twice_in_one_process_in_the_same_way(world: str) -> None:
    run = simulate("--world", world, "--seeds", "12", "--jobs", "1", "--twice")

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(("world", "seed"), FOUND)
def test_a_seed_that_has_failed_meets_no_violation(world: str, seed: str) -> None:
    run = simulate("--world", world, "--seed", seed)

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_seeds_of_the_simulation_meet_no_violation(world: str) -> None:
    run = simulate("--world", world, "--seeds", os.environ.get("SEEDS", SEEDS[world]), "--jobs", "1")

    assert run.returncode == 0, run.stdout + run.stderr
