"""The port of administrators."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.admin.calls import ask, get, token_file
from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import ServerProcess, serving
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.requests import create, request


def admin_port_of(server: ServerProcess) -> int:
    """Return the port that the server has told of."""
    pattern = re.compile(r"administrators are served on http://127\.0\.0\.1:(\d+)/admin/api")
    wait_until(lambda: pattern.search("".join(server.log)) is not None)
    return int(pattern.findall("".join(server.log))[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_port_of_administrators_has_the_api_and_the_other_one_lacks_it(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), admin_port=0, workers=workers) as server:
        port = admin_port_of(server)
        create(server.port, 5)
        for _ in range(4):
            (upload,) = get(port, "uploads")["uploads"]
            assert upload["url"] is None
        assert ask(port, "GET", "uploads", token="wrong").status == 401
        assert request(port, "POST", "/files", {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}).status == 404
        assert request(port, "GET", "/admin").status == request(port, "GET", "/assets/config.json").status == 200
        assert request(server.port, "GET", "/admin").status == 404
        elsewhere = request(server.port, "GET", "/nothing")
        answer = ask(server.port, "GET", "uploads")
        assert (answer.status, answer.body) == (404, elsewhere.body)


def test_other_paths_of_the_port_of_administrators_are_answered_as_errors_are(tmp_path: Path) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), admin_port=0) as server:
        port = admin_port_of(server)
        for path in ("/", "/files", "/healthz", "/nothing", "/assets/nothing"):
            answer = request(port, "GET", path)
            assert (answer.status, answer.body) == (404, b"ERR_NOT_FOUND: there is nothing here\n")
            assert answer["X-Content-Type-Options"] == "nosniff"


def test_server_without_room_is_still_looked_at(tmp_path: Path) -> None:
    options = {"admin_token_file": token_file(tmp_path), "admin_port": 0, "max_connections": 1}
    with serving(tmp_path, **options, public_url="https://example.org") as server:
        port, path = admin_port_of(server), create(server.port, 5)
        with Connection(server.port) as connection:
            connection.start("PATCH", path, {"Content-Length": "5", "Upload-Offset": "0", "Tus-Resumable": "1.0.0"})
            connection.wait_until_read()
            (upload,) = get(port, "uploads")["uploads"]
            assert upload["url"] == f"https://example.org{path}"


def test_port_without_administrators_is_refused(tmp_path: Path) -> None:
    refused = execute("serve", "--admin-port", "0", "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(refused, 2, "--admin-port", "--admin-token-file")


def test_port_that_is_taken_is_refused_in_one_line(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        options = ["--admin-port", str(server.port), "--admin-token-file", str(token_file(tmp_path))]
        refused = execute("serve", "--port", "0", *options, "--upload-dir", str(tmp_path / "other"))
        assert_refused_in_one_line(refused, 1, "--admin-port", str(server.port))


def test_port_of_uploads_is_none_for_administrators(tmp_path: Path) -> None:
    options = ["--port", "8080", "--admin-port", "8080", "--admin-token-file", str(token_file(tmp_path))]
    refused = execute("serve", *options, "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(refused, 2, "--admin-port", "8080", "--port")
