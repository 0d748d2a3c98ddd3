"""Connections of a server counted, filled and asked beside."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from tests.support.harness import ServerProcess
from tests.support.process_memory import resident_size
from tests.support.wire.connection import Connection
from tests.support.wire.requests import offset_of, request, start_patch

HEAD = "HEAD {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n"


def metric(port: int, name: str) -> float:
    """Return the sum of a metric over all its labels."""
    text = request(port, "GET", "/metrics").body.decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    )


def interrupt_until_listeners_leave(server: ServerProcess, path: str) -> None:
    """Interrupt appends to an upload at offset 1 until it has no listener, and check that none costs memory."""
    before = resident_size(server.pid)
    while metric(server.port, "tusd_listeners"):
        for _ in range(20):
            with start_patch(server.port, path, 1, 10) as sender:  # an interruption and a resumption each
                sender.wait_until_read()
    assert resident_size(server.pid) - before < 2 << 20


def open_connections(port: int) -> int:
    """Return the number of connections that the server has, without the one that asks."""
    return round(metric(port, "tusd_connections_open")) - 1


def pour(connection: Connection, piece: bytes, most: int) -> int:
    """Send a piece again and again; returns how many bytes went before the server closed the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            connection.send(piece)
            sent += len(piece)
    return sent


@contextlib.contextmanager
def answered_meanwhile(port: int, path: str, seconds: float = 2.0) -> Iterator[None]:
    """Somebody else asks for an upload all the time, and never waits for longer."""
    waits: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            started = time.monotonic()
            offset_of(port, path)
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert max(waits) < seconds, f"a HEAD took {max(waits):.1f} s"
