"""Downloads that are large enough for the kernel to send the file by itself."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.timing import wait_until
from tests.support.wire.connection import Closed, Connection
from tests.support.wire.messages import KIBI, MEBI, payload, sha256
from tests.support.wire.requests import content, create, head, patch, request
from tusd_py.http.app import FILE_PIECE

DATA = payload(20 * MEBI)  # more than one call of the kernel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("files")) as server:
        yield server


@pytest.fixture(scope="module")
def path(site: ServerProcess) -> str:
    path = create(site.port, len(DATA))
    assert patch(site.port, path, 0, DATA).status == 204
    return path


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, len(DATA)),
        (0, 256 * KIBI),
        (1, 256 * KIBI),
        (12345, 16 * MEBI + 12345),
        (12345, 16 * MEBI + 12346),
        (len(DATA) - MEBI, len(DATA)),
        (len(DATA) - 1, len(DATA)),
    ],
)
def test_a_range_has_exactly_its_bytes(site: ServerProcess, path: str, start: int, end: int) -> None:
    answer = request(site.port, "GET", path, {"Range": f"bytes={start}-{end - 1}"})
    assert answer.status == 206
    assert answer["Content-Length"] == str(end - start)
    assert answer.body == DATA[start:end]


def test_a_file_longer_than_a_piece_is_sent_whole(site: ServerProcess) -> None:
    data = (DATA * 4)[: FILE_PIECE + 12345]
    path = create(site.port, len(data))
    assert patch(site.port, path, 0, data).status == 204
    assert sha256(content(site.port, path)) == sha256(data)


def test_downloads_follow_each_other_on_one_connection(site: ServerProcess, path: str) -> None:
    with Connection(site.port) as connection:
        for start in (0, MEBI, 2 * MEBI):
            connection.start("GET", path, {"Range": f"bytes={start}-{start + MEBI - 1}"})
            assert connection.answer().body == DATA[start : start + MEBI]
        connection.start("HEAD", path, {})
        assert connection.answer().status == 200


def test_pipelined_downloads_are_answered_in_order(site: ServerProcess, path: str) -> None:
    with Connection(site.port) as connection:
        starts = (0, 3 * MEBI, 5 * MEBI)
        for start in starts:
            connection.start("GET", path, {"Range": f"bytes={start}-{start + 2 * MEBI - 1}"})
        for start in starts:
            assert connection.answer().body == DATA[start : start + 2 * MEBI]


def test_many_downloads_at_once_have_all_bytes(site: ServerProcess, path: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        assert all(body == DATA for body in pool.map(lambda _: content(site.port, path), range(12)))


def test_a_download_that_is_not_read_holds_no_other_request(site: ServerProcess, path: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(Connection(site.port))
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIBI)
            connection.start("GET", path, {})
        assert content(site.port, path) == DATA
        assert head(site.port, path).status == 200


def test_a_file_that_is_cut_off_is_not_sent(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        path = create(server.port, MEBI)
        assert patch(server.port, path, 0, DATA[:MEBI]).status == 204
        (tmp_path / "uploads" / path.rpartition("/")[2]).write_bytes(DATA[: 512 * KIBI])
        with contextlib.suppress(Closed):
            answer = request(server.port, "GET", path)
            assert answer.status >= 404


def test_a_file_that_is_cut_off_meanwhile_ends_the_connection_and_is_logged(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA).status == 204
        with Connection(server.port) as connection:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIBI)
            connection.start("GET", path, {})
            connection.socket.recv(KIBI)
            (tmp_path / "uploads" / path.rpartition("/")[2]).write_bytes(b"")
            received = 0
            with contextlib.suppress(ConnectionError):
                while piece := connection.socket.recv(MEBI):
                    received += len(piece)
        assert received < len(DATA)
        wait_until(
            lambda: any("method=GET" in line and "ERR_STORAGE_UNAVAILABLE" in line for line in server.log),
            "the download was logged",
        )
        assert not [line for line in server.log if "Traceback" in line]
