"""As many connections as there are descriptors for."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.process_memory import cpu_seconds
from tests.support.server_connections import metric, open_connections
from tests.support.timing import promptly
from tests.support.wire.connection import Connection
from tests.support.wire.messages import payload
from tests.support.wire.requests import create, offset_of, start_patch

pytestmark = [
    pytest.mark.integrated,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_at_the_limit_idle_connections_make_room(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack, ServerProcess(tmp_path / "uploads", max_connections=20) as server:
        path = create(server.port, 10)
        for _ in range(3):
            for _ in range(20):
                stack.enter_context(Connection(server.port))
            with promptly("HEAD", 5):
                assert offset_of(server.port, path) == 0
        assert metric(server.port, "tusd_connections_limit") == 20
        assert metric(server.port, "tusd_connections_ended_total") >= 40
        assert open_connections(server.port) <= 20


def test_at_the_limit_no_running_request_ends_and_a_new_one_waits(tmp_path: Path) -> None:
    data = payload(100)
    with contextlib.ExitStack() as stack, ServerProcess(tmp_path / "uploads", max_connections=10) as server:
        running = []
        for _ in range(10):
            path = create(server.port, len(data))
            connection = stack.enter_context(start_patch(server.port, path, 0, len(data)))
            connection.send(data[:50])
            connection.wait_until_read()
            running.append(connection)
        waiting = stack.enter_context(Connection(server.port))
        waiting.start("HEAD", path, {})
        used = cpu_seconds(server.pid)
        with pytest.raises(TimeoutError):
            waiting.answer(2)
        assert cpu_seconds(server.pid) - used < 1, "the server spins while connections wait"
        for connection in running:
            connection.send(data[50:])
            assert connection.answer().status == 204
        assert waiting.answer().status == 200
    assert any("all 10 connections are in use" in line for line in server.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_limit_of_connections_is_that_of_all_processes(tmp_path: Path, workers: int) -> None:
    with ServerProcess(tmp_path / "uploads", max_connections=30, workers=workers) as server:
        assert metric(server.port, "tusd_connections_limit") == 30


def test_the_limit_of_connections_follows_from_the_descriptors(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "uploads")
    server.descriptors = 288
    with server:
        assert metric(server.port, "tusd_connections_limit") == 100


def test_more_connections_than_descriptors_are_refused_at_the_start(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "uploads", max_connections=1000)
    server.descriptors = 256
    with pytest.raises(RuntimeError, match="--max-connections is too large: 1000 connections need 2088 file desc"):
        server.start()
    assert len(server.log) == 1
