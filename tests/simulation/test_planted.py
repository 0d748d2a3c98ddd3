"""The simulation finds defects: some of them in every run of the tests, all by `make simulate-defects`."""

from __future__ import annotations

import pytest

from tests.simulation.defects import LIMIT, VIOLATION, all_defects, known_seeds

DEFECTS = all_defects()
ALWAYS = (
    "commit_before_write",
    "completion_not_durable",
    "sync_skipped",
    "lock_released_before_the_last_write",
    "tails_deleted_before_the_object",
    "parts_after_a_gap_counted",
    "clock_of_the_host_instead_of_that_of_redis",
    "replies_of_cancelled_calls_given_to_others",
)


@pytest.mark.parametrize("name", ALWAYS)
def test_a_planted_defect_is_found(name: str) -> None:
    run = DEFECTS[name].search(0, LIMIT, 0)

    assert run.returncode == 1, run.stdout
    assert VIOLATION.search(run.stdout), run.stderr


def test_every_defect_with_a_noted_seed_is_still_planted() -> None:
    assert known_seeds().keys() <= DEFECTS.keys()
