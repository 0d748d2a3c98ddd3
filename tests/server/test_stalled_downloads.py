"""Clients that ask for much and read little."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.process_memory import resident_size
from tests.support.timing import promptly, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, payload, sha256
from tests.support.wire.requests import content, create, patch, request
from tusd_py.uploads.downloads import piece_size

OWN_CLASS = not os.environ.get("PLAIN_ASGI")


def stored(server: ServerProcess, data: bytes) -> str:
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data).status == 204
    return path


def download(server: ServerProcess, path: str, *, receive_buffer: int | None = None) -> Connection:
    """Return a GET of which nothing has been read."""
    connection = Connection(server.port)
    if receive_buffer is not None:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.start("GET", path, {})
    return connection


def logged(server: ServerProcess, *words: str) -> Callable[[], bool]:
    return lambda: any(all(word in line for word in words) for line in server.log)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.fresh_interpreter
def test_three_hundred_downloads_that_nobody_reads_cost_little(server: ServerProcess) -> None:
    data = payload(16 * MEBI)
    path, small = stored(server, data), stored(server, b"small")
    before = resident_size(server.pid)  # with the memory that the uploads were received into
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(download(server, path))
        assert sha256(content(server.port, path)) == sha256(data)  # after it, the kernel's buffers of all are full
        with promptly("a download beside them", 5):
            assert content(server.port, small) == b"small"
        assert resident_size(server.pid) - before < 300 * 0.75 * MEBI


def test_a_reader_that_pauses_gets_everything(tmp_path: Path) -> None:
    data = payload(16 * MEBI)
    with ServerProcess(tmp_path / "uploads", idle_timeout="20s") as server:
        path = stored(server, data)
        with download(server, path) as connection:
            time.sleep(3)
            assert connection.answer().body == data
        wait_until(logged(server, "method=GET", "status=200", f"bytes={len(data)}"), "the download was logged")


def test_a_reader_that_stalls_is_ended_and_logged_as_that(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", idle_timeout="1s", min_rate="1MiB") as server:
        path = stored(server, payload(16 * MEBI))
        with download(server, path):
            wait_until(logged(server, "method=GET", "code=ERR_WRITE_TIMEOUT"), "the download was ended")
    assert not [line for line in server.log if "Traceback" in line]


@pytest.mark.long
@pytest.mark.integrated
def test_a_slow_reader_above_the_min_rate_is_not_ended(tmp_path: Path) -> None:
    """The kernels' buffers hide for many seconds that it reads at all."""
    data = payload(16 * MEBI)
    with ServerProcess(tmp_path / "uploads", idle_timeout="3s") as server:
        path = stored(server, data)
        with download(server, path, receive_buffer=64 * KIBI) as connection:
            received = 0
            for _ in range(40):
                received += len(connection.socket.recv(64 * KIBI))
                time.sleep(0.25)
            connection.socket.settimeout(10)
            while received < len(data):
                piece = connection.socket.recv(MEBI)
                assert piece, "the download was ended"
                received += len(piece)


def test_a_client_that_leaves_a_download_is_logged_as_that(server: ServerProcess) -> None:
    path = stored(server, payload(16 * MEBI))
    download(server, path).reset()
    wait_until(logged(server, "method=GET", "code=ERR_CLIENT_DISCONNECTED"), "the download was logged")
    assert request(server.port, "HEAD", path).status == 200


def test_the_more_downloads_the_smaller_their_pieces() -> None:
    assert piece_size(256 * KIBI, 0, MEBI) == 256 * KIBI
    assert piece_size(256 * KIBI, 16, MEBI) == 64 * KIBI
    assert piece_size(256 * KIBI, 10_000, MEBI) == 16 * KIBI
