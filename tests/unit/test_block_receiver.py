"""Bodies received straight into blocks: what was handed over is never written to again."""

from __future__ import annotations

import socket
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import scaled
from tusd_py.transfer.budget import BufferPool, ByteBudget
from tusd_py.uvicorn_server.buffered_receiver import BufferedBodyReceiver

MEBI = 1 << 20


class Flow:
    """The state of uvicorn's flow control, without a transport."""

    read_paused = False

    def pause_reading(self) -> None:
        self.read_paused = True

    def resume_reading(self) -> None:
        self.read_paused = False


def receiver(remaining: int) -> tuple[BufferedBodyReceiver, Flow]:
    flow = Flow()
    transport = SimpleNamespace(set_protocol=lambda protocol: None, is_closing=lambda: False)
    message_event = SimpleNamespace(set=lambda: None)
    cycle: Any = SimpleNamespace(flow=flow, transport=transport, message_event=message_event, last_arrival=0.0)
    protocol: Any = SimpleNamespace(buffered_body_ended=lambda: None)
    block_receiver = BufferedBodyReceiver(protocol, cycle, BufferPool(ByteBudget(MEBI)), remaining)
    block_receiver.provide_buffer()
    return block_receiver, flow


def arrive(block_receiver: BufferedBodyReceiver, data: bytes) -> None:
    block_receiver.get_buffer(-1)[: len(data)] = data
    block_receiver.buffer_updated(len(data))


@pytest.mark.parametrize("size", [10, 400_000])
def test_bytes_taken_from_a_block_that_is_not_full_stay_as_they_are(size: int) -> None:
    block_receiver, flow = receiver(10 * MEBI)
    arrive(block_receiver, b"a" * size)
    taken = block_receiver.read_buffered()
    if flow.read_paused:  # the transport reads again only after there is a new block
        block_receiver.provide_buffer()
        flow.resume_reading()
    arrive(block_receiver, b"b" * size)
    assert bytes(taken) == b"a" * size
    assert bytes(block_receiver.read_buffered()) == b"b" * size


def test_there_is_never_room_in_a_block_that_was_handed_over() -> None:
    block_receiver, flow = receiver(10 * MEBI)
    arrive(block_receiver, b"a" * 400_000)
    block_receiver.read_buffered()
    assert flow.read_paused
    assert len(block_receiver.get_buffer(-1)) == 0


def test_no_byte_after_the_body_is_taken() -> None:
    block_receiver, _ = receiver(100)
    assert len(block_receiver.get_buffer(-1)) == 100
    arrive(block_receiver, b"a" * 100)
    assert bytes(block_receiver.read_buffered()) == b"a" * 100


@pytest.mark.parametrize("workers", [1, 2])
def test_a_steady_stream_across_many_commits_is_stored_as_sent(tmp_path: Path, workers: int) -> None:
    """Commits take half-filled blocks while more bytes arrive."""
    data = b"".join(sha256(str(number).encode()).digest() for number in range(20 * MEBI // 32))
    with ServerProcess(tmp_path / "uploads", buffer_size="4MiB", workers=workers) as server:
        address = urlsplit(server.origin)
        with socket.create_connection((address.hostname, address.port), timeout=scaled(20)) as connection:
            headers = "Host: x\r\nTus-Resumable: 1.0.0\r\n"
            length = f"Upload-Length: {len(data)}\r\nContent-Length: {len(data)}\r\n"
            content_type = "Content-Type: application/offset+octet-stream\r\n"
            connection.sendall(f"POST /files HTTP/1.1\r\n{headers}{length}{content_type}\r\n".encode())
            started = time.monotonic()
            for position in range(0, len(data), 64 << 10):
                connection.sendall(data[position : position + (64 << 10)])
                # Bytes come all the time, over about four commit intervals.
                pause = started + 4 * position / len(data) - time.monotonic()
                time.sleep(max(0.0, pause))
            answer = connection.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 201")
        assert f"upload-offset: {len(data)}" in answer
        upload_id = answer.lower().split("location: ")[1].split("\r\n")[0].rpartition("/")[2]
        assert (server.upload_dir / upload_id).read_bytes() == data
