"""Before a shutdown begins, a load balancer gets time to notice: `--drain-delay`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import promptly, wait_until
from tests.support.wire.requests import create, offset_of, patch, request

ENDED = (0, -signal.SIGTERM)


def is_ready(server: ServerProcess) -> bool:
    return request(server.port, "GET", "/readyz").status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_during_the_drain_delay_everything_is_served_but_readiness_fails(tmp_path: Path, workers: int) -> None:
    with ServerProcess(tmp_path / "uploads", drain_delay="4s", workers=workers) as server:
        assert is_ready(server)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        wait_until(lambda: not is_ready(server), "readiness fails")
        assert request(server.port, "GET", "/healthz").status == 200
        path = create(server.port, 3)
        assert patch(server.port, path, 0, b"abc").status == 204
        assert offset_of(server.port, path) == 3
        assert server.wait(30) in ENDED
        assert time.monotonic() - began >= 4


def test_a_second_signal_ends_the_drain_delay(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", drain_delay="1h") as server:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(server), "readiness fails")
        with promptly("the end", 15):
            assert server.terminate() in ENDED


def test_without_a_drain_delay_a_shutdown_begins_at_once(server: ServerProcess) -> None:
    with promptly("the end", 15):
        assert server.terminate() in ENDED


def test_an_interrupt_from_the_keyboard_does_not_wait(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", drain_delay="1h") as server:
        server.process.send_signal(signal.SIGINT)
        with promptly("the end", 15):
            assert server.wait(15) in (0, -signal.SIGINT)
