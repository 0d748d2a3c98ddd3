"""Many listeners: an idle one costs little memory and no processor time, and all hear of the end."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.process_memory import cpu_seconds, resident_size
from tests.support.wire.events import Listening, kinds
from tests.support.wire.raw_websockets import PONG, RawWebSocket, frame
from tests.support.wire.requests import create, patch

MANY = 500
SENDERS = 5
MAX_SIZE = 40 << 10  # bytes of memory of one
MAX_CPU = 0.05  # of a core, for all of them


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8 * MANY:
        pytest.skip(f"the limit of descriptors is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 * MANY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def follow(server: ServerProcess, path: str, address: str = "") -> Listening:
    return Listening(server.port, f"{path}/events", address=address)


def follow_by_socket(server: ServerProcess, path: str, address: str = "") -> RawWebSocket:
    return RawWebSocket(server.port, f"{path}/events", address=address)


@pytest.mark.long
@pytest.mark.fresh_interpreter
def test_idle_listeners_cost_little_and_all_hear_of_the_end(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server, ExitStack() as stack:
        path = create(server.port, 4)
        streams = [stack.enter_context(follow(server, path)) for _ in range(20)]
        assert all(stream.next() for stream in streams)
        before = resident_size(server.pid)
        for number in range(MANY):
            address = f"127.0.0.{2 + number % SENDERS}"  # one has a part of the places only
            stream = stack.enter_context(follow(server, path, address))
            assert stream.next()
            streams.append(stream)
        assert resident_size(server.pid) - before < MANY * MAX_SIZE
        assert_idle(server)
        assert patch(server.port, path, 0, b"four").status == 204
        for stream in streams:
            assert kinds(list(stream)) == ["finished"]


@pytest.mark.long
@pytest.mark.integrated
@pytest.mark.fresh_interpreter
def test_idle_websockets_cost_as_little(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server, ExitStack() as stack:
        path = create(server.port, 4)
        sockets = [stack.enter_context(follow_by_socket(server, path)) for _ in range(20)]
        assert all(socket.next_message() for socket in sockets)
        before = resident_size(server.pid)
        for number in range(MANY):
            socket = stack.enter_context(follow_by_socket(server, path, f"127.0.0.{2 + number % SENDERS}"))
            assert socket.next_message()
            sockets.append(socket)
        assert resident_size(server.pid) - before < MANY * MAX_SIZE
        assert_idle(server)
        for socket in sockets:  # so that none is taken for one that has vanished
            socket.send(frame(PONG))
        assert patch(server.port, path, 0, b"four").status == 204
        for socket in sockets:
            assert socket.next_message()["type"] == "finished"
            assert socket.code() == 1000


def assert_idle(server: ServerProcess) -> None:
    started, used = time.monotonic(), cpu_seconds(server.pid)
    time.sleep(6)
    assert cpu_seconds(server.pid) - used < MAX_CPU * (time.monotonic() - started)
