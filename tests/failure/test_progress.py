"""Live progress when processes die, or change uploads without a word."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.hosts import several_hosts
from tests.support.redis_server import shared_redis_url
from tests.support.wire.events import Listening, kinds
from tests.support.wire.requests import create, patch, start_patch
from tests.support.wire.websockets import WebSocket


@pytest.mark.long
def test_upload_whose_process_is_killed_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server, ServerProcess(tmp_path / "uploads") as other:
        path = create(server.port, 10)
        with Listening(server.port, f"{path}/events") as stream, start_patch(other.port, path, 0, 10) as sender:
            stream.until("snapshot")
            sender.send(b"four")
            assert stream.until("progress")[-1].offset == 4
            os.kill(other.pid, signal.SIGKILL)
            assert stream.until("interrupted")[-1].offset == 4
            assert patch(server.port, path, 4, b"secret").status == 204
            assert kinds(list(stream))[-1] == "finished"


@pytest.mark.long
def test_socket_hears_of_another_host_whatever_host_it_comes_back_to(tmp_path: Path) -> None:
    with several_hosts(tmp_path, shared_redis_url(), redis_prefix=f"{tmp_path.name}:") as hosts:
        receiving, first, second = (host.port for host in hosts[:3])
        path = create(receiving, 12)
        with WebSocket(first, f"{path}/events") as socket:
            socket.until("snapshot")
            assert patch(receiving, path, 0, b"four").status == 204
            socket.until("progress", lambda message: message["offset"] == 4)
            os.kill(hosts[1].pid, signal.SIGKILL)
            assert socket.rest() == []
            assert socket.code == 1006
        assert patch(receiving, path, 4, b"more").status == 204
        with WebSocket(second, f"{path}/events") as socket:
            assert socket.until("snapshot")[-1]["offset"] == 8
            assert patch(receiving, path, 8, b"last").status == 204
            assert socket.rest()[-1] == "finished"
            assert socket.code == 1000
