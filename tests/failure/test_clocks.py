"""Real servers whose wall clocks are wrong, jump, and disagree."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.failure.test_identity import TUS, begun, finishes, offset
from tests.faults.clocks import DAY, PreloadedClock
from tests.support.harness import ServerProcess
from tests.support.redis_server import shared_redis_url
from tests.support.wire.requests import request

SWEEPS = 5  # to wait for
INTERVAL = 0.2  # seconds between them
OPTIONS: dict[str, Any] = {"sweep_interval": f"{INTERVAL}s", "expires_after": "1d"}


def several_sweeps() -> None:
    time.sleep(SWEEPS * INTERVAL)  # nothing is to happen, so there is nothing to wait for


def test_a_clock_two_days_ahead_for_a_moment_removes_no_upload(tmp_path: Path, clock_library: Path) -> None:
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    with ServerProcess(tmp_path / "uploads", env=clock.env, **OPTIONS) as server:
        path = begun(server)
        several_sweeps()
        clock.set(2 * DAY)
        several_sweeps()
        assert offset(server, path) == 100
        clock.set(0)
        several_sweeps()
        assert finishes(server, path)


def test_a_server_that_starts_while_the_clock_is_ahead_removes_no_upload(tmp_path: Path, clock_library: Path) -> None:
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    with ServerProcess(tmp_path / "uploads", env=clock.env, **OPTIONS) as server:
        path = begun(server)
        server.kill()
        clock.set(2 * DAY)
        server.restart()
        several_sweeps()
        assert offset(server, path) == 100
        clock.set(0)
        assert finishes(server, path)


def test_a_clock_that_was_behind_and_is_corrected_removes_no_active_upload(tmp_path: Path, clock_library: Path) -> None:
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    with ServerProcess(tmp_path / "uploads", env=clock.env, **OPTIONS) as server:
        early = begun(server)
        clock.set(-2 * DAY)
        late = begun(server)
        several_sweeps()
        clock.set(0)
        several_sweeps()
        for path in (early, late):
            assert finishes(server, path)


def test_a_clock_that_is_behind_after_a_crash_locks_nobody_out(tmp_path: Path, clock_library: Path) -> None:
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    with ServerProcess(tmp_path / "uploads", env=clock.env, **OPTIONS) as server:
        path = begun(server)
        server.kill()
        for file in (tmp_path / "uploads" / ".tusd-py").glob("locks*"):
            file.unlink()  # a power cut may take what was never synced
        clock.set(-2 * DAY)
        server.restart()
        assert offset(server, path) == 100
        assert finishes(server, path)


def test_a_host_a_day_and_a_half_ahead_removes_no_upload_of_the_others(tmp_path: Path, clock_library: Path) -> None:
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    options = OPTIONS | {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    clock.set(1.5 * DAY)
    with (
        ServerProcess(tmp_path / "uploads", **options) as right,
        ServerProcess(tmp_path / "uploads", env=clock.env, **options) as ahead,
    ):
        paths = [begun(right), begun(ahead)]
        several_sweeps()
        for one, other in ((right, ahead), (ahead, right)):
            for path in paths:
                assert offset(one, path) == offset(other, path) == 100
        clock.set(-1.5 * DAY)
        paths += [begun(right), begun(ahead)]
        several_sweeps()
        for path in paths:
            assert finishes(ahead, path)
            assert request(right.port, "HEAD", path, TUS).status == 200
