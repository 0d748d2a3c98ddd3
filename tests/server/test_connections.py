"""Bounds of one connection: no state without a deadline, no part of a request without a limit, no noise in the log."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.process_memory import cpu_seconds, resident_size
from tests.support.timing import TIMEOUT, promptly, scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, chunk, metadata, patch_headers, payload
from tests.support.wire.requests import create, offset_of, patch, request, start_patch

pytestmark = [
    pytest.mark.integrated,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

HEAD = "HEAD {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n"


def metric(port: int, name: str) -> float:
    """Return the sum of a metric over all its labels."""
    text = request(port, "GET", "/metrics").body.decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    )


def open_connections(port: int) -> int:
    """Return the number of connections that the server has, without the one that asks."""
    return round(metric(port, "tusd_connections_open")) - 1


def pour(connection: Connection, piece: bytes, most: int) -> int:
    """Send a piece again and again; returns how many bytes went before the server closed the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            connection.send(piece)
            sent += len(piece)
    return sent


@contextlib.contextmanager
def answered_meanwhile(port: int, path: str, seconds: float = 2.0) -> Iterator[None]:
    """Somebody else asks for an upload all the time, and never waits for longer."""
    waits: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            started = time.monotonic()
            offset_of(port, path)
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert max(waits) < seconds, f"a HEAD took {max(waits):.1f} s"


# Heads, trailers, and what frames a chunk.

CHUNKED = patch_headers(0, {"Transfer-Encoding": "chunked"})
ENDLESS = {
    "trailer": (CHUNKED, b"5\r\nhello\r\n0\r\nX-Long: ", b"a" * 1400),
    "trailers": (CHUNKED, b"5\r\nhello\r\n0\r\n", b"X-Many: a\r\n" * 100),
    "chunk extension": (CHUNKED, b"5;name=", b"a" * 1400),
    "chunk extensions": (CHUNKED, b"", b"1;name=" + b"a" * 30_000 + b"\r\nx\r\n"),
    "chunk size": (CHUNKED, b"", b"0" * 1400),
    "header": ({"X-First": "1"}, b"", b""),
}


@pytest.mark.parametrize("part", [name for name in ENDLESS if name != "header"])
@pytest.mark.fresh_interpreter
def test_chunk_framing_or_headers_without_end_are_refused(server: ServerProcess, part: str) -> None:
    headers, begin, piece = ENDLESS[part]
    path, other = create(server.port, 10 * MEBI), create(server.port, 1)
    with Connection(server.port) as connection, answered_meanwhile(server.port, other):
        before = resident_size(server.pid)
        connection.start("PATCH", path, headers)
        connection.send(begin)
        sent = pour(connection, piece, 64 * MEBI)
        assert sent < 60 * MEBI, "everything was taken"  # the kernel may take half of it
        answer = connection.answer_or_closed()
        assert answer is None or answer.status in (400, 431), answer
    assert resident_size(server.pid) - before < 24 * MEBI
    assert offset_of(server.port, path) < 10 * MEBI


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        pytest.param(b"GET /", b"a" * 1400, id="request line"),
        pytest.param(b"GET / HTTP/1.1\r\nX-Long: ", b"a" * 1400, id="header"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"X-Many: a\r\n" * 100, id="headers"),
        pytest.param(b"", b"\r\n" * 700, id="empty lines"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 100], ids=["in small pieces", "in large pieces"])
def test_a_head_without_end_is_refused(server: ServerProcess, begin: bytes, piece: bytes, pieces: int) -> None:
    with Connection(server.port) as connection:
        connection.send(begin)
        assert pour(connection, piece * pieces, 64 * MEBI) < 60 * MEBI, "everything was taken"
        answer = connection.answer_or_closed()
        assert answer is None or answer.status == 431


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param("X-Many: a\r\n" * 300, id="fields"),
        pytest.param("X-Long: " + "a" * 140_000 + "\r\n", id="bytes"),
    ],
)
def test_a_whole_head_that_is_too_large_is_refused_with_the_reason(server: ServerProcess, lines: str) -> None:
    with Connection(server.port) as connection:
        connection.send(f"GET /files HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        answer = connection.answer()
    assert answer.status == 431
    assert answer.body.startswith(b"ERR_HEADERS_TOO_LARGE: ")


def test_a_head_of_many_fields_and_bytes_within_the_limits_is_served(server: ServerProcess) -> None:
    with Connection(server.port) as connection:
        lines = "".join(f"X-{number}: {'a' * 200}\r\n" for number in range(240))
        connection.send(f"OPTIONS /files HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        assert connection.answer().status == 200


def test_a_chunked_body_of_single_bytes_is_stored(server: ServerProcess) -> None:
    data = payload(20_000)
    path = create(server.port, len(data))
    with start_patch(server.port, path, 0, None) as connection:
        connection.send(b"".join(b"0001;a=b\r\n%c\r\n" % byte for byte in data) + b"0\r\nX-Trailer: 1\r\n\r\n")
        answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(data))
        connection.start("GET", path, {})
        assert connection.answer().body == data


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_requests_cut_anywhere_are_the_same_requests(server: ServerProcess, size: int) -> None:
    """The end of a head or a chunked body may fall into any packet."""
    path = create(server.port, 12)
    framed = "Tus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset:"
    requests = (
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\n{framed} 0\r\nTransfer-Encoding: chunked\r\n\r\n"
        "4\r\n\r\n\r\n\r\n2\r\n\r\n\r\n0\r\nX: \r\n\r\n"
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\n{framed} 6\r\nContent-Length: 6\r\n\r\n\r\n\r\n\r\n"
        f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"
    ).encode()
    with Connection(server.port) as connection:
        for start in range(0, len(requests), size):
            connection.send(requests[start : start + size])
        assert [connection.answer(method="PATCH").offset, connection.answer(method="PATCH").offset] == [6, 12]
        assert connection.answer(method="GET").body == b"\r\n" * 6


# Deadlines.


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


@pytest.mark.parametrize("follows", [b"", HEAD.encode() * 1000], ids=["alone", "pipelined"])
def test_chunked_content_that_looks_like_many_ends_costs_what_other_content_costs(
    server: ServerProcess, follows: bytes
) -> None:
    data = b"\r\n\r\n" * (MEBI // 4)
    path = create(server.port, len(data))
    before = cpu_seconds(server.pid)
    with start_patch(server.port, path, 0, None) as connection:
        connection.send(b"%x;name=value\r\n%b\r\n" % (len(data), data) + chunk(b"") + follows)
        assert connection.answer(method="PATCH").offset == len(data)
    assert cpu_seconds(server.pid) - before < scaled(0.3)
    assert request(server.port, "GET", path).body == data


@pytest.mark.parametrize("upgrade", ["", "Connection: upgrade\r\nUpgrade: h2c\r\n"])
@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "xchunked", "gzip\r\nTransfer-Encoding: chunked"])
def test_a_body_in_an_unknown_transfer_coding_is_refused(server: ServerProcess, coding: str, upgrade: str) -> None:
    path = create(server.port, 5)
    with Connection(server.port) as connection:
        head = HEAD.format(path=path).replace("HEAD", "PATCH", 1).removesuffix("\r\n")
        fields = f"Upload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n{upgrade}"
        connection.send(f"{head}{fields}Transfer-Encoding: {coding}\r\n\r\n".encode() + chunk(b"hello") + chunk(b""))
        assert connection.answer().status == 400
    assert offset_of(server.port, path) == 0


# Pipelines.


@pytest.mark.fresh_interpreter
def test_pipelined_requests_wait_without_memory_and_without_delay_for_others(server: ServerProcess) -> None:
    request_line = b"GET / HTTP/1.1\r\n\r\n"
    count = 250_000 // len(request_line)
    path = create(server.port, 1)
    before = resident_size(server.pid)
    with Connection(server.port) as connection, answered_meanwhile(server.port, path, 1.0):
        connection.send(request_line * count)
        answers = received = connection.socket.recv(100)
        assert resident_size(server.pid) - before < 12 * MEBI
        while answers.count(b"HTTP/1.1 ") < count and received:
            received = connection.socket.recv(MEBI)
            answers += received
    assert answers.count(b"HTTP/1.1 ") == count


def test_a_long_body_behind_other_requests_is_stored(server: ServerProcess) -> None:
    data = payload(3 * MEBI)
    path = create(server.port, len(data))
    with Connection(server.port) as connection:
        connection.send(HEAD.format(path=path).encode() * 20)
        connection.start("PATCH", path, patch_headers(0, {"Content-Length": str(len(data))}))
        connection.send(data + HEAD.format(path=path).encode())
        for _ in range(20):
            assert connection.answer(method="HEAD").offset == 0
        assert connection.answer(method="PATCH").offset == len(data)
        assert connection.answer(method="HEAD").offset == len(data)


# Noise in the log.


def complaints(server: ServerProcess) -> list[str]:
    """Lines of the log that call for somebody."""
    return [line for line in server.log if "Traceback" in line or " WARNING " in line or " ERROR " in line]


def test_garbage_behind_pipelined_requests_is_refused_in_order(server: ServerProcess) -> None:
    path = create(server.port, 2)
    assert patch(server.port, path, 0, b"ab").status == 204
    with Connection(server.port) as connection:
        get = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.send((HEAD.format(path=path) + get).encode() + b"\x00garbage\r\n\r\n")
        assert connection.answer(method="HEAD").offset == 2
        assert connection.answer(method="GET").body == b"ab"
        assert connection.answer(method="GET").status == 400
    server.terminate()
    assert complaints(server) == []


def test_no_garbage_makes_the_server_complain(server: ServerProcess) -> None:
    """Whole requests, cut and changed ones in any order, with clients that vanish at any moment."""
    chance = random.Random(7)
    data = payload(100 * KIBI)
    finished = create(server.port, len(data))
    assert patch(server.port, finished, 0, data).status == 204
    for _ in range(300):
        path = create(server.port, 100)
        head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += "Content-Type: application/offset+octet-stream\r\n"
        parts = [
            HEAD.format(path=path).encode(),
            f"GET {finished} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            f"{head}Content-Length: 50\r\n\r\n".encode() + data[:50],
            f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk(data[:20]) + chunk(b""),
            f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
            f"{head}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode(),
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET http://[ HTTP/1.1\r\n\r\n",
            chance.randbytes(chance.randrange(200)),
        ]
        sent = b"".join(chance.choices(parts, k=chance.randrange(1, 5)))
        sent = sent[: chance.randrange(len(sent) + 1)] if chance.random() < 0.5 else sent
        connection = Connection(server.port)
        with contextlib.suppress(ConnectionError):
            connection.send(sent)
            if chance.random() < 0.5:
                connection.socket.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    connection.socket.recv(1000)
        (connection.reset if chance.random() < 0.5 else connection.close)()
    wait_until(lambda: open_connections(server.port) == 0, "every connection was closed", 2 * TIMEOUT)
    server.terminate()
    assert complaints(server) == []


# As many connections as there are descriptors for.


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
    server.descriptors = 264
    with server:
        assert metric(server.port, "tusd_connections_limit") == 100


def test_more_connections_than_descriptors_are_refused_at_the_start(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "uploads", max_connections=1000)
    server.descriptors = 256
    with pytest.raises(RuntimeError, match="--max-connections is too large: 1000 connections need 2064 file desc"):
        server.start()
    assert len(server.log) == 1
