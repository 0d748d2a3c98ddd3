"""Several independent server processes on one upload directory: a client may meet a different one at every request."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import promptly, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, path_of, payload
from tests.support.wire.requests import (
    assert_content,
    complete,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)
from tests.support.wire.scenarios import (
    contend,
    look_at_a_running_patch,
    take_over,
    take_over_a_stalled_patch,
    terminate_a_stalled_patch,
)

Cluster = list[ServerProcess]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three processes with default settings; tests that kill one have processes of their own."""
    with several(tmp_path_factory.mktemp("processes"), 3) as servers:
        yield servers


@contextlib.contextmanager
def several(directory: Path, count: int, **options: object) -> Iterator[Cluster]:
    uploads = directory / "uploads"
    with ExitStack() as stack, ThreadPoolExecutor(count) as executor:
        starts = [executor.submit(ServerProcess(uploads, port=0, env={}, **options).start) for _ in range(count)]
        for start in starts:
            if start.exception() is None:
                stack.push(start.result().__exit__)
        yield [start.result() for start in starts]


def test_every_request_may_meet_another_process(cluster: Cluster) -> None:
    chance = random.Random(7)

    def upload(seed: int) -> None:
        data = payload(600 * KIBI, seed)
        path = create(chance.choice(cluster).port, None if seed % 2 else len(data), {"Upload-Metadata": "name YQ=="})
        offset = 0
        while offset < len(data):
            part = data[offset : offset + chance.randrange(1, 120 * KIBI)]
            headers = checksum(part) if chance.random() < 0.5 else {}
            if seed % 2 and offset + len(part) == len(data):
                headers["Upload-Length"] = str(len(data))
            answer = patch(chance.choice(cluster).port, path, offset, part, headers)
            assert (answer.status, answer.offset) == (204, offset + len(part))
            offset = answer.offset
            seen = head(chance.choice(cluster).port, path)
            assert (seen.status, seen.offset, seen.headers["upload-metadata"]) == (200, offset, "name YQ==")
        for server in cluster:
            assert_content(server.port, path, data)

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(upload, range(12)))


def test_a_client_resumes_at_another_process(cluster: Cluster) -> None:
    first, second, third = cluster
    data = payload(3 * MEBI)
    path = create(first.port, len(data))
    with start_patch(first.port, path, 0, len(data)) as connection:
        connection.send(data[:MEBI])
        connection.wait_until_read()
        connection.reset()
    with promptly("HEAD"):
        assert offset_of(second.port, path) == MEBI
    complete(third.port, path, data)


@pytest.mark.parametrize("silence", [0.0, 1.5])
def test_a_patch_that_stalls_in_one_process_is_taken_over_by_another(cluster: Cluster, silence: float) -> None:
    take_over_a_stalled_patch([server.port for server in cluster], silence)


def test_a_second_patch_takes_over_a_live_one_of_another_process(cluster: Cluster) -> None:
    take_over([server.port for server in cluster])


def test_head_at_another_process_neither_waits_for_a_running_patch_nor_ends_it(cluster: Cluster) -> None:
    look_at_a_running_patch(cluster[0].port, cluster[1].port, payload(12 * MEBI))


def test_contending_writers_at_different_processes_never_interleave(cluster: Cluster) -> None:
    contend([server.port for server in cluster], payload(2 * MEBI), writers=6)


def test_partials_of_different_processes_are_concatenated(cluster: Cluster) -> None:
    parts = [payload(size, size) for size in (300 * KIBI, 1, 0, 2 * MEBI)]
    partials = [
        create(server.port, len(part), {"Upload-Concat": "partial"})
        for server, part in zip([*cluster, cluster[0]], parts, strict=True)
    ]
    for number, (path, part) in enumerate(zip(partials, parts, strict=True)):
        if part:
            assert patch(cluster[(number + 1) % 3].port, path, 0, part).status == 204
    headers = {"Upload-Concat": "final;" + " ".join(partials)}

    def concatenate(server: ServerProcess) -> Answer:
        return request(server.port, "POST", "/files", headers)

    with ThreadPoolExecutor(3) as executor:  # a client that did not wait for the answer, three times
        answers = list(executor.map(concatenate, cluster))
    assert [answer.status for answer in answers] == [201] * 3
    assert len({path_of(answer) for answer in answers}) == 1
    for server in cluster:
        assert_content(server.port, path_of(answers[0]), b"".join(parts))


def test_a_termination_is_known_to_every_process(cluster: Cluster) -> None:
    path = terminate_a_stalled_patch([server.port for server in cluster])
    assert not (cluster[0].upload_dir / path.rpartition("/")[2]).exists()


def test_an_upload_expires_in_every_process(tmp_path: Path) -> None:
    data = payload(100 * KIBI)
    with several(tmp_path, 2, expires_after="1s", sweep_interval="0.2s") as (first, second):
        unfinished = create(first.port, len(data), body=data[:1000])
        finished = create(first.port, len(data), body=data)
        kept_alive = create(first.port, len(data))
        offset = 0
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:  # every byte puts the expiry off, at whatever process
            offset = patch((second, first)[offset % 2].port, kept_alive, offset, data[offset : offset + 1]).offset
            time.sleep(0.1)
        for server in (first, second):
            assert head(server.port, unfinished).status == 404
            assert patch(server.port, unfinished, 1000, data[1000:]).status == 404
            assert_content(server.port, finished, data)
            assert offset_of(server.port, kept_alive) == offset
        file = first.upload_dir / unfinished.rpartition("/")[2]
        wait_until(lambda: not file.exists(), "the file of the expired upload is removed", 5)
        complete(first.port, kept_alive, data)


def test_the_sweeper_of_one_process_leaves_the_patch_of_another_alone(tmp_path: Path) -> None:
    """An upload whose expiry passes while bytes arrive is in use, and not swept."""
    data = payload(100_000)
    with several(tmp_path, 2, expires_after="1s", sweep_interval="0.1s") as (first, second):
        path = create(first.port, len(data))
        with start_patch(first.port, path, 0, len(data)) as connection:
            for start in range(0, len(data), 5_000):
                connection.send(data[start : start + 5_000])
                time.sleep(0.15)  # three seconds altogether
            answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(data))
        assert_content(second.port, path, data)


def test_the_death_of_the_process_that_writes_lets_another_go_on(tmp_path: Path) -> None:
    data = payload(4 * MEBI)
    with several(tmp_path, 2) as (first, second):
        paths = [create(first.port, len(data)) for _ in range(3)]
        acknowledged = []
        with ExitStack() as stack:
            for number, path in enumerate(paths):
                connection = stack.enter_context(stalled_patch(first.port, path, data, (number + 1) * MEBI))
                acknowledged.append(offset_of(second.port, path))
                assert acknowledged[-1] == (number + 1) * MEBI
                connection.send(data[(number + 1) * MEBI :][: 200 * KIBI])
            first.kill()
            for path, offset in zip(paths, acknowledged, strict=True):
                with promptly("HEAD"):
                    assert offset <= offset_of(second.port, path) <= offset + 200 * KIBI
                complete(second.port, path, data)
        first.restart()
        for path in paths:
            assert_content(first.port, path, data)


def test_the_death_of_the_process_that_concatenates_lets_another_finish(tmp_path: Path) -> None:
    part = payload(32 * MEBI)
    with several(tmp_path, 2, sweep_interval="0.2s") as (first, second):
        partial = create(first.port, len(part), {"Upload-Concat": "partial"}, part)
        headers = {"Upload-Concat": f"final;{partial} {partial} {partial} {partial}"}
        known = set(os.listdir(first.upload_dir))
        with Connection(first.port) as connection:
            connection.start("POST", "/files", headers | {"Content-Length": "0"})
            wait_until(lambda: set(os.listdir(first.upload_dir)) > known, "the concatenation has begun")
            first.kill()
        answer = request(second.port, "POST", "/files", headers)
        assert answer.status == 201
        assert_content(second.port, path_of(answer), part * 4)


def test_a_process_that_is_stopped_changes_nothing_and_blocks_no_head(tmp_path: Path) -> None:
    """A frozen process cannot let go of its lock: others refuse to write, but they do answer."""
    data = payload(2 * MEBI)
    with several(tmp_path, 2, lock_timeout="1s") as (first, second):
        path = create(first.port, len(data))
        with stalled_patch(first.port, path, data, MEBI) as frozen:
            acknowledged = offset_of(second.port, path)
            assert acknowledged == MEBI
            frozen.send(data[MEBI : MEBI + 1000])
            frozen.wait_until_read()
            os.kill(first.pid, signal.SIGSTOP)
            try:
                with promptly("HEAD"):
                    answer = head(second.port, path)
                assert answer.status in (200, 423)
                refused = patch(second.port, path, acknowledged, data[acknowledged:])
                assert (refused.status, "retry-after" in refused.headers) == (423, True)
                made = create(second.port, len(data), body=data)  # everything else goes on
                assert_content(second.port, made, data)
            finally:
                os.kill(first.pid, signal.SIGCONT)
            complete(second.port, path, data)
            ended = frozen.answer_or_closed()
            assert ended is None or ended.status == 423


def test_a_process_that_shuts_down_hands_its_uploads_to_the_others(tmp_path: Path) -> None:
    data = payload(2 * MEBI)
    with several(tmp_path, 2) as (first, second):
        path = create(first.port, len(data))
        with stalled_patch(first.port, path, data, 900_000) as connection:
            first.process.terminate()
            wait_until(lambda: not _is_served(first.port), "the process accepts no more connections")
            complete(second.port, path, data)
            answer = connection.answer_or_closed()
            assert answer is None or answer.status == 503
        assert first.wait(15) in (0, -signal.SIGTERM)


def _is_served(port: int) -> bool:
    try:
        request(port, "OPTIONS", "/files")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("attempt", range(4))
def test_processes_that_start_at_once_share_a_new_directory(tmp_path: Path, attempt: int) -> None:
    with several(tmp_path, 4) as servers:
        data = payload(50_000)
        paths = [create(server.port, len(data), body=data) for server in servers]
        for server in servers:
            for path in paths:
                assert_content(server.port, path, data)
        answer = request(servers[0].port, "POST", "/files", creation_headers(0))
        assert (answer.status, answer.offset) == (201, 0)
        assert_content(servers[3].port, path_of(answer), b"")
