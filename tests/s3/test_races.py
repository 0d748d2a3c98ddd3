"""Uploads to S3 through a real server while other things happen: timers, questions for the offset, a bad gateway."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_server import Fault, FaultyProxy, HeldRequests, s3_server
from tests.support.s3_uploads import PART, Place, id_of, serving
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.messages import chunk, payload
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, start_patch

DATA = payload(2 * PART + 12_345)


@pytest.fixture
def place() -> Place:
    return Place(s3_server())


@pytest.fixture
def proxy(place: Place) -> Iterator[FaultyProxy]:
    with FaultyProxy(place.server) as proxy:
        yield proxy


@pytest.fixture
def server(tmp_path: Path, place: Place, proxy: FaultyProxy) -> Iterator[ServerProcess]:
    """A server that works on requests only."""
    with serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0") as server:
        yield server


def committed_offset(server: ServerProcess, path: str) -> int:
    """Return the offset in the record; a HEAD would make a running PATCH commit."""
    records = server.upload_dir / ".tusd-py" / "uploads.sqlite3"
    with closing(sqlite3.connect(f"file:{records}?mode=ro", uri=True)) as database:
        ((offset,),) = database.execute("SELECT offset FROM uploads WHERE id = ?", (id_of(path),))
    return int(offset)


def test_a_body_ends_after_all_of_its_bytes_were_committed(server: ServerProcess) -> None:
    """As they are every ten seconds."""
    path = create(server.port, len(DATA))
    with start_patch(server.port, path, 0, None) as connection:
        connection.send(chunk(DATA))
        wait_until(lambda: committed_offset(server, path) == len(DATA), "all bytes are committed")
        connection.send(chunk(b""))
        answer = connection.answer()
    assert (answer.status, offset_of(server.port, path)) == (204, len(DATA))
    assert_content(server.port, path, DATA)


def test_two_heads_while_the_end_of_a_body_arrives(server: ServerProcess, proxy: FaultyProxy) -> None:
    path = create(server.port, len(DATA))
    held = HeldRequests(lambda request: request.operation == "PutObject")
    with ThreadPoolExecutor(2) as executor:
        with start_patch(server.port, path, 0, len(DATA)) as connection:
            connection.send(DATA[:-100])
            connection.wait_until_read()
            proxy.faults = held
            looking = [executor.submit(head, server.port, path)]
            held.wait()
            connection.send(DATA[-100:])
            looking.append(executor.submit(head, server.port, path))
            time.sleep(0.3)  # a chance for both to arrive
            held.release()
            answer = connection.answer()
        for looked in looking:
            assert looked.result(TIMEOUT).status in (200, 423)
    assert (answer.status, offset_of(server.port, path)) == (204, len(DATA))
    assert_content(server.port, path, DATA)


def test_a_head_that_looks_while_the_object_is_made(server: ServerProcess, proxy: FaultyProxy) -> None:
    """A reader that read the record before, and asks S3 after, must not conclude that bytes are gone."""
    path = create(server.port, len(DATA))
    cut = PART + 1000
    assert patch(server.port, path, 0, DATA[:cut]).status == 204
    proxy.faults = held = HeldRequests(lambda request: request.operation == "ListParts")
    with ThreadPoolExecutor(1) as executor:
        looking = executor.submit(head, server.port, path)
        held.wait()
        assert patch(server.port, path, cut, DATA[cut:]).status == 204
        held.release()
        answer = looking.result(TIMEOUT)
    assert answer.status in (200, 423), answer
    assert_content(server.port, path, DATA)


@pytest.mark.parametrize("sent", [1000, PART + 1000])
def test_a_gateway_that_does_not_find_s3(server: ServerProcess, proxy: FaultyProxy, sent: int) -> None:
    """The 404 of the gateway says nothing of uploads: no acknowledged byte is given up."""
    path = create(server.port, len(DATA))
    assert patch(server.port, path, 0, DATA[:sent]).status == 204
    server.restart()  # it has nothing in memory
    proxy.faults = lambda request: Fault.NO_SERVER if request.operation in ("ListParts", "GetObject") else Fault.NONE
    assert head(server.port, path).status not in (404, 410)
    assert patch(server.port, path, sent, DATA[sent : sent + 2000]).status not in (404, 409, 410)
    proxy.faults = lambda request: Fault.NONE
    assert offset_of(server.port, path) in (sent, sent + 2000)
