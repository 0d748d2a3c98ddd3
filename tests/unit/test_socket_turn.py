"""Turns in which a thread takes the bytes of a body from a socket: how many, from where to where, and when they end."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.faults.stalls import OSFaults
from tests.support.timing import scaled
from tusd_py.backends.disk.storage import THREADS
from tusd_py.transfer.socket_turn import LOW_WATER, MIN_TURN, SocketTurn
from tusd_py.uvicorn_server.descriptors import RECEIVING_DESCRIPTORS

MEBI = 1 << 20
DATA = random.Random(1).randbytes(3 * MEBI)


class Pair(NamedTuple):
    client: socket.socket
    server: socket.socket


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    with client, server:
        yield Pair(client, server)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def turn_of(pair: Pair, most: int) -> SocketTurn:
    turn = SocketTurn.of(pair.server, most, 0)
    assert turn is not None
    return turn


def store(turn: SocketTurn, file: int, start: int = 0) -> int:
    """Store what a turn receives; return the position after it."""
    position = start
    with turn:
        while turn.receive():
            position += turn.store(file, position)
    turn.close()
    return position


def sending(client: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    return thread


def low_water(pair: Pair) -> int:
    return pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


def test_bytes_are_stored_in_order_from_the_position_on(pair: Pair, file: int) -> None:
    thread = sending(pair.client, DATA)
    end = 0
    while end < len(DATA) - MIN_TURN:  # a turn ends early where the sender is slow
        end = store(turn_of(pair, len(DATA) - end), file, end)
    assert low_water(pair) == 1
    pair.server.setblocking(True)
    while end < len(DATA):
        end += os.pwrite(file, pair.server.recv(MEBI), end)
    assert os.pread(file, len(DATA) + 1, 0) == DATA
    thread.join()


def test_a_turn_takes_no_more_than_it_may(pair: Pair, file: int) -> None:
    pair.client.sendall(DATA[: MIN_TURN // 4])
    turn = turn_of(pair, MIN_TURN)
    turn._room = 1000
    assert store(turn, file) == turn.received == 1000
    assert pair.server.recv(MEBI) == DATA[1000 : MIN_TURN // 4]


def test_a_turn_ends_when_the_client_pauses(pair: Pair, file: int) -> None:
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    end = store(turn, file)
    assert end == turn.received <= 1000
    assert turn.waited > 0
    assert low_water(pair) == 1  # otherwise the event loop would not learn of the next bytes


def test_a_turn_ends_with_the_connection(pair: Pair, file: int) -> None:
    pair.client.sendall(DATA[:1000])
    pair.client.close()
    assert store(turn_of(pair, MEBI), file) == 1000


def test_a_turn_ends_at_urgent_data(pair: Pair, file: int) -> None:
    """The kernel moves no bytes behind it to a pipe, but calls the socket readable because of them."""
    pair.client.sendall(DATA[:1000])
    pair.client.send(b"!", socket.MSG_OOB)
    pair.client.sendall(DATA[1000 : 1000 + 2 * LOW_WATER])
    turn = turn_of(pair, MEBI)
    thread = threading.Thread(target=store, args=(turn, file))
    thread.start()
    thread.join(scaled(10))
    has_ended = not thread.is_alive()
    turn.end()
    thread.join()
    assert has_ended
    assert turn.received == 1000


def test_a_turn_that_is_ended_takes_no_more(pair: Pair, file: int) -> None:
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    turn.end()
    assert store(turn, file) == turn.received == 0


def test_a_turn_that_finishes_takes_what_is_there_and_does_not_wait(pair: Pair, file: int) -> None:
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    turn.finish()
    assert store(turn, file) == turn.received == 1000
    assert turn.waited == 0


def test_the_loss_of_the_connection_ends_a_turn_and_the_duplicate_of_the_socket(pair: Pair, file: int) -> None:
    turn = turn_of(pair, MEBI)
    pair.server.close()
    turn.connection_lost()
    pair.client.settimeout(scaled(10))
    assert pair.client.recv(1) == b""
    assert store(turn, file) == 0
    turn.connection_lost()  # of a turn that is over


def test_a_client_that_has_sent_too_little_ahead_gets_no_turn(pair: Pair) -> None:
    pair.client.sendall(DATA[:1000])
    deadline = time.monotonic() + scaled(10)
    while (turn := SocketTurn.of(pair.server, MEBI, 1000)) is None:
        assert time.monotonic() < deadline
    turn.close()
    assert SocketTurn.of(pair.server, MEBI, 1001) is None
    assert SocketTurn.of(pair.server, MIN_TURN - 1, 0) is None


def test_a_closed_socket_gets_no_turn(pair: Pair) -> None:
    pair.server.close()
    assert SocketTurn.of(pair.server, MEBI, 0) is None


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_takes_no_bytes_of_a_pipe_gets_copies(
    pair: Pair, file: int, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    splice = os.splice

    def refuse_files(source: int, target: int, count: int, **named: Any) -> int:
        if target == file:
            raise OSError(error, os.strerror(error))
        return splice(source, target, count, **named)

    monkeypatch.setattr(os, "splice", refuse_files)
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    assert store(turn, file, 5) == 1005
    assert os.pread(file, 1000, 5) == DATA[:1000]
    assert not turn.splices


def test_a_write_that_fails_is_told_and_its_bytes_are_counted_as_received(
    pair: Pair, file: int, os_faults: OSFaults
) -> None:
    os_faults.fail("pwritev", "*/file", errno.ENOSPC)
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    with pytest.raises(OSError, match="No space left"):
        store(turn, file)
    assert turn.received == 1000
    assert low_water(pair) == 1
    turn.close()


def test_no_descriptor_is_left_open(pair: Pair, file: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pair.client.sendall(DATA[:1000])
    store(turn_of(pair, MEBI), file)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_that_is_no_socket_gets_no_turn_and_leaves_none_open(file: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    connection: Any = SimpleNamespace(fileno=lambda: file)
    assert SocketTurn.of(connection, MEBI, 0) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_reserved_for_the_turns_of_all_threads(pair: Pair) -> None:
    before = len(os.listdir("/proc/self/fd"))
    turn = turn_of(pair, MEBI)
    with turn:
        used = len(os.listdir("/proc/self/fd")) - before
    turn.close()
    assert RECEIVING_DESCRIPTORS >= THREADS * used > 0


def test_without_a_pipe_nothing_is_taken(pair: Pair, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "pipe2", refuse)
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    assert store(turn, file) == turn.received == 0
    assert pair.server.recv(MEBI) == DATA[:1000]


def test_a_pipe_that_holds_little_is_not_used(pair: Pair, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user with too many of them: two or three pages at a time cost more than buffers do."""
    fcntl_call = fcntl.fcntl

    def refuse_to_enlarge(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            fcntl_call(descriptor, command, 2 * resource.getpagesize())
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return int(fcntl_call(descriptor, command, argument))

    monkeypatch.setattr(fcntl, "fcntl", refuse_to_enlarge)
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    assert store(turn, file) == turn.received == 0
    assert turn.splices  # the next turn may have a larger one
    assert pair.server.recv(MEBI) == DATA[:1000]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EPERM])
def test_a_kernel_that_moves_no_bytes_of_a_socket_is_not_asked_again(
    pair: Pair, file: int, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(source: int, target: int, count: int, **named: Any) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "splice", refuse)
    pair.client.sendall(DATA[:1000])
    turn = turn_of(pair, MEBI)
    assert store(turn, file) == turn.received == 0
    assert not turn.splices
    assert pair.server.recv(MEBI) == DATA[:1000]


def test_a_thread_waits_for_many_bytes_at_a_time_once_some_have_come(pair: Pair, file: int) -> None:
    """The kernel enlarges the buffer of the socket for them, and never makes it smaller."""
    size = pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    turn = turn_of(pair, MEBI)
    seen: list[int] = []
    poll = turn._poll

    class Poll:
        def poll(self, pause: int) -> Any:
            seen.append(low_water(pair))
            if len(seen) == 1:
                assert pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
                pair.client.sendall(DATA[:1000])
                return poll.poll(scaled(10) * 1000)
            return poll.poll(pause)

    turn._poll = Poll()  # type: ignore[assignment]
    assert 0 < store(turn, file) <= 1000
    assert seen == [1, LOW_WATER]


def test_a_silent_client_gets_no_larger_buffer(pair: Pair, file: int) -> None:
    size = pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert store(turn_of(pair, MEBI), file) == 0
    assert pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
