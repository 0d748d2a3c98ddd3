"""Long bodies that a thread takes from the connection while it stores them: faults of the disk and of the client.

A server under the faults of `syscalls.c` tells by its splices that it was such a thread.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.preload import Fault, PreloadedFaults
from tests.support.harness import ServerProcess
from tests.support.timing import scaled
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, payload
from tests.support.wire.requests import assert_content, complete, create, head, offset_of, patch, start_patch

pytestmark = pytest.mark.integrated

DATA = payload(40 * MEBI, 7)
HEAD = "HEAD {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n"
STEP = 256 * KIBI


class Server(NamedTuple):
    process: ServerProcess
    faults: PreloadedFaults

    @property
    def port(self) -> int:
        return self.process.port

    def splices(self, path: str) -> Fault:
        """Return what counts the splices to the file of an upload."""
        return self.faults.slow("splice", f"*{path.rpartition('/')[2]}", 0)

    def stored(self, path: str) -> bytes:
        return (self.process.upload_dir / path.rpartition("/")[2]).read_bytes()


@pytest.fixture
def server(tmp_path: Path, preload_library: Path) -> Iterator[Server]:
    faults = PreloadedFaults(tmp_path / "faults", preload_library)
    with ServerProcess(tmp_path / "uploads", env=faults.env, shutdown_grace="2s") as process:
        yield Server(process, faults)


@contextlib.contextmanager
def sending(connection: Connection, data: bytes) -> Iterator[threading.Thread]:
    """Send bytes in a thread, as long as the server takes them."""

    def send() -> None:
        with contextlib.suppress(OSError):
            connection.send(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield thread
    finally:
        connection.close()
        thread.join()


def wait_for_offset(port: int, path: str, least: int) -> int:
    """Wait until a HEAD answers an offset of at least `least`, and return it."""
    deadline = time.monotonic() + scaled(30)
    while (offset := offset_of(port, path)) < least:
        assert time.monotonic() < deadline, offset
    return offset


def test_the_request_after_a_long_body_is_answered(server: Server) -> None:
    path = create(server.port, len(DATA))
    splices = server.splices(path)
    with start_patch(server.port, path, 0, len(DATA)) as connection:
        connection.send(DATA + HEAD.format(path=path).encode())
        answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(DATA))
        connection._method = "HEAD"
        assert connection.answer().offset == len(DATA)
    assert splices.hits
    assert_content(server.port, path, DATA)


def test_urgent_data_is_no_part_of_a_body(server: Server) -> None:
    path = create(server.port, len(DATA))
    with start_patch(server.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[: 5 * MEBI])
        connection.socket.send(b"!", socket.MSG_OOB)
        connection.send(DATA[5 * MEBI :])
        assert connection.answer().offset == len(DATA)
    assert_content(server.port, path, DATA)


def test_short_writes_of_the_thread_are_continued(server: Server) -> None:
    path = create(server.port, 2 * MEBI)
    server.faults.short("pwritev", f"*{path.rpartition('/')[2]}", 10_001)
    splices = server.splices(path)
    assert patch(server.port, path, 0, DATA[: 2 * MEBI]).offset == 2 * MEBI
    assert splices.hits
    assert_content(server.port, path, DATA[: 2 * MEBI])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_keeps_what_was_stored_before_it(server: Server, error: int) -> None:
    path = create(server.port, len(DATA))
    splices = server.splices(path)
    fault = server.faults.fail("pwritev", f"*{path.rpartition('/')[2]}", error, skip=20)
    with start_patch(server.port, path, 0, len(DATA)) as connection, sending(connection, DATA):
        assert connection.answer().status == (507 if error == errno.ENOSPC else 500)
    assert splices.hits
    offset = offset_of(server.port, path)
    assert 0 < offset < len(DATA)
    assert server.stored(path)[:offset] == DATA[:offset]
    fault.lift()
    complete(server.port, path, DATA)


def test_a_file_system_that_takes_no_splice_gets_the_same_bytes(server: Server) -> None:
    path = create(server.port, len(DATA))
    fault = server.faults.fail("splice", f"*{path.rpartition('/')[2]}", errno.EINVAL)
    assert patch(server.port, path, 0, DATA).offset == len(DATA)
    assert len(fault.hits) == 1  # then the server knows
    assert_content(server.port, path, DATA)


def test_a_body_for_which_there_is_no_pipe_is_received_by_the_event_loop(server: Server) -> None:
    path = create(server.port, len(DATA))
    fault = server.faults.fail("pipe2", "pipe", errno.ENFILE)
    assert patch(server.port, path, 0, DATA).offset == len(DATA)
    assert fault.hits
    assert_content(server.port, path, DATA)


@pytest.mark.parametrize("way", ["close", "reset"])
def test_what_a_client_sent_before_it_left_is_kept(server: Server, way: str) -> None:
    path = create(server.port, len(DATA))
    splices = server.splices(path)
    connection = start_patch(server.port, path, 0, len(DATA))
    connection.send(DATA[: 10 * MEBI])
    if way == "reset":
        connection.wait_until_read()
        connection.reset()
    else:
        connection.close()
    offset = wait_for_offset(server.port, path, 10 * MEBI)
    assert offset == 10 * MEBI
    assert splices.hits
    assert server.stored(path)[:offset] == DATA[:offset]
    complete(server.port, path, DATA)


def test_what_a_silent_client_has_sent_is_told_and_another_takes_over(server: Server) -> None:
    path = create(server.port, len(DATA))
    splices = server.splices(path)
    with start_patch(server.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[: 5 * MEBI + 123])
        connection.wait_until_read()
        assert offset_of(server.port, path) == 5 * MEBI + 123
        complete(server.port, path, DATA)
    assert splices.hits


def test_a_fast_client_is_interrupted_by_another(server: Server) -> None:
    """The first client sends all the time, and the thread has always something to take."""
    path = create(server.port, 1 << 40)
    splices = server.splices(path)
    stop = threading.Event()
    connection = start_patch(server.port, path, 0, 1 << 40)

    def pour() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                connection.send(DATA[:STEP])

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        splices.wait()
        assert wait_for_offset(server.port, path, MEBI) < 1 << 40
        deadline = time.monotonic() + scaled(30)
        while (answer := patch(server.port, path, offset_of(server.port, path), b"x")).status != 204:
            assert answer.status in (409, 423), answer
            assert time.monotonic() < deadline
    finally:
        stop.set()
        connection.close()
        thread.join()
    offset = offset_of(server.port, path)
    assert server.stored(path)[offset - 1 : offset] == b"x"


def test_a_shutdown_keeps_what_was_taken(server: Server) -> None:
    path = create(server.port, 1 << 40)
    splices = server.splices(path)
    with start_patch(server.port, path, 0, 1 << 40) as connection, sending(connection, DATA * 20):
        splices.wait(20)
        server.process.process.send_signal(signal.SIGTERM)
        assert connection.answer().status == 503
    assert server.process.process.wait(scaled(30)) in (0, -signal.SIGTERM)
    with ServerProcess(server.process.upload_dir) as successor:
        offset = offset_of(successor.port, path)
        assert offset > 0
        stored = server.stored(path)
        assert len(stored) == offset
        assert stored == (DATA * (offset // len(DATA) + 1))[:offset]


def test_a_stalled_disk_does_not_stall_others(server: Server) -> None:
    paths = [create(server.port, len(DATA)) for _ in range(10)]
    server.faults.stall("splice", "*/uploads/*")
    with contextlib.ExitStack() as stack:
        for path in paths:
            connection = stack.enter_context(start_patch(server.port, path, 0, len(DATA)))
            stack.enter_context(sending(connection, DATA))
        other = create(server.port, 2 * KIBI)
        assert patch(server.port, other, 0, DATA[: 2 * KIBI]).status == 204
        assert head(server.port, other).offset == 2 * KIBI
        server.faults.clear()
        for path in paths:
            wait_for_offset(server.port, path, len(DATA))
    for path in paths:
        assert_content(server.port, path, DATA)
