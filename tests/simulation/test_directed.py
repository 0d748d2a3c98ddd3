"""The directed scenarios of the simulation, in processes of their own, as in `test_simulation.py`."""

from __future__ import annotations

import pytest

from tests.simulation.test_simulation import simulate
from tests.simulation.worlds import WORLDS


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_directed_scenarios_meet_no_violation(world: str) -> None:
    run = simulate("--directed", world)

    assert run.returncode == 0, run.stdout + run.stderr


def test_directed_scenario_runs_the_same_way_each_time() -> None:
    scenarios = ("a_client_uploads_and_downloads", "contract_of_local_locks")
    first, second = (simulate(*(f"--scenario={name}" for name in scenarios)) for _ in range(2))

    assert first.stdout == second.stdout
    assert "digest" in first.stdout, first.stderr
