"""An HTTP server in threads of this process, as endpoints of applications are played with."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class HTTPEndpoint:
    """A server whose answers a test can hold back; use as a context manager.

    The class of its `handler` is given the server as `endpoint`, and waits for `hold` before it answers.
    """

    handler: type[EndpointHandler]

    def __init__(self) -> None:
        self.hold = threading.Event()  # while it is clear, nothing is answered
        self.hold.set()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), type("Handler", (self.handler,), {"endpoint": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])


class EndpointHandler(BaseHTTPRequestHandler):
    """A handler of the requests of one connection, which logs nothing."""

    def log_message(self, format: str, *args: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the server under test has closed the connection."""
