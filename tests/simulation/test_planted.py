"""The simulation finds defects: each of `planted.py` within 2,000 seeds, some of them in every run of the tests."""

from __future__ import annotations

import os
import re

import pytest

from tests.simulation.planted import PLANTS
from tests.simulation.redis_planted import REDIS_PLANTS
from tests.simulation.s3_planted import S3_PLANTS
from tests.simulation.test_simulation import simulate

# An exception that the server does not expect is told without a trace of violations.
FOUND = re.compile("VIOLATION|unhandled exception")

ALWAYS = ("commit_before_write", "completion_not_durable", "sync_skipped", "lock_released_before_the_last_write")
ALWAYS_IN_S3 = ("tails_deleted_before_the_object", "parts_after_a_gap_counted")
ALWAYS_WITH_REDIS = ("clock_of_the_host_instead_of_that_of_redis", "replies_of_cancelled_calls_given_to_others")


@pytest.mark.parametrize("defect", PLANTS)
def test_a_planted_defect_is_found(defect: str) -> None:
    if defect not in ALWAYS and not os.environ.get("ALL_DEFECTS"):
        pytest.skip("one of those that `make simulate-defects` plants")

    run = simulate("--plant", defect, "--seeds", "2000", "--jobs", "1")

    assert run.returncode == 1, run.stdout
    assert FOUND.search(run.stdout), run.stderr


@pytest.mark.parametrize("defect", S3_PLANTS)
def test_a_planted_defect_of_the_storage_in_s3_is_found(defect: str) -> None:
    if defect not in ALWAYS_IN_S3 and not os.environ.get("ALL_DEFECTS"):
        pytest.skip("one of those that `make simulate-defects` plants")

    run = simulate("--world", "s3", "--plant", defect, "--seeds", "2000", "--jobs", "1")

    assert run.returncode == 1, run.stdout
    assert FOUND.search(run.stdout), run.stderr


@pytest.mark.parametrize("defect", REDIS_PLANTS)
def test_a_planted_defect_of_several_hosts_is_found(defect: str) -> None:
    if defect not in ALWAYS_WITH_REDIS and not os.environ.get("ALL_DEFECTS"):
        pytest.skip("one of those that `make simulate-defects` plants")

    run = simulate("--world", "redis", "--plant", defect, "--seeds", "300", "--jobs", "1")

    assert run.returncode == 1, run.stdout
    assert FOUND.search(run.stdout), run.stderr
