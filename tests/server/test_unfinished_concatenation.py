"""Final uploads that are made before their parts are finished (`--concatenation-unfinished`)."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import scaled, wait_until
from tests.support.wire.messages import TUS
from tests.support.wire.promised import ask, content_of, create, delete, head, patch

TUS_HEADER = {"Tus-Resumable": "1.0.0"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "uploads", concatenation_unfinished=True, sweep_interval="0.2s") as process:
        yield process


def part(server: ServerProcess, length: int) -> str:
    return create(server.url, length, {"Upload-Concat": "partial"})


def final(server: ServerProcess, *parts: str) -> str:
    answer = ask("POST", server.url, TUS | {"Upload-Concat": "final;" + " ".join(parts)})
    assert answer.status == 201
    return answer["Location"]


def waiting(url: str) -> http.client.HTTPMessage:
    """Return the header fields of a final upload that waits: it is the one HEAD without an offset."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=scaled(10))
    with contextlib.closing(connection):
        connection.request("HEAD", address.path, headers=dict(TUS_HEADER))
        response = connection.getresponse()
        assert response.status == 200
        assert "Upload-Offset" not in response.headers
        return response.headers


def test_concatenation_of_unfinished_uploads_is_advertised(server: ServerProcess) -> None:
    assert "concatenation-unfinished" in ask("OPTIONS", server.url).listed("Tus-Extension")


def test_a_final_upload_waits_for_its_parts(server: ServerProcess) -> None:
    first, second = part(server, 5), part(server, 6)
    location = final(server, first, second)
    assert waiting(location)["Upload-Length"] == "11"
    assert ask("GET", location).status == 404
    assert patch(first, 0, b"hello").status == 204
    waiting(location)
    assert patch(second, 0, b" world").status == 204
    assert head(location)["Upload-Offset"] == "11"
    assert content_of(location) == b"hello world"


def test_a_final_upload_takes_no_bytes_while_it_waits(server: ServerProcess) -> None:
    location = final(server, part(server, 5))
    assert patch(location, 0, b"hello").status == 403


def test_parts_of_unknown_length(server: ServerProcess) -> None:
    only = create(server.url, None, {"Upload-Concat": "partial"})
    location = final(server, only)
    assert "Upload-Length" not in waiting(location)
    assert patch(only, 0, b"hello", {"Upload-Length": "5"}).status == 204
    assert content_of(location) == b"hello"


def test_a_final_upload_whose_part_is_removed_goes_away(server: ServerProcess) -> None:
    only = part(server, 5)
    location = final(server, only)
    assert delete(only).status == 204
    wait_until(lambda: head(location).status == 404)


def test_a_restart_does_not_forget_what_waits(server: ServerProcess) -> None:
    only = part(server, 5)
    location = final(server, only)
    server.restart()
    assert patch(only, 0, b"hello").status == 204
    assert content_of(location) == b"hello"
