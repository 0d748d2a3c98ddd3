"""The directed scenarios of the simulation, in processes of their own, as in `test_simulation.py`."""

from __future__ import annotations

import pytest

from tests.simulation.test_simulation import simulate


@pytest.mark.long
def test_directed_scenarios_meet_no_violation_and_run_the_same_way_each_time() -> None:
    first, second = (simulate("--directed") for _ in range(2))

    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout == second.stdout
