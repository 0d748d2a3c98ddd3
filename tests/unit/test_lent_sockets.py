"""Connections lent to a thread: nobody reads from them meanwhile, and reading goes on where the thread has stopped."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tusd_py.core.errors import UploadInterrupted
from tusd_py.http.body import RequestBody
from tusd_py.transfer.budget import BufferPool, ByteBudget
from tusd_py.transfer.socket_turn import MIN_WAITING, SocketTurn
from tusd_py.uvicorn_server.buffered_receiver import SCRATCH_SIZE, BufferedBodyReceiver
from tusd_py.uvicorn_server.flow import ConnectionFlow

MEBI = 1 << 20
DATA = os.urandom(2 * MEBI)


class Transport:
    """A transport that only notes whether it reads."""

    def __init__(self, connection: socket.socket) -> None:
        self._reads = True
        self.closing = False
        self.protocol: Any = None
        self._connection = connection

    def pause_reading(self) -> None:
        self._reads = False

    def resume_reading(self) -> None:
        self._reads = True

    def reads(self) -> bool:
        return self._reads

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> Any:
        return self._connection


class Rig:
    """A receiver of one body on one side of a connection, and the other side."""

    def __init__(self, client: socket.socket, server: socket.socket, size: int) -> None:
        self.client = client
        self.server = server
        self.transport = Transport(server)
        self.flow = ConnectionFlow(self.transport)  # type: ignore[arg-type]
        self.ended: list[str] = []
        cycle: Any = SimpleNamespace(
            flow=self.flow,
            transport=self.transport,
            message_event=SimpleNamespace(set=lambda: None),
            last_arrival=0.0,
        )
        protocol: Any = SimpleNamespace(
            buffered_body_ended=lambda: self.ended.append("body"),
            connection_lost=lambda exc: self.ended.append("connection"),
        )
        self.protocol = protocol
        self.receiver = BufferedBodyReceiver(protocol, cycle, BufferPool(ByteBudget(MEBI)), size)

    def lend(self) -> SocketTurn:
        turn = self.receiver.lend_socket(1 << 40, 0)
        assert turn is not None
        return turn


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    with client, server:
        yield client, server


@pytest.fixture
def rig(pair: tuple[socket.socket, socket.socket]) -> Rig:
    return Rig(*pair, 10 * MEBI)


def store(turn: SocketTurn, path: Path) -> None:
    """Do what the thread does."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    position = 0
    with turn:
        while turn.receive():
            position += turn.store(file, position)
    os.close(file)


def test_nobody_reads_from_a_connection_that_is_lent(rig: Rig) -> None:
    turn = rig.lend()
    assert not rig.transport.reads()
    rig.flow.resume_reading()
    assert not rig.transport.reads()
    rig.receiver.take_back_socket(turn)
    assert rig.transport.reads()


def test_a_connection_that_nobody_wants_to_read_stays_paused(rig: Rig) -> None:
    turn = rig.lend()
    rig.flow.resume_reading()
    rig.flow.pause_reading()
    rig.receiver.take_back_socket(turn)
    assert not rig.transport.reads()


def test_the_bytes_of_a_turn_belong_to_the_body(rig: Rig, tmp_path: Path) -> None:
    rig.client.sendall(DATA[:1000])
    turn = rig.lend()
    store(turn, tmp_path / "file")
    rig.receiver.take_back_socket(turn)
    rig.receiver.provide_buffer()
    assert len(rig.receiver.get_buffer(-1)) > 0
    assert rig.receiver._remaining == 10 * MEBI - turn.received


def test_a_body_ends_with_a_turn(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    rig = Rig(*pair, MEBI)
    turn = rig.lend()
    turn._room = 1000
    rig.receiver._remaining = 1000
    rig.client.sendall(DATA[:1500])
    store(turn, tmp_path / "file")
    rig.receiver.take_back_socket(turn)
    assert rig.ended == ["body"]
    assert rig.transport.protocol is rig.protocol
    assert rig.transport.reads()  # so that the end of the connection is noticed
    assert (tmp_path / "file").read_bytes() == DATA[:1000]
    assert rig.server.recv(MEBI) == DATA[1000:1500]  # the next request


def test_a_body_that_is_closed_during_a_turn_is_discarded_after_it(rig: Rig, tmp_path: Path) -> None:
    turn = rig.lend()
    rig.receiver.close()
    rig.flow.resume_reading()
    assert not rig.transport.reads()
    rig.client.sendall(DATA[:1000])
    store(turn, tmp_path / "file")
    assert turn.received == 0  # the turn was ended
    rig.receiver.take_back_socket(turn)
    assert rig.transport.reads()
    assert len(rig.receiver.get_buffer(-1)) == SCRATCH_SIZE


def test_a_connection_that_is_lost_ends_the_turn(rig: Rig, tmp_path: Path) -> None:
    rig.client.sendall(DATA[:1000])
    turn = rig.lend()
    rig.transport.closing = True
    rig.receiver.connection_lost(None)
    assert rig.ended == ["connection"]
    store(turn, tmp_path / "file")
    assert turn.received == 0
    rig.receiver.take_back_socket(turn)
    assert rig.receiver.lend_socket(MEBI, 0) is None


def test_a_socket_that_a_thread_still_uses_is_not_taken_back(rig: Rig) -> None:
    turn = rig.lend()
    turn.in_use = True
    rig.flow.resume_reading()
    rig.receiver.take_back_socket(turn)
    assert not rig.transport.reads()
    turn.close()


class Extension:
    """A body extension that notes what it is asked for."""

    last_arrival = 0.0
    whole = None

    def __init__(self, turn: SocketTurn) -> None:
        self.turn = turn
        self.asked: list[int] = []
        self.trailers: list[tuple[bytes, bytes]] = []

    async def receive(self) -> Any:
        raise NotImplementedError

    def read_buffered(self) -> bytes:
        return b""

    def lend_socket(self, most: int, waiting: int) -> SocketTurn:
        self.asked.append(waiting)
        return self.turn

    def take_back_socket(self, turn: SocketTurn) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def extension(rig: Rig) -> Iterator[Extension]:
    turn = rig.lend()
    yield Extension(turn)
    turn.close()


def body_of(extension: Extension, **options: Any) -> RequestBody:
    made: Any = extension
    return RequestBody(extension.receive, 10 * MEBI, extension=made, **options)


def test_only_the_first_turn_is_for_a_client_that_has_sent_nothing_ahead(extension: Extension) -> None:
    body = body_of(extension)
    for _ in range(2):
        turn = body.lend(MEBI)
        assert turn is not None
        turn.received = 5
        body.take_back(turn)
    assert extension.asked == [0, MIN_WAITING]
    assert body.bytes_received == 10


def test_a_body_that_is_interrupted_ends_the_turn_and_gets_no_other(extension: Extension, tmp_path: Path) -> None:
    body = body_of(extension)
    turn = body.lend(MEBI)
    assert turn is not None
    body.interrupt(UploadInterrupted())
    store(turn, tmp_path / "file")
    body.take_back(turn)
    assert turn.waited == 0
    assert body.lend(MEBI) is None


async def test_a_body_that_is_woken_ends_the_turn_and_has_another_after_a_read(
    extension: Extension, rig: Rig, tmp_path: Path
) -> None:
    rig.client.sendall(DATA[:1000])
    body = body_of(extension)
    turn = body.lend(MEBI)
    assert turn is not None
    body.wake()
    store(turn, tmp_path / "file")
    body.take_back(turn)
    assert (turn.received, turn.waited) == (1000, 0)
    assert body.lend(MEBI) is None
    assert await body.read() == b""
    assert body.lend(MEBI) is not None


def test_a_client_is_not_silent_during_a_turn(extension: Extension) -> None:
    body = body_of(extension)
    body._silent_since = time.monotonic() - 10
    assert body.lend(MEBI) is not None
    assert body.silent_for() == 0


def test_a_client_that_waits_for_100_continue_is_told_first(extension: Extension) -> None:
    assert body_of(extension, expects_continue=True).lend(MEBI) is None
    assert extension.asked == []
