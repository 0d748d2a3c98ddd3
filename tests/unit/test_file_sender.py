"""Files sent by the kernel on a socket: back-pressure, lost connections and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tusd_py.uvicorn_server.connections import Connections
from tusd_py.uvicorn_server.file_sender import LONG, SHORT, FileSender, FileThreads, Patience, Turn, can_send_files

SIZE = 8 << 20


class Pair:
    """A sender on one side of a connection, and the other side."""

    def __init__(self, sender: FileSender, transport: asyncio.Transport, client: socket.socket) -> None:
        self.sender = sender
        self.transport = transport
        self.client = client
        self.watched: list[str] = []

    async def receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += await asyncio.get_running_loop().sock_recv(self.client, count - len(data))
        return bytes(data)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    server, client = socket.socketpair()
    client.setblocking(False)
    transport: Any
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=server)
    threads = FileThreads(1)
    watched: list[str] = []
    sender = FileSender(transport, threads, lambda: watched.append("watch"), lambda: watched.append("stop"))
    pair = Pair(sender, transport, client)
    pair.watched = watched
    yield pair
    transport.abort()
    client.close()
    assert await asyncio.to_thread(threads.close, 10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


async def test_a_range_is_sent_after_what_was_written(pair: Pair, file: Path) -> None:
    with file.open("rb") as opened:
        pair.transport.write(b"head")
        sending = asyncio.create_task(pair.sender.send(opened.fileno(), 5, SIZE - 10))
        assert await pair.receive(SIZE - 6) == b"head" + os.pread(opened.fileno(), SIZE - 10, 5)
        await sending
    assert pair.watched == ["watch", "stop"] * (len(pair.watched) // 2)


async def test_ranges_follow_each_other(pair: Pair, file: Path) -> None:
    with file.open("rb") as opened:

        async def send() -> None:
            for start in (0, 5, SIZE - 5):
                await pair.sender.send(opened.fileno(), start, 5)

        sending = asyncio.create_task(send())
        assert await pair.receive(15) == os.pread(opened.fileno(), 10, 0) + os.pread(opened.fileno(), 5, SIZE - 5)
        await sending


@contextlib.asynccontextmanager
async def waiting_send(pair: Pair, file: Path) -> AsyncIterator[asyncio.Task[None]]:
    """Begin to send a file that the client does not read; yield the task once it waits for the client."""
    with file.open("rb") as opened:
        sending = asyncio.create_task(pair.sender.send(opened.fileno(), 0, SIZE))
        while not pair.watched:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield sending


async def test_a_sender_waits_for_a_client_that_does_not_read(pair: Pair, file: Path) -> None:
    async with waiting_send(pair, file) as sending:
        assert not sending.done()
        await pair.receive(SIZE)
        await sending


async def test_a_lost_connection_ends_the_wait(pair: Pair, file: Path) -> None:
    async with waiting_send(pair, file) as sending:
        pair.sender.stop()
        with pytest.raises(ConnectionError):
            await sending


async def test_a_client_that_leaves_ends_the_sending(pair: Pair, file: Path) -> None:
    async with waiting_send(pair, file) as sending:
        pair.client.close()
        with pytest.raises(ConnectionError):
            await sending


async def test_a_cancelled_sender_keeps_no_descriptor(pair: Pair, file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with waiting_send(pair, file) as sending:
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_half_of_the_threads_stay_with_a_client_for_long_and_the_others_come_back_soon() -> None:
    threads, released = FileThreads(4), threading.Event()
    assert threads.patience() is LONG
    turns = [threads.run(released.wait)]
    assert threads.patience() is LONG
    turns.append(threads.run(released.wait))
    assert threads.patience() is SHORT
    released.set()
    await asyncio.gather(*turns)
    assert threads.patience() is LONG
    assert await asyncio.to_thread(threads.close, 60)


def test_a_turn_that_nobody_waits_for_ends_before_its_time(file: Path) -> None:
    server, client = socket.socketpair()
    with server, client, file.open("rb") as opened:
        server.setblocking(False)
        turn = Turn(server.fileno(), opened.fileno(), 0, SIZE, Patience(3600, 10))
        thread = threading.Thread(target=turn.run)
        thread.start()
        client.recv(1)
        turn.is_ended = True
        thread.join(60)
        assert not thread.is_alive()


async def test_a_file_that_is_too_short_is_an_error(pair: Pair, file: Path) -> None:
    with file.open("rb") as opened, pytest.raises(OSError, match="shorter"):
        await pair.sender.send(opened.fileno(), SIZE, 1)


def test_files_are_not_sent_past_an_encryption() -> None:
    assert not can_send_files("https")


async def test_the_threads_that_send_files_end_with_the_connections() -> None:
    shared = Connections()
    await shared.file_threads.run(lambda: None)
    await shared.close(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tusd-py-send")]


async def test_a_disk_that_holds_a_thread_delays_the_end_of_the_connections_for_the_given_time_only() -> None:
    shared = Connections()
    released = threading.Event()
    held = shared.file_threads.run(released.wait)
    await shared.close(0.05)
    assert not held.done()
    released.set()
    await held
    await shared.close(10)
