"""The lag of live progress, also of uploads that other processes and other hosts receive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.progress.lag import measure
from tests.support.harness import serving
from tests.support.hosts import several_hosts
from tests.support.redis_server import shared_redis_url
from tests.support.timing import promised

LAG = 1.0  # seconds


def assert_small(lags: list[float]) -> None:
    ordered = sorted(lags)
    worst, median, late = ordered[-1], ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    print(f"\nlag of {len(lags)} pieces: median {median:.3f} s, 99th percentile {late:.3f} s, maximum {worst:.3f} s")
    assert worst < LAG or worst < promised(LAG, moments=5), f"a listener heard of bytes {worst:.2f} s later"


# `make lag` makes them as many as the figure that is promised.
UPLOADS, PIECES = int(os.environ.get("LAG_UPLOADS", "12")), int(os.environ.get("LAG_PIECES", "8"))


@pytest.mark.long
async def test_listeners_of_other_processes_of_the_host_hear_within_a_second(tmp_path: Path) -> None:
    with serving(tmp_path, workers=3) as server:
        assert_small(await measure([server.port], [server.port], uploads=UPLOADS, pieces=PIECES))


@pytest.mark.long
async def test_listeners_of_other_hosts_hear_within_a_second(tmp_path: Path) -> None:
    with several_hosts(tmp_path, shared_redis_url(), redis_prefix=f"{tmp_path.name}:") as hosts:
        ports = [host.port for host in hosts]
        listeners = [*ports[1:], ports[0]]
        assert_small(await measure(ports, listeners, uploads=UPLOADS, pieces=PIECES))
