"""Clients that offer HTTP/2 with `Upgrade`: their bodies are stored, or they hear that they are not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.harness import ServerProcess
from tests.support.wire.connection import Connection
from tests.support.wire.messages import MEBI, OFFSET_STREAM, chunk, patch_headers, payload
from tests.support.wire.requests import content, create, offset_of, patch

OWN_CLASS = not os.environ.get("PLAIN_ASGI")
H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQBAAAAAAIAAAAA"}
JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;

class Patch {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .header("Tus-Resumable", "1.0.0").header("Upload-Offset", "0")
            .header("Content-Type", "application/offset+octet-stream")
            .method("PATCH", HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1]))).build();
        HttpResponse<String> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.statusCode() + " " + response.headers().firstValue("Upload-Offset").orElse("-"));
    }
}
"""


def check(server: ServerProcess, path: str, data: bytes, outcome: str) -> None:
    """Assert that all bytes are stored; another protocol class drops the body, which the client must be told."""
    if OWN_CLASS:
        assert outcome == f"204 {len(data)}"
        assert content(server.port, path) == data
    else:
        assert outcome.startswith("400 ")
        assert offset_of(server.port, path) == 0
        assert patch(server.port, path, 0, data).status == 204


@pytest.mark.parametrize("size", [10, 5 * MEBI])
def test_curl_that_offers_http2_uploads(server: ServerProcess, tmp_path: Path, size: int) -> None:
    curl = require("curl")
    data = payload(size)
    (tmp_path / "data").write_bytes(data)
    path = create(server.port, size)
    headers = patch_headers(0, {"Tus-Resumable": "1.0.0", "Expect": ""})
    options = [option for name, value in headers.items() for option in ("-H", f"{name}: {value}")]
    command = [curl, "-s", "--http2", "-X", "PATCH", "--data-binary", f"@{tmp_path / 'data'}", *options]
    written = ["-o", str(tmp_path / "answer"), "-w", "%{http_code} %header{upload-offset}"]
    finished = subprocess.run([*command, *written, server.origin + path], capture_output=True, text=True, timeout=60)
    check(server, path, data, finished.stdout)


def test_javas_client_uploads(server: ServerProcess, tmp_path: Path) -> None:
    java = require("java")
    data = payload(MEBI)
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "Patch.java").write_text(JAVA)
    path = create(server.port, len(data))
    command = [java, str(tmp_path / "Patch.java"), server.origin + path, str(tmp_path / "data")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    check(server, path, data, finished.stdout.strip())


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("together", [False, True], ids=["body later", "in one packet"])
def test_a_body_behind_an_offer_to_upgrade(server: ServerProcess, upgrade: str, chunked: bool, together: bool) -> None:
    data = payload(1000)
    path = create(server.port, len(data))
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(data))}
    body = chunk(data[:400]) + chunk(data[400:]) + chunk(b"") if chunked else data
    with Connection(server.port) as connection:
        headers = patch_headers(0, H2C | {"Upgrade": upgrade} | framing)
        if together:
            fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n{fields}\r\n"
            connection.send(head.encode() + body)
        else:
            connection.start("PATCH", path, headers)
            connection.send(body)
        answer = connection.answer()
        if OWN_CLASS:
            assert (answer.status, answer.offset) == (204, len(data))
            connection.start("HEAD", path, H2C)
            assert connection.answer().offset == len(data)
        else:
            assert answer.status == 400
    if OWN_CLASS:
        assert content(server.port, path) == data
    else:
        assert offset_of(server.port, path) == 0


def test_a_creation_with_a_body_that_offers_to_upgrade(server: ServerProcess) -> None:
    headers = {"Upload-Length": "5", "Content-Type": OFFSET_STREAM, "Content-Length": "5"}
    with Connection(server.port) as connection:
        connection.start("POST", "/files", H2C | headers)
        connection.send(b"hello")
        answer = connection.answer()
        assert (answer.status, answer.offset) == (201, 5 if OWN_CLASS else 0)
