"""The lag of live progress, also of uploads that other processes and other hosts receive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.progress.lag import measure
from tests.support.harness import serving
from tests.support.timing import promised

LAG = 1.0  # seconds


def assert_small(lags: list[float]) -> None:
    worst = max(lags)
    assert worst < LAG or worst < promised(LAG, moments=5), f"a listener heard of bytes {worst:.2f} s later"


@pytest.mark.long
async def test_listeners_of_other_processes_of_the_host_hear_within_a_second(tmp_path: Path) -> None:
    with serving(tmp_path, workers=3) as server:
        assert_small(await measure([server.port], [server.port], uploads=12, pieces=8))
