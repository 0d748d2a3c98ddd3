"""A receiver of events in a process of its own, which can be killed at any time and has logged what it took before.

Run as a program, it serves on a port: `python -m tests.support.event_receiver PORT LOG MODE`. Modes: `take` logs the
event, then answers 204; `hold` logs it and never answers; `refuse` answers 503.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.harness import ROOT
from tests.support.redis_server import free_port
from tests.support.timing import wait_until


class EventReceiver:
    """The process; use as a context manager, ended by its own pid. The log outlives it."""

    def __init__(self, folder: Path, mode: str = "take") -> None:
        self.port = free_port()
        self.log = folder / "received.jsonl"
        self.log.touch()
        self.mode = mode
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    def start(self, mode: str | None = None) -> EventReceiver:
        self.mode = mode or self.mode
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.event_receiver", str(self.port), str(self.log), self.mode],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def restart(self, mode: str | None = None) -> None:
        self.kill()
        self.start(mode)

    def received(self) -> list[dict[str, Any]]:
        """Return the events in the order in which they came, repeated ones too."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """Return the events once so many have come."""
        wait_until(lambda: len(self.received()) >= count, f"{count} events arrive")
        return self.received()

    def __enter__(self) -> EventReceiver:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def check_received(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Assert order and stable ids; return the events of each upload by its id, each once, in order."""
    by_upload: dict[str, list[dict[str, Any]]] = defaultdict(list)
    bodies: dict[str, dict[str, Any]] = {}
    for event in events:
        known = bodies.setdefault(event["id"], event)
        assert known == event, "an event that is sent again is another one"
        mine = by_upload[event["subject"]]
        if known is event:
            sequence = int(event["sequence"])
            assert sequence == len(mine) + 1, (f"{sequence} after {len(mine)} events of {event['subject']}", mine)
            mine.append(event)
    return by_upload


class Handler(BaseHTTPRequestHandler):
    """The handler of one event."""

    protocol_version = "HTTP/1.1"
    mode = "take"
    log = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.mode == "refuse":
            self.answer(503)
            return
        event = json.loads(body)
        assert self.headers["webhook-id"] in (None, event["id"])
        os.write(self.log, json.dumps(event).encode() + b"\n")
        if self.mode == "hold":
            threading.Event().wait()
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    """A server that says nothing of connections that its clients reset."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None: ...


@contextlib.contextmanager
def receiving(folder: Path, mode: str = "take") -> Iterator[EventReceiver]:
    with EventReceiver(folder, mode) as receiver:
        yield receiver


if __name__ == "__main__":
    port, path, Handler.mode = sys.argv[1:]
    Handler.log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    server = Server(("127.0.0.1", int(port)), Handler)
    print("ready", flush=True)
    server.serve_forever()
