"""SIGTERM and SIGINT: what is in flight is committed, the process ends in time, and its successor goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
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

GRACE = 6.0
ENDS = {signal.SIGTERM: (0, -signal.SIGTERM), signal.SIGINT: (0, -signal.SIGINT, 128 + signal.SIGINT)}
SIGNALS = list(ENDS)
WORKERS = [1, 2]


def serve(directory: Path, workers: int = 1, **options: object) -> ServerProcess:
    options = {"workers": workers, "shutdown_grace": f"{GRACE}s"} | options
    return ServerProcess(directory / "uploads", port=0, env={}, **options)


def stop(server: ServerProcess, number: signal.Signals, seconds: float = GRACE) -> None:
    """End the server with a signal, and assert that it ends in time, with the right exit code and without leftovers."""
    processes = [server.pid, *children(server.pid)]
    with promptly(f"the end of the server after {number.name}", seconds):
        os.kill(server.pid, number)
        code = server.wait(GRACE + 10)
    assert code in ENDS[number]
    wait_until(lambda: not any(map(is_running, processes)), "no process is left", 5)


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while the file is read
        return False


def start_again(server: ServerProcess) -> None:
    server.origin = server.url = ""
    server.start()


def assert_ended_by_shutdown(answer: Answer | None) -> None:
    if answer is not None:
        assert answer.status == 503, answer
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"
        assert "upload-offset" not in answer.headers


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("number", SIGNALS)
def test_an_idle_server_ends_at_once(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    with serve(tmp_path, workers) as server, Connection(server.port) as idle:
        idle.start("OPTIONS", "/files", {})
        assert idle.answer().status == 200
        stop(server, number, 5)
        assert "Traceback" not in "".join(server.log), "".join(server.log)
        assert idle.answer_or_closed() is None  # a kept connection is closed, not reset in the middle of something


@pytest.mark.long
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("number", SIGNALS)
def test_silent_patches_are_committed_and_told_to_come_back(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    data = payload(2 * MEBI)
    with serve(tmp_path, workers) as server, ExitStack() as stack:
        stalled = {}
        for sent in (0, 1, 100_000, MEBI + 1, 2 * MEBI - 1):
            path = create(server.port, len(data))
            stalled[path] = (stack.enter_context(stalled_patch(server.port, path, data, sent)), sent)
        stop(server, number)
        assert "Traceback" not in "".join(server.log), "".join(server.log)
        for connection, _ in stalled.values():
            assert_ended_by_shutdown(connection.answer_or_closed())
        start_again(server)
        for path, (_, sent) in stalled.items():
            assert offset_of(server.port, path) == sent
            complete(server.port, path, data)


@pytest.mark.long
@pytest.mark.parametrize("workers", WORKERS)
def test_patches_in_full_flight_are_committed(tmp_path: Path, workers: int) -> None:
    """Clients send as fast as they can and look at the same time: nothing that was acknowledged is lost."""
    data = payload(40 * MEBI)
    piece = 64 * KIBI
    with serve(tmp_path, workers) as server, ThreadPoolExecutor(8) as executor:
        paths = [create(server.port, len(data)) for _ in range(4)]
        acknowledged = dict.fromkeys(paths, 0)
        sent = dict.fromkeys(paths, 0)
        stopped = threading.Event()

        def send(path: str) -> Answer | None:
            with start_patch(server.port, path, 0, len(data)) as connection:
                try:
                    while sent[path] < len(data):
                        connection.send(data[sent[path] : sent[path] + piece])
                        sent[path] += piece
                        time.sleep(0.005)
                except OSError:
                    pass
                return connection.answer_or_closed()

        def look(path: str) -> None:
            """Repeat HEAD until the server is gone, and assert that every answer is right."""
            while True:
                try:
                    answer = head(server.port, path)
                except OSError:
                    if stopped.is_set():
                        return
                    raise
                if answer.status == 200:
                    assert answer.offset >= acknowledged[path]
                    acknowledged[path] = answer.offset
                else:
                    assert answer.status == 423, answer

        senders = [executor.submit(send, path) for path in paths]
        lookers = [executor.submit(look, path) for path in paths]
        wait_until(lambda: all(acknowledged[path] > MEBI for path in paths), "all PATCHes are under way")
        stopped.set()
        stop(server, signal.SIGTERM)
        for sender in senders:
            assert_ended_by_shutdown(sender.result())
        for looker in lookers:
            looker.result()
        start_again(server)
        for path in paths:
            assert acknowledged[path] <= offset_of(server.port, path) <= sent[path] + piece
            complete(server.port, path, data)


def test_a_patch_with_a_checksum_keeps_nothing_at_shutdown(tmp_path: Path) -> None:
    data = payload(MEBI)
    with serve(tmp_path) as server:
        path = create(server.port, len(data))
        assert patch(server.port, path, 0, data[:1000]).status == 204
        with start_patch(server.port, path, 1000, len(data) - 1000, checksum(data[1000:])) as connection:
            connection.send(data[1000:500_000])
            connection.wait_until_read()
            stop(server, signal.SIGTERM)
            assert_ended_by_shutdown(connection.answer_or_closed())
        start_again(server)
        assert offset_of(server.port, path) == 1000
        complete(server.port, path, data, checksum(data[1000:]))


def test_a_chunked_patch_of_deferred_length_is_committed_at_shutdown(tmp_path: Path) -> None:
    data = payload(MEBI)
    with serve(tmp_path) as server:
        path = create(server.port, None)
        with start_patch(server.port, path, 0, None) as connection:
            connection.send(b"80000\r\n" + data[:400_000])
            connection.wait_until_read()
            stop(server, signal.SIGTERM)
            assert_ended_by_shutdown(connection.answer_or_closed())
        start_again(server)
        answer = head(server.port, path)
        assert (answer.status, answer.offset) == (200, 400_000)
        assert answer.headers["upload-defer-length"] == "1"
        complete(server.port, path, data, {"Upload-Length": str(len(data))})


def test_a_creation_with_upload_tells_its_location_at_shutdown(tmp_path: Path) -> None:
    data = payload(MEBI)
    with serve(tmp_path) as server, Connection(server.port) as connection:
        headers = creation_headers(len(data), data) | {"Content-Length": str(len(data))}
        connection.start("POST", "/files", headers)
        connection.send(data[:300_000])
        connection.wait_until_read()
        stop(server, signal.SIGTERM)
        answer = connection.answer()
        assert (answer.status, answer.offset) == (201, 300_000)
        start_again(server)
        complete(server.port, path_of(answer), data)


def test_a_client_that_does_not_read_its_download_does_not_hold_up_the_end(tmp_path: Path) -> None:
    data = payload(24 * MEBI)
    with serve(tmp_path, shutdown_grace="2s") as server:
        path = create(server.port, len(data), body=data)
        with Connection(server.port) as reader:
            reader.start("GET", path, {})
            assert reader.socket.recv(1000)
            stop(server, signal.SIGTERM, 2 + 5)
        start_again(server)
        assert_content(server.port, path, data)


def test_a_request_that_waits_for_a_lock_is_answered_at_shutdown(tmp_path: Path) -> None:
    """PATCHes contend for one upload when the signal comes: all of them end, and what is stored fits together."""
    data = payload(4 * MEBI)
    with serve(tmp_path) as server, ThreadPoolExecutor(6) as executor:
        path = create(server.port, len(data))
        stopped = threading.Event()

        def contend() -> None:
            while True:
                try:
                    offset = offset_of(server.port, path)
                    answer = patch(server.port, path, offset, data[offset : offset + 5 * KIBI])
                except OSError:
                    if stopped.is_set():
                        return
                    continue  # taken over
                assert answer.status in (204, 409, 423, 503), answer

        contenders = [executor.submit(contend) for _ in range(6)]
        wait_until(lambda: offset_of(server.port, path) > 50 * KIBI, "the contenders are under way")
        acknowledged = offset_of(server.port, path)
        stopped.set()
        stop(server, signal.SIGTERM)
        for contender in contenders:
            contender.result()
        start_again(server)
        assert offset_of(server.port, path) >= acknowledged
        complete(server.port, path, data)


def test_a_shutdown_during_a_concatenation_leaves_a_whole_upload_or_none(tmp_path: Path) -> None:
    part = payload(32 * MEBI)
    with serve(tmp_path, sweep_interval="0.2s") as server:
        partial = create(server.port, len(part), {"Upload-Concat": "partial"}, part)
        headers = {"Upload-Concat": f"final;{partial} {partial} {partial}"}
        with Connection(server.port) as connection:
            connection.start("POST", "/files", headers | {"Content-Length": "0"})
            connection.wait_until_read()
            stop(server, signal.SIGTERM)
            answer = connection.answer_or_closed()
        start_again(server)
        repeated = request(server.port, "POST", "/files", headers)
        assert repeated.status == 201
        if answer is not None and answer.status == 201:
            assert path_of(answer) == path_of(repeated)
        assert_content(server.port, path_of(repeated), part * 3)
