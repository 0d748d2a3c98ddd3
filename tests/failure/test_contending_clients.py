"""Clients that contend for one upload, or ask for one that is being received."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import PROMPT, promptly, wait_until
from tests.support.wire.messages import KIBI, MEBI, checksum, payload
from tests.support.wire.requests import (
    assert_content,
    create,
    offset_of,
    patch,
    request,
    start_patch,
)
from tests.support.wire.scenarios import contend, look_at_a_running_patch, take_over


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with its default settings for all of this file: every test has uploads of its own."""
    with ServerProcess(tmp_path_factory.mktemp("contending") / "uploads") as process:
        yield process


# A PATCH that is being received.


def test_head_neither_waits_for_a_running_patch_nor_ends_it(server: ServerProcess) -> None:
    look_at_a_running_patch(server.port, server.port, payload(24 * MEBI))


def test_head_of_a_running_patch_with_a_checksum_answers_where_it_began(server: ServerProcess) -> None:
    piece = 64 * KIBI
    data = payload(60 * piece)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:piece]).status == 204
    with start_patch(server.port, path, piece, len(data) - piece, checksum(data[piece:])) as connection:
        for start in range(piece, len(data), piece):
            connection.send(data[start : start + piece])
            if start < len(data) - piece:
                with promptly("HEAD"):
                    assert offset_of(server.port, path) == piece
        answer = connection.answer()
    assert (answer.status, answer.offset) == (204, len(data))
    assert_content(server.port, path, data)


def test_a_second_patch_takes_over_a_live_one(server: ServerProcess) -> None:
    take_over([server.port] * 3)


def test_a_taken_over_client_that_goes_on_sending_changes_nothing(server: ServerProcess) -> None:
    old, new = payload(12 * MEBI, 1), payload(12 * MEBI, 2)
    path = create(server.port, len(old))
    with start_patch(server.port, path, 0, len(old)) as first:

        def send_slowly() -> None:
            for start in range(0, len(old), 32 * KIBI):
                try:
                    first.send(old[start : start + 32 * KIBI])
                except OSError:
                    return
                time.sleep(0.005)

        with ThreadPoolExecutor(1) as executor:
            executor.submit(send_slowly)
            wait_until(lambda: offset_of(server.port, path) > MEBI, "the first PATCH is under way")
            with promptly("the PATCHes of the newcomer", 2 * PROMPT):
                offset = offset_of(server.port, path)
                answer = patch(server.port, path, offset, new[offset:])
                while answer.status == 409:  # the first one commits more, before it ends or meanwhile
                    offset = offset_of(server.port, path)
                    answer = patch(server.port, path, offset, new[offset:])
            assert (answer.status, answer.offset) == (204, len(new))
            ended = first.answer_or_closed()
            assert ended is None or ended.status == 423
    assert offset_of(server.port, path) == len(new)
    assert_content(server.port, path, old[:offset] + new[offset:])


# Many at once.


def test_contending_writers_never_interleave(server: ServerProcess) -> None:
    contend([server.port], payload(4 * MEBI), writers=8)


def test_one_of_many_patches_at_the_same_offset_wins(server: ServerProcess) -> None:
    contents = [payload(300 * KIBI, seed) for seed in range(12)]
    path = create(server.port, 300 * KIBI)
    start = threading.Barrier(len(contents))

    def write(data: bytes) -> int:
        start.wait()
        try:
            return patch(server.port, path, 0, data).status
        except ConnectionError:
            return 0

    with ThreadPoolExecutor(len(contents)) as executor:
        statuses = list(executor.map(write, contents))
    assert set(statuses) <= {0, 204, 409, 423}
    assert statuses.count(204) <= 1
    offset = offset_of(server.port, path)
    if 204 in statuses:
        assert offset == 300 * KIBI
        assert_content(server.port, path, contents[statuses.index(204)])
        return
    rest = payload(300 * KIBI, 99)[offset:]
    assert patch(server.port, path, offset, rest).status == 204
    stored = request(server.port, "GET", path).body
    assert any(stored == data[:offset] + rest for data in contents)


def test_heads_and_patches_of_many_clients_at_once(server: ServerProcess) -> None:
    """Many uploads, each with a client that sends small PATCHes and others that look: every answer is exact."""
    data = payload(400 * KIBI)

    def upload(seed: int) -> None:
        path = create(server.port, len(data))
        step = 7_000 + 1_313 * seed
        for offset in range(0, len(data), step):
            part = data[offset : offset + step]
            answer = patch(server.port, path, offset, part)
            assert (answer.status, answer.offset) == (204, offset + len(part))
            assert offset_of(server.port, path) == offset + len(part)
        assert_content(server.port, path, data)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(upload, range(8)))
