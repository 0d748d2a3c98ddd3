"""Additions of the server's protocol class to uvicorn's, on real sockets."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import scaled

pytestmark = pytest.mark.integrated

TUS = "Host: 127.0.0.1\r\nTus-Resumable: 1.0.0\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\nContent-Type: application/offset+octet-stream\r\n"


class Connection:
    def __init__(self, server: ServerProcess) -> None:
        address = urlsplit(server.origin)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=scaled(10))
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, text: str | bytes) -> None:
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def answer(self) -> tuple[int, dict[str, str]]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while (line := self.file.readline().decode().strip()) != "":
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        self.file.read(int(headers.get("content-length", "0")))
        return status, headers


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[Connection]:
    with Connection(server) as connection:
        yield connection


def create(connection: Connection, length: int) -> str:
    connection.send(f"POST /files HTTP/1.1\r\n{TUS}Upload-Length: {length}\r\n\r\n")
    status, headers = connection.answer()
    assert status == 201
    return urlsplit(headers["location"]).path


def offset(connection: Connection, path: str) -> str:
    connection.send(f"HEAD {path} HTTP/1.1\r\n{TUS}\r\n")
    status, headers = connection.answer()
    assert status == 200
    return headers["upload-offset"]


def checksum(algorithm: str, data: bytes) -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def patch_with_trailer(connection: Connection, path: str, data: bytes, trailers: str) -> int:
    promise = "Trailer: Upload-Checksum\r\n"
    connection.send(f"PATCH {path} HTTP/1.1\r\n{TUS}{CHUNKED}{promise}Upload-Offset: 0\r\n\r\n")
    connection.send(b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(data), data, trailers.encode()))
    return connection.answer()[0]


def test_checksum_trailer_is_advertised(connection: Connection) -> None:
    connection.send(f"OPTIONS /files HTTP/1.1\r\n{TUS}\r\n")
    assert "checksum-trailer" in connection.answer()[1]["tus-extension"].split(",")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "md5"])
def test_a_chunk_with_the_right_trailer_is_kept(connection: Connection, algorithm: str) -> None:
    path = create(connection, 5)
    trailers = f"Upload-Checksum: {checksum(algorithm, b'hello')}\r\n"
    assert patch_with_trailer(connection, path, b"hello", trailers) == 204
    assert offset(connection, path) == "5"


@pytest.mark.parametrize(
    ("trailers", "status"),
    [
        ("", 460),
        (f"Upload-Checksum: {checksum('sha1', b'other')}\r\n", 460),
        (f"Upload-Checksum: {checksum('sha1', b'hello')}\r\n" * 2, 460),
        ("Upload-Checksum: sha1\r\n", 400),
        ("Upload-Checksum: sha999 aGVsbG8=\r\n", 400),
    ],
)
def test_a_chunk_whose_trailer_is_missing_or_wrong_is_discarded(
    connection: Connection, trailers: str, status: int
) -> None:
    path = create(connection, 5)
    assert patch_with_trailer(connection, path, b"hello", trailers) == status
    assert offset(connection, path) == "0"


def test_trailers_never_pass_for_headers(connection: Connection) -> None:
    path = create(connection, 10)
    forged = "Upload-Offset: 7\r\nUpload-Length: 5\r\nTus-Resumable: 0.0.1\r\nX-HTTP-Method-Override: DELETE\r\n"
    # In one packet, so that the trailers are there before the application starts.
    head = f"PATCH {path} HTTP/1.1\r\n{TUS}{CHUNKED}Upload-Offset: 0\r\n\r\n"
    connection.send(f"{head}5\r\nhello\r\n0\r\n{forged}\r\n")
    status, headers = connection.answer()
    assert (status, headers["upload-offset"]) == (204, "5")
    # Without Tus-Resumable among the headers, one in a trailer does not help.
    head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\n{CHUNKED}Upload-Offset: 5\r\n\r\n"
    connection.send(f"{head}5\r\nworld\r\n0\r\nTus-Resumable: 1.0.0\r\n\r\n")
    assert connection.answer()[0] == 412


def test_a_head_without_end_is_refused(connection: Connection) -> None:
    connection.send("GET /files HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionError):  # it depends on the kernels' buffers when the refusal is noticed
        for _ in range(1000):
            connection.send("X-Endless: " + "x" * 10000 + "\r\n")
        pytest.fail("ten megabytes of header fields were taken")


def test_a_client_that_does_not_finish_its_head_is_refused(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", header_timeout="1s") as server, Connection(server) as connection:
        connection.send("GET /files HTTP/1.1\r\nX-Slow: ")
        started = time.monotonic()
        assert connection.answer()[0] == 408
        assert time.monotonic() - started < 10
    # The timeout does not concern a body.
    with ServerProcess(tmp_path / "uploads", header_timeout="1s") as server, Connection(server) as connection:
        path = create(connection, 4)
        content_type = "Content-Type: application/offset+octet-stream\r\n"
        connection.send(f"PATCH {path} HTTP/1.1\r\n{TUS}{content_type}Upload-Offset: 0\r\nContent-Length: 4\r\n\r\nab")
        time.sleep(1.5)
        connection.send("cd")
        assert connection.answer()[0] == 204


def test_a_connection_serves_on_after_a_long_body(connection: Connection) -> None:
    """The parser is left out of long bodies and has to find the next request."""
    size = 3 << 20
    path = create(connection, 2 * size)
    content_type = "Content-Type: application/offset+octet-stream\r\n"
    for position in (0, size):
        head = (
            f"PATCH {path} HTTP/1.1\r\n{TUS}{content_type}Upload-Offset: {position}\r\nContent-Length: {size}\r\n\r\n"
        )
        connection.send(head.encode() + b"x" * size + f"HEAD {path} HTTP/1.1\r\n{TUS}\r\n".encode())
        status, headers = connection.answer()
        assert (status, headers["upload-offset"]) == (204, str(position + size))
        status, headers = connection.answer()  # of the request that was sent in one piece with the body
        assert (status, headers["upload-offset"]) == (200, str(position + size))


def test_the_rest_of_a_refused_body_is_swallowed(connection: Connection) -> None:
    path = create(connection, 10)
    content_type = "Content-Type: application/offset+octet-stream\r\n"
    connection.send(f"PATCH {path} HTTP/1.1\r\n{TUS}{content_type}Upload-Offset: 5\r\nContent-Length: 5\r\n\r\nhello")
    status, headers = connection.answer()
    assert (status, headers["upload-offset"]) == (409, "0")
    assert offset(connection, path) == "0"
