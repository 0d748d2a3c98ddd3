"""One request and its response under uvicorn, extended for uploads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

from tusd_py.core.buffers import Buffer
from tusd_py.http.body_extension import BODY_EXTENSION
from tusd_py.http.request import FILE_SENDING
from tusd_py.transfer.budget import LendsBuffers
from tusd_py.transfer.socket_turn import SocketTurn, can_lend_socket
from tusd_py.uvicorn_server.buffered_receiver import BufferedBodyReceiver
from tusd_py.uvicorn_server.file_sender import can_send_files
from tusd_py.uvicorn_server.flow import ConnectionFlow

if TYPE_CHECKING:
    from tusd_py.uvicorn_server.protocol import UploadProtocol

logger = logging.getLogger("tusd_py.uvicorn_server")

INFORMATIONAL = "http.response.informational"  # ASGI message and scope extension: an interim (1xx) response
SMALL_SEND_BUFFER = 16 << 10  # bytes, in the process and in the kernel each, of a response of small pieces
UNBOUNDED = 1 << 62  # in place of the size of a body that ends with its connection
MIN_BUFFERED_BODY = 256 << 10  # remaining bytes of a body from which on buffers replace the parser


def _no_op() -> None: ...


class UploadCycle(RequestResponseCycle):
    """One request and its response, and the `BodyExtension` of its body."""

    flow: ConnectionFlow

    def __init__(self, protocol: UploadProtocol, *, keep_alive: bool) -> None:
        """Take over the request whose head the protocol has read, and add the extensions to its scope."""
        super().__init__(
            scope=protocol.scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=protocol.access_log,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=protocol.expect_100_continue,
            keep_alive=keep_alive,
            on_response=protocol.on_response_complete,
        )
        extensions: Any = {BODY_EXTENSION: self, INFORMATIONAL: {}}
        if can_send_files(protocol.scheme):
            extensions[FILE_SENDING] = {}
        self.scope["extensions"] = extensions
        self.protocol = protocol
        self.pool: LendsBuffers | None = None
        self.receiver: BufferedBodyReceiver | None = None
        self.arrived = 0  # bytes of the body that passed the parser
        self.last_arrival = 0.0
        self.trailers: list[tuple[bytes, bytes]] = []
        self.end_delivered = False
        self.reader_timed_out = False

    async def run_asgi(self, app: Any) -> None:
        """Run the application; log no error if the client has disconnected or the shutdown grace is over."""
        try:
            await app(self.application_scope(), self.receive, self.send)
        except asyncio.CancelledError:
            logger.debug("%s %s was cancelled", self.scope["method"], self.scope["path"])
            self.protocol.end("the request was cancelled")
        except Exception:  # an exception of the application ends this request only
            self.logger.exception("Exception in ASGI application")
            await self._answer_failure()
        else:
            if not self.response_complete and not self.disconnected:
                logger.debug("%s %s has no whole answer", self.scope["method"], self.scope["path"])
                await self._answer_failure()
        finally:
            self.on_response = _no_op
            # An extension refers to this object, which refers to the scope: only the garbage collector would free them.
            self.scope["extensions"].clear()

    def application_scope(self) -> Any:
        """Return the scope that the application is called with."""
        return self.scope

    async def _answer_failure(self) -> None:
        if self.response_started:
            self.protocol.end("the answer is not whole")
        elif not self.disconnected:
            await self.send_500_response()

    async def send(self, message: Any) -> None:
        if message["type"] == INFORMATIONAL:
            self._send_informational(message["status"], message.get("headers", []))
        elif message["type"] == FILE_SENDING:
            await self._send_file(message["file"], message["offset"], message["count"])
            if not message.get("more_body", False):
                await super().send({"type": "http.response.body", "body": b""})
        else:
            if self.scope["http_version"] == "1.0":
                self._end_with_connection(message)
            await super().send(message)

    def _end_with_connection(self, message: Any) -> None:
        """Let the end of the connection be that of a body of unknown size: HTTP/1.0 has no chunks."""
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding, self.expected_content_length = False, UNBOUNDED
        elif self.expected_content_length > UNBOUNDED >> 1 and not message.get("more_body", False):
            self.expected_content_length = len(message.get("body", b""))

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        """Send a range of a file (ASGI, zero copy send); raises `ConnectionError` if the client is gone."""
        if self.disconnected:
            raise ConnectionResetError
        if not self.response_started or self.response_complete or self.chunked_encoding:
            raise RuntimeError("a file can only be a part of a body whose length is known")
        if self.scope["method"] == "HEAD":
            return
        if count > self.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        await self.protocol.file_sender().send(file, offset, count)
        self.expected_content_length -= count

    def respond(self, status: int, header_lines: bytes, body: bytes, *, close: bool) -> bool:
        """Send a whole response in one write, see `http.request.Responder`."""
        if self.disconnected:
            return True
        if self.response_started or self.flow.write_paused or self.access_log:
            return False
        if close:
            self.keep_alive = False
        lines = [STATUS_LINE[status]]
        for name, value in self.default_headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(header_lines)
        if not self.keep_alive and not close:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        if self.scope["method"] != "HEAD":
            lines.append(body)
        self.transport.write(b"".join(lines))
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True

    def _send_informational(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send an interim response (RFC 9110, section 15.2), unless the final one has begun."""
        if self.response_started or self.disconnected:
            return
        lines = [b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid HTTP header.")
            lines.append(b"%s: %s\r\n" % (name, value))
        self.transport.write(b"".join([*lines, b"\r\n"]))

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        while not self.response_complete:
            if self._has_message():
                data = self.read_buffered()
                self.end_delivered = self._is_at_end()
                return {"type": "http.request", "body": data, "more_body": not self.end_delivered}
            if self.disconnected:
                break
            self._continue_reading()
            await self.message_event.wait()
            self.message_event.clear()
        return {"type": "http.disconnect"}

    def body_arrived(self, body: bytes) -> None:
        """Add bytes of the body that the parser found."""
        self.arrived += len(body)
        self.last_arrival = time.monotonic()
        if not self.response_complete:
            self.body += body
            if len(self.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            self.message_event.set()

    def body_ended(self) -> None:
        self.more_body = False
        self.message_event.set()

    @property
    def is_websocket(self) -> bool:
        """Whether the request has become a WebSocket."""
        return False

    def close_at_shutdown(self) -> None:
        """Close the WebSocket, if it is one: the server ends."""

    def abort(self) -> None:
        """End the request: nothing more is received or sent."""
        self.disconnected = True
        self.message_event.set()

    def _has_message(self) -> bool:
        """Return whether a message can be delivered: of a long body a full buffer, or the rest at its end."""
        if self.body:
            return True
        if self.receiver is not None and self.receiver.filled and (self.receiver.is_full or self.disconnected):
            return True
        return self._is_at_end() and not self.end_delivered

    def _is_at_end(self) -> bool:
        return not self.more_body and not self.body and (self.receiver is None or not self.receiver.filled)

    @property
    def whole(self) -> Buffer | None:
        return self.body if not self.more_body and self.receiver is None else None

    def read_buffered(self) -> Buffer:
        if self.body or self.receiver is None:
            body, self.body = self.body, bytearray()
            return body
        self.message_event.set()  # a reader that waits in `receive` has to provide the next buffer
        return self.receiver.read_buffered()

    def close(self) -> None:
        if self.receiver is not None:
            self.receiver.close()

    def use_buffer_pool(self, pool: LendsBuffers) -> None:
        self.pool = pool

    def lend_socket(self, most: int, waiting: int) -> SocketTurn | None:
        if self.body or not self.more_body or self.response_complete or self.waiting_for_100_continue:
            return None
        if not can_lend_socket(self.protocol.scheme):
            return None
        self._use_receiver()
        return self.receiver.lend_socket(most, waiting) if self.receiver is not None else None

    def take_back_socket(self, turn: SocketTurn) -> None:
        assert self.receiver is not None
        self.receiver.take_back_socket(turn)

    def limit_send_buffer(self) -> None:
        self.keep_alive = False  # the kernel never enlarges the buffer again, which a download would need
        if self.transport.is_closing():  # uvloop raises RuntimeError then
            return
        self.transport.set_write_buffer_limits(high=SMALL_SEND_BUFFER)
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # of a connection that is closed
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SEND_BUFFER)

    def reset_connection(self) -> None:
        self.transport.abort()

    def _continue_reading(self) -> None:
        if not self.more_body:
            self.protocol.listen_for_disconnect()
            return
        self._use_receiver()
        if self.receiver is not None:
            self.receiver.provide_buffer()
        self.flow.resume_reading()

    def _use_receiver(self) -> None:
        """Have the rest of a long body bypass the parser."""
        if self.receiver is None and self.pool is not None:
            size = self.protocol.content_length()
            if size - self.arrived >= MIN_BUFFERED_BODY:
                self.receiver = BufferedBodyReceiver(self.protocol, self, self.pool, size - self.arrived)
