"""The simulation as a test: in processes of its own, since it replaces modules under the code of the server."""

from __future__ import annotations

import os
import subprocess
import sys


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


def test_simulation_runs_the_same_seed_twice_in_the_same_way() -> None:
    first, second = simulate("--seed", "3"), simulate("--seed", "3")

    assert first.stdout == second.stdout
    assert "digest" in first.stdout, first.stderr


def test_seeds_of_the_simulation_meet_no_violation() -> None:
    run = simulate("--seeds", os.environ.get("SEEDS", "200"), "--jobs", "1")

    assert run.returncode == 0, run.stdout + run.stderr
