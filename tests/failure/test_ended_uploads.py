"""Uploads that end while somebody writes to them, and requests that have no right to disturb a writer.

Each with one server, two processes on one directory, and two hosts with one Redis: the writer meets the first, who
comes later the last.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, checksum, payload
from tests.support.wire.requests import (
    assert_content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)

DATA = payload(200 * KIBI)
PLACES = ["one server", "two processes", "two hosts"]


@contextlib.contextmanager
def serving(place: str, folder: Path, **options: Any) -> Iterator[list[ServerProcess]]:
    if place == "two hosts":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{folder.name}:"}
    with ExitStack() as stack:
        count = 1 if place == "one server" else 2
        yield [stack.enter_context(ServerProcess(folder / "uploads", **options)) for _ in range(count)]


@pytest.fixture(scope="module", params=PLACES)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    with serving(request.param, tmp_path_factory.mktemp("ended")) as servers:
        yield servers


def running(server: ServerProcess, path: str) -> Connection:
    """Start a PATCH of whose body one half is committed and the other not sent; return its connection."""
    connection = stalled_patch(server.port, path, DATA, len(DATA) // 2)
    wait_until(lambda: offset_of(server.port, path) == len(DATA) // 2, "half of it is committed")
    return connection


@pytest.mark.parametrize("state", ["sending", "silent"])
def test_an_append_whose_upload_is_removed_is_told_so(servers: list[ServerProcess], state: str) -> None:
    path = create(servers[0].port, len(DATA))
    with stalled_patch(servers[0].port, path, DATA, len(DATA) // 2) as connection:
        if state == "sending":
            connection.send(DATA[len(DATA) // 2 : -1])
        removed = request(servers[-1].port, "DELETE", path, {})
        assert removed.status == 204
        answer = connection.answer()
        assert answer.status == 404, answer
        assert "upload-offset" not in answer.headers
    for server in servers:
        assert head(server.port, path).status == 404


@pytest.mark.parametrize("place", PLACES)
def test_an_append_whose_upload_is_removed_is_told_that_it_is_gone_where_that_is_remembered(
    tmp_path: Path, place: str
) -> None:
    with serving(place, tmp_path, gone_for="1h") as servers:
        path = create(servers[0].port, len(DATA))
        with stalled_patch(servers[0].port, path, DATA, 1000) as connection:
            assert request(servers[-1].port, "DELETE", path, {}).status == 204
            assert connection.answer().status == 410


def test_an_append_whose_record_has_vanished_is_told_so(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        path = create(server.port, len(DATA))
        with stalled_patch(server.port, path, DATA, len(DATA) // 2) as connection:
            records = sqlite3.connect(tmp_path / "uploads" / ".tusd-py" / "uploads.sqlite3")
            with contextlib.closing(records), records:
                records.execute("DELETE FROM uploads")
            connection.send(DATA[len(DATA) // 2 : -1])
            assert connection.answer().status == 404


def test_an_append_taken_over_by_another_is_told_to_try_again(servers: list[ServerProcess]) -> None:
    path = create(servers[0].port, len(DATA))
    with running(servers[0], path) as connection:
        half = len(DATA) // 2
        assert patch(servers[-1].port, path, half, DATA[half:]).status == 204
        assert connection.answer().status == 423
    assert_content(servers[-1].port, path, DATA)


@pytest.mark.parametrize(
    ("offset", "body", "headers", "status"),
    [
        (0, DATA, {}, 409),
        (1, b"", {}, 409),
        (len(DATA) // 2 - 1, DATA[:100], {}, 409),
        (len(DATA) + 1, b"", {}, 409),
        (len(DATA) // 2, DATA, {}, 413),
        (len(DATA) // 2, b"x", {"Upload-Length": "5"}, 400),
    ],
    ids=["from the start", "empty", "just below", "beyond the length", "too long", "another length"],
)
def test_a_request_that_cannot_succeed_does_not_disturb_an_append(
    servers: list[ServerProcess], offset: int, body: bytes, headers: dict[str, str], status: int
) -> None:
    path = create(servers[0].port, len(DATA))
    half = len(DATA) // 2
    with start_patch(servers[0].port, path, 0, len(DATA)) as connection:
        connection.send(DATA[:half])
        wait_until(lambda: offset_of(servers[0].port, path) == half, "half of it is committed")
        answer = patch(servers[-1].port, path, offset, body, headers)
        assert answer.status == status, answer
        if status == 409:
            assert answer.offset == half
        connection.send(DATA[half:])
        assert connection.answer().status == 204
    assert_content(servers[-1].port, path, DATA)


def test_an_append_at_an_offset_that_the_holder_has_yet_to_commit_takes_over(servers: list[ServerProcess]) -> None:
    path = create(servers[0].port, len(DATA))
    with stalled_patch(servers[0].port, path, DATA, 1000) as connection:
        assert patch(servers[-1].port, path, 1000, DATA[1000:]).status == 204
        assert connection.answer_or_closed() is not None
    assert_content(servers[-1].port, path, DATA)


def test_a_wrong_checksum_leaves_no_length_behind_although_a_reader_asked_meanwhile(
    servers: list[ServerProcess],
) -> None:
    path = create(servers[0].port, None)
    wrong = {**checksum(b"something else"), "Upload-Length": str(len(DATA))}
    with start_patch(servers[0].port, path, 0, len(DATA), wrong) as connection:
        connection.send(DATA[:1000])
        connection.wait_until_read()
        connection.send(DATA[1000:-1])
        asked = head(servers[-1].port, path)
        assert asked.status == 200
        assert "upload-length" not in asked.headers
        connection.send(DATA[-1:])
        assert connection.answer().status == 460
    after = head(servers[-1].port, path)
    assert after.offset == 0
    assert "upload-length" not in after.headers
    assert patch(servers[-1].port, path, 0, DATA[:10], {"Upload-Length": "10"}).status == 204
    assert_content(servers[-1].port, path, DATA[:10])
