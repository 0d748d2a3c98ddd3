"""Bounds of one connection: no state without a deadline, no part of a request without a limit, no noise in the log."""

from __future__ import annotations

import contextlib
import random
import sys

import pytest

from tests.support.harness import ServerProcess
from tests.support.process_memory import cpu_seconds, resident_size
from tests.support.server_connections import HEAD, answered_meanwhile, open_connections, pour
from tests.support.timing import TIMEOUT, scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, chunk, patch_headers, payload
from tests.support.wire.requests import create, offset_of, patch, request, start_patch

pytestmark = [
    pytest.mark.integrated,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


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
