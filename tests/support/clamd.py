"""A clamd that a test plays: it takes INSTREAM on a port or a socket, and answers as the test wants it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

MALWARE = b"X5O!P%@AP[4 as in a test file"


class Clamd:
    """A daemon; use as a context manager.

    Attributes:
        answer: the answer to a file; None for that of a scanner that knows `MALWARE`, "" for closing without one.
        max_size: bytes of a file after which the connection is closed, with an error as clamd sends it.
        says_why: whether that error is sent.
        cuts: the number of connections that are closed so.
        goes_on: event without which no answer is given.
        scanned: the sizes of the files that came to their end.
    """

    def __init__(self, socket_path: Path | None = None) -> None:
        self.answer: str | None = None
        self.max_size = 1 << 60
        self.says_why = True
        self.cuts = 1 << 60
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.scanned: list[int] = []
        self._path = socket_path
        daemon = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    daemon._serve(self.request)

        kind: Any = socketserver.ThreadingTCPServer if socket_path is None else socketserver.ThreadingUnixStreamServer
        self._server = kind(("127.0.0.1", 0) if socket_path is None else str(socket_path), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def address(self) -> str:
        if self._path is not None:
            return f"unix:{self._path}"
        return f"tcp://127.0.0.1:{self._server.server_address[1]}"

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        assert stream.read(10) == b"zINSTREAM\0"
        size, found, tail = 0, False, b""
        while length := int.from_bytes(stream.read(4)):
            data = stream.read(length)
            size += len(data)
            found = found or MALWARE in tail + data
            tail = data[-len(MALWARE) :]
            if size > self.max_size and self.cuts > 0:
                self.cuts -= 1
                if self.says_why:
                    connection.sendall(b"INSTREAM size limit exceeded. ERROR\0")
                else:  # as a daemon does that closes before it has read everything
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    stream.close()
                    connection.close()
                return
        self.goes_on.wait()
        self.scanned.append(size)
        answer = self.answer
        if answer is None:
            answer = "stream: Test.Malware FOUND" if found else "stream: OK"
        if answer:
            connection.sendall(answer.encode() + b"\0")

    def __enter__(self) -> Clamd:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
