"""Deadlines of one connection"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.server_connections import HEAD, open_connections, pour
from tests.support.timing import promptly, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, metadata, patch_headers
from tests.support.wire.requests import create, offset_of, patch, start_patch

pytestmark = [
    pytest.mark.integrated,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def half_a_request_line(port: int) -> Connection:
    connection = Connection(port)
    connection.send(b"HEAD /fil")
    return connection


def nothing(port: int) -> Connection:
    return Connection(port)


def idle_after_an_answer(port: int) -> Connection:
    connection = Connection(port)
    connection.start("OPTIONS", "/files", {})
    assert connection.answer().status == 200
    return connection


def half_a_head_after_an_answer(port: int) -> Connection:
    connection = idle_after_an_answer(port)
    connection.send(b"HEAD /files/x HTTP/1.1\r\nHost: x\r\n")
    return connection


def answered_before_the_body(port: int) -> Connection:
    """Send a PATCH for an unknown upload, and one byte of its body after the answer; return the connection."""
    connection = start_patch(port, "/files/unknown", 0, 10)
    assert connection.answer().status == 404
    connection.send(b"x")
    return connection


def answered_before_a_chunked_body(port: int) -> Connection:
    connection = start_patch(port, "/files/unknown", 0, None)
    assert connection.answer().status == 404
    connection.send(b"a\r\nx")
    return connection


def answered_instead_of_continue(port: int) -> Connection:
    connection = start_patch(port, "/files/unknown", 0, 10, {"Expect": "100-continue"})
    assert connection.answer().status == 404
    return connection


def continued_without_a_body(port: int) -> Connection:
    return start_patch(port, create(port, 10), 0, 10, {"Expect": "100-continue"})


def half_a_body(port: int) -> Connection:
    connection = start_patch(port, create(port, 10), 0, 10)
    connection.send(b"x")
    return connection


def half_a_long_body(port: int) -> Connection:
    connection = start_patch(port, create(port, 10 * MEBI), 0, 10 * MEBI)
    connection.send(b"x" * MEBI)
    return connection


def half_a_trailer(port: int) -> Connection:
    connection = start_patch(port, create(port, 10), 0, None)
    connection.send(b"1\r\nx\r\n0\r\nX-Trailer: ")
    return connection


def refused_and_not_gone(port: int) -> Connection:
    connection = Connection(port)
    connection.send(b"this is not HTTP\r\n\r\n")
    return connection


def pipelined_and_not_read(port: int) -> Connection:
    # Long answers, else the kernel takes some ten thousand of them before the server has to wait.
    path = create(port, 1, {"Upload-Metadata": metadata(name="x" * 3000)})
    connection = Connection(port)

    def pour_until_closed() -> None:
        with contextlib.suppress(OSError):  # by the server, or by the test at its end
            pour(connection, HEAD.format(path=path).encode() * 100, 64 * MEBI)

    threading.Thread(target=pour_until_closed).start()
    return connection


def download_not_read(port: int) -> Connection:
    path = create(port, 16 * MEBI)
    assert patch(port, path, 0, bytes(16 * MEBI)).status == 204
    connection = Connection(port)
    connection.start("GET", path, {})
    return connection


def download_not_read_by_a_client_that_is_done(port: int) -> Connection:
    connection = download_not_read(port)
    connection.finish_sending()
    return connection


STATES: tuple[Callable[[int], Connection], ...] = (
    nothing,
    half_a_request_line,
    idle_after_an_answer,
    half_a_head_after_an_answer,
    answered_before_the_body,
    answered_before_a_chunked_body,
    answered_instead_of_continue,
    continued_without_a_body,
    half_a_body,
    half_a_long_body,
    half_a_trailer,
    refused_and_not_gone,
    pipelined_and_not_read,
    download_not_read,
    download_not_read_by_a_client_that_is_done,
)


@pytest.mark.long
@pytest.mark.parametrize("reach", STATES, ids=lambda reach: reach.__name__)
def test_a_client_that_goes_silent_in_any_state_is_let_go(tmp_path: Path, reach: Callable[[int], Connection]) -> None:
    uploads = tmp_path / "uploads"
    with (
        ServerProcess(uploads, header_timeout="1s", keep_alive_timeout="1s", idle_timeout="1s") as server,
        reach(server.port),
    ):
        wait_until(lambda: open_connections(server.port) == 0, "the server let go of the connection")
    assert not [line for line in server.log if "Traceback" in line or "ERROR" in line]


def test_a_small_pause_between_two_requests_is_fine(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "uploads", keep_alive_timeout="20s", header_timeout="1s")
    with server, idle_after_an_answer(server.port) as connection:
        time.sleep(2)
        connection.start("OPTIONS", "/files", {})
        assert connection.answer().status == 200


def test_silent_clients_that_take_every_descriptor_do_not_stop_the_others(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "uploads")
    server.descriptors = 256
    with contextlib.ExitStack() as stack, server:
        path = create(server.port, 10)
        for _ in range(300):
            connection = stack.enter_context(Connection(server.port))
            connection.start("PATCH", "/files/unknown", patch_headers(0, {"Content-Length": "10"}))
            connection.send(b"x")
        with promptly("HEAD", 10):
            assert offset_of(server.port, path) == 0
        with promptly("PATCH", 10):
            assert patch(server.port, path, 0, b"0123456789").status == 204
    assert not [line for line in server.log if "Traceback" in line]


def test_heads_without_end_that_fill_the_memory_for_heads_refuse_nobody_else(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, contextlib.ExitStack() as stack:
        path = create(server.port, 10)
        honest = stack.enter_context(Connection(server.port))
        honest.send(HEAD.format(path=path).encode()[:30])
        honest.wait_until_read()
        for size in [127 * KIBI] * 260 + [8000] * 20 + [1000] * 20 + [100] * 20 + [10] * 20:
            hostile = stack.enter_context(Connection(server.port))
            hostile.send(b"GET / HTTP/1.1\r\nX: " + b"a" * size)
        hostile.wait_until_read()
        late = stack.enter_context(Connection(server.port))
        late.send(HEAD.format(path=path).encode()[:30])
        late.wait_until_read()
        late.send(HEAD.format(path=path).encode()[30:])
        assert late.answer().offset == 0
        honest.send(HEAD.format(path=path).encode()[30:])
        answer = honest.answer_or_closed()  # it waited longest: its client asks again
        assert answer is None or answer.offset == 0
        assert open_connections(server.port) > 250
