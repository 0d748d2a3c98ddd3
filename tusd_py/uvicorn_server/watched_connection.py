"""The writing side of a connection, and the end of a client that reads too slowly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tusd_py.uvicorn_server.connections import Connections
from tusd_py.uvicorn_server.cycle import UploadCycle
from tusd_py.uvicorn_server.deadline import Deadline
from tusd_py.uvicorn_server.file_sender import FileSender
from tusd_py.uvicorn_server.flow import WriteWatch

logger = logging.getLogger("tusd_py.uvicorn_server")


class WatchedConnection(HttpToolsProtocol):
    """A connection of uvicorn that is closed once everything is sent, or when the client reads too slowly."""

    shared: ClassVar[Connections]
    cycle: UploadCycle

    def __init__(self, config: Any, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._writes: WriteWatch | None = None  # created once the client reads slowly
        self._file_sender: FileSender | None = None  # once a file was sent
        self._deadline = Deadline(self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._file_sender is not None:
            self._file_sender.stop()

    def eof_received(self) -> None:
        """Watch the client: the transport closes once everything is sent, which a slow reader must not delay."""
        self._watch_writes()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writes()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_watching_writes()

    def end(self, reason: str) -> None:
        """Close the connection once everything is sent."""
        logger.debug("a connection is closed: %s", reason)
        self._deadline.close()
        self.transport.close()
        self._watch_writes()

    def websocket_closed(self, seconds: float, end: Callable[..., None]) -> None:
        """Wait so many seconds for the client to close a WebSocket that the server has closed."""
        if not self.transport.is_closing():
            self.shared.became_idle(self)
            self._deadline.set(seconds, end, "its client does not close the WebSocket")

    def shutdown(self) -> None:
        if self.cycle is not None and self.cycle.is_websocket:
            self.cycle.close_at_shutdown()
        else:
            super().shutdown()

    def end_idle(self) -> None:
        logger.debug("a connection is closed: it is idle, and others wait")
        self.transport.abort()

    def file_sender(self) -> FileSender:
        """Return what sends files on this connection."""
        if self._file_sender is None:
            self._file_sender = FileSender(
                self.transport, self.shared.file_threads, self._watch_all_writes, self._stop_watching_writes
            )
        return self._file_sender

    def _watch_writes(self) -> None:
        if self.transport.get_write_buffer_size():  # a connection that closes has nothing left to wait for
            self._watch_all_writes()

    def _watch_all_writes(self) -> None:
        """Watch what is in the kernel's buffer too."""
        if self._writes is None:
            limits = (self.shared.idle_timeout, self.shared.min_rate)
            self._writes = WriteWatch(self.transport, *limits, self.reader_timed_out)
        self._writes.start()

    def _stop_watching_writes(self) -> None:
        if self._writes is not None:
            self._writes.stop()

    def reader_timed_out(self) -> None:
        self.shared.instrumentation.connection_ended("write_timeout")
        if self._is_serving():
            self.cycle.reader_timed_out = True
        self.transport.abort()

    def _is_serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
