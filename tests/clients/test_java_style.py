"""Clients that look closely: written here on raw sockets after tus-java-client, TUSKit and go-tus, and curl itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import pytest

from tests.clients.support import (
    KIBI,
    MEBI,
    OFFSET_STREAM,
    TUS,
    Answer,
    create,
    downloaded,
    head,
    payload,
    request,
    sha256,
    wait_until_stored,
)
from tests.conftest import require
from tests.support.harness import ServerProcess
from tests.support.timing import scaled

JAVA_REQUEST = 10 * MEBI  # what tus-java-client sends in one request
JAVA_BUFFER = 2 * MEBI
TUSKIT_CHUNK = 500 * KIBI
# Apple's upload tasks add these two to the requests of TUSKit; the answer must still be that of tus 1.0.0.
APPLE = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "6"}


class Connection:
    """One connection, on which the head of a request, its body and the answers are separate steps."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self.host = target.netloc
        self.socket = socket.create_connection((target.hostname or "", target.port or 80), timeout=scaled(30))
        self.reader: BinaryIO = self.socket.makefile("rb")

    def close(self) -> None:
        self.reader.close()
        self.socket.close()

    def send_head(self, method: str, url: str, headers: Mapping[str, str]) -> None:
        lines = [f"{method} {urlsplit(url).path} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def send_chunk(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Return the next answer, an interim one (1xx) too, without its body."""
        status_line = self.reader.readline().decode()
        headers: dict[str, str] = {}
        while line := self.reader.readline().decode().rstrip("\r\n"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(status_line.split()[1]), headers

    def read_answer(self) -> Answer:
        status, headers = self.read_head()
        return Answer(status, headers, self.reader.read(int(headers.get("content-length", "0"))))


@contextlib.contextmanager
def connect(url: str) -> Iterator[Connection]:
    connection = Connection(url)
    try:
        yield connection
    finally:
        connection.close()


def java_headers(offset: int) -> dict[str, str]:
    return TUS | {
        "X-HTTP-Method-Override": "PATCH",
        "Content-Type": OFFSET_STREAM,
        "Upload-Offset": str(offset),
        "Expect": "100-continue",
        "Transfer-Encoding": "chunked",
    }


def java_append(connection: Connection, url: str, offset: int, data: bytes) -> Answer:
    """Send the head, wait for the server to ask for the body, send it in chunks, read the answer."""
    connection.send_head("POST", url, java_headers(offset))
    assert connection.read_head()[0] == 100
    for start in range(0, len(data), JAVA_BUFFER):
        connection.send_chunk(data[start : start + JAVA_BUFFER])
    connection.socket.sendall(b"0\r\n\r\n")
    return connection.read_answer()


def test_java_client_uploads_in_requests_of_10_mib(server: ServerProcess) -> None:
    data = payload(2 * JAVA_REQUEST + 5 * MEBI + 1)
    with connect(server.url) as connection:
        connection.send_head("POST", server.url, TUS | {"Upload-Length": str(len(data)), "Content-Length": "0"})
        created = connection.read_answer()
        assert created.status == 201
        url = created.headers["location"]

        connection.send_head("HEAD", url, TUS)
        status, headers = connection.read_head()
        assert (status, headers["upload-offset"]) == (200, "0")

        for start in range(0, len(data), JAVA_REQUEST):
            piece = data[start : start + JAVA_REQUEST]
            answer = java_append(connection, url, start, piece)
            assert (answer.status, answer.headers["upload-offset"]) == (204, str(start + len(piece)))
    assert downloaded(url) == sha256(data)


def test_java_client_resumes_an_interrupted_request(server: ServerProcess) -> None:
    data = payload(3 * MEBI + JAVA_REQUEST + 1)
    url = create(server.url, len(data))
    with connect(url) as connection:
        connection.send_head("POST", url, java_headers(0))
        assert connection.read_head()[0] == 100
        connection.send_chunk(data[: 3 * MEBI])

    # The connection is closed, but nothing that was sent before may be lost.
    assert wait_until_stored(url, 3 * MEBI) == 3 * MEBI
    with connect(url) as connection:
        for start in (3 * MEBI, 3 * MEBI + JAVA_REQUEST):
            piece = data[start : start + JAVA_REQUEST]
            answer = java_append(connection, url, start, piece)
            assert (answer.status, answer.headers["upload-offset"]) == (204, str(start + len(piece)))
    assert downloaded(url) == sha256(data)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Upload-Offset": "5"}, 409),
        ({"Upload-Offset": "-1"}, 400),
        ({"Content-Type": "application/octet-stream"}, 415),
        ({"Tus-Resumable": "0.2.2"}, 412),
        ({"Upload-Checksum": "crc7 AAAA"}, 400),
    ],
)
def test_no_body_is_asked_for_when_the_head_decides(
    server: ServerProcess, changed: dict[str, str], status: int
) -> None:
    url = create(server.url, 100)
    with connect(url) as connection:
        connection.send_head("POST", url, java_headers(0) | changed)
        answer = connection.read_answer()
    assert answer.status == status
    assert answer.headers.get("upload-offset") == ("0" if status == 409 else None)
    assert head(url).headers["upload-offset"] == "0"


def test_no_body_is_asked_for_when_the_upload_is_unknown(server: ServerProcess) -> None:
    url = server.url + "/unknown"
    with connect(url) as connection:
        connection.send_head("POST", url, java_headers(0))
        answer = connection.read_answer()
    assert answer.status == 404
    assert "upload-offset" not in answer.headers


def test_no_body_is_asked_for_when_it_would_pass_the_length(server: ServerProcess) -> None:
    url = create(server.url, 100)
    headers = TUS | {
        "Content-Type": OFFSET_STREAM,
        "Upload-Offset": "0",
        "Expect": "100-continue",
        "Content-Length": "101",
    }
    with connect(url) as connection:
        connection.send_head("PATCH", url, headers)
        answer = connection.read_answer()
    assert answer.status == 413
    assert head(url).headers["upload-offset"] == "0"


def test_white_space_around_a_header_value_is_not_part_of_it(server: ServerProcess) -> None:
    """RFC 9110, 5.5. tus-js-client and tuspy end Upload-Metadata in a space when its last value is empty."""
    with connect(server.url) as connection:
        headers = {
            "Tus-Resumable": "1.0.0 ",
            "Upload-Length": "\t100 ",
            "Upload-Metadata": "filename ",
            "Content-Length": "0",
        }
        connection.send_head("POST", server.url, headers)
        created = connection.read_answer()
        assert created.status == 201, created.body
        connection.send_head("HEAD", created.headers["location"], TUS)
        lines = [line.rstrip(b"\r\n") for line in iter(connection.reader.readline, b"\r\n")]
    assert [line.split(b": ", 1)[1] for line in lines if line.lower().startswith(b"upload-metadata:")] == [b"filename"]


@pytest.mark.parametrize("arguments", [["--data-binary", "@FILE"], ["--upload-file", "FILE"], ["--upload-file", "-"]])
def test_curl_appends_a_file(server: ServerProcess, tmp_path: Path, arguments: list[str]) -> None:
    """From standard input curl sends a chunked body."""
    curl = require("curl")
    data = payload(3 * MEBI)
    path = tmp_path / "payload"
    path.write_bytes(data)
    url = create(server.url, len(data))
    command = [
        *[curl, "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--expect100-timeout", "30"],
        *["--dump-header", "-", "--request", "PATCH"],
        *["--header", "Tus-Resumable: 1.0.0", "--header", "Upload-Offset: 0", "--header", "Expect: 100-continue"],
        *["--header", f"Content-Type: {OFFSET_STREAM}"],
        *[argument.replace("FILE", str(path)) for argument in arguments],
        url,
    ]
    done = subprocess.run(command, input=data, capture_output=True, timeout=scaled(90), check=True)
    interim, final = done.stdout.decode().split("\r\n\r\n", 1)
    assert interim.startswith("HTTP/1.1 100 ")
    assert final.startswith("HTTP/1.1 204 ")
    assert f"upload-offset: {len(data)}\r\n" in final.lower()
    assert downloaded(url) == sha256(data)


def tuskit_append(url: str, offset: int, data: bytes) -> Answer:
    headers = TUS | APPLE | {"Content-Type": OFFSET_STREAM, "Upload-Offset": str(offset)}
    return request("PATCH", url, headers, data[offset : offset + TUSKIT_CHUNK])


def test_tuskit_recovers_with_the_offset_of_a_conflict(server: ServerProcess) -> None:
    """The client tries a failed chunk again with its old offset, without asking; only the 409 tells it where it is."""
    data = payload(5 * TUSKIT_CHUNK + 99)
    url = create(server.url, len(data))
    assert tuskit_append(url, 0, data).headers["upload-offset"] == str(TUSKIT_CHUNK)

    with connect(url) as connection:
        headers = {"Content-Type": OFFSET_STREAM, "Upload-Offset": str(TUSKIT_CHUNK)}
        connection.send_head("PATCH", url, TUS | APPLE | headers | {"Content-Length": str(TUSKIT_CHUNK)})
        connection.socket.sendall(data[TUSKIT_CHUNK : TUSKIT_CHUNK + 200 * KIBI])
        reached = wait_until_stored(url, TUSKIT_CHUNK + 1)

    conflict = tuskit_append(url, TUSKIT_CHUNK, data)
    assert conflict.status == 409
    offset = int(conflict.headers["upload-offset"])
    assert reached <= offset <= TUSKIT_CHUNK + 200 * KIBI
    while offset < len(data):
        answer = tuskit_append(url, offset, data)
        assert answer.status == 204
        offset = int(answer.headers["upload-offset"])
    assert downloaded(url) == sha256(data)


def test_go_client_sees_exactly_the_codes_it_accepts(server: ServerProcess) -> None:
    data = payload(100)
    created = request("POST", server.url, TUS | {"Upload-Length": "100", "Upload-Metadata": ""})
    assert created.status == 201
    url = created.headers["location"]
    assert url.startswith(server.url + "/")
    assert "," not in url  # the Dart client cuts a Location there

    fresh = head(url)
    assert (fresh.status, fresh.headers["upload-offset"], fresh.headers["upload-length"]) == (200, "0", "100")
    patched = request("PATCH", url, TUS | {"Content-Type": OFFSET_STREAM, "Upload-Offset": "0"}, data)
    assert (patched.status, patched.headers["upload-offset"]) == (204, "100")
    assert head(server.url + "/unknown").status == 404
    assert downloaded(url) == sha256(data)
