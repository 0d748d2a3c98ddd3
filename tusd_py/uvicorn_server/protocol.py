"""uvicorn's HTTP/1.1 protocol, extended for uploads, with a limit for everything that a client can do.

Bytes that arrived are delivered before a disconnect is reported, and long bodies are received straight into buffers
(`uvicorn_server/buffered_receiver.py`); trailers are kept apart from headers, interim responses can be sent. The
application finds these as ASGI scope extensions, and does without them under another server.

A connection has one request at a time: bytes after its end are kept, and not parsed before the response is complete.
Every state has a deadline. While a request is being answered, the application and `WriteWatch` enforce it; otherwise
one timer does, for a head, the unread rest of a body, the pause before the next request, or the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from tusd_py.http.progress.endpoint import is_path_of_events
from tusd_py.uvicorn_server.addresses import local_address, peer_address
from tusd_py.uvicorn_server.connections import Connections
from tusd_py.uvicorn_server.cycle import UploadCycle
from tusd_py.uvicorn_server.flow import ConnectionFlow
from tusd_py.uvicorn_server.framing import (
    MAX_FRAMING_BYTES,
    MAX_FRAMING_PER_BYTE,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_TRAILERS,
    OVERLAP,
    SECTION_END,
    ChunkedBody,
    FramingAllowance,
    Phase,
    TooManyHeaders,
    is_chunked_only,
    request_target,
    section_end,
)
from tusd_py.uvicorn_server.parsers import BodyEvents, head_before_body, new_parser
from tusd_py.uvicorn_server.refusals import (
    HANDSHAKE_ENDED,
    HEAD_TOO_LONG,
    HEADER_TIMEOUT,
    INVALID,
    TOO_LARGE,
    TRAILERS_TOO_LONG,
    refusal,
)
from tusd_py.uvicorn_server.scopes import application_of, http_scope
from tusd_py.uvicorn_server.watched_connection import WatchedConnection
from tusd_py.uvicorn_server.websocket_cycle import WebSocketCycle
from tusd_py.uvicorn_server.websocket_handshake import VERSION, Handshake, InvalidHandshake, opening_handshake

logger = logging.getLogger("tusd_py.uvicorn_server")

UNREAD_BODY_TIMEOUT = 10.0  # seconds for the rest of a small body that the application has not read
LINGERING_CLOSE_TIMEOUT = 2.0  # seconds that a refused connection stays open, so that the client reads the answer
LINGER_SIZE = 256 << 10  # bytes that are read and discarded during that time


class UploadProtocol(WatchedConnection):
    """The protocol of one connection."""

    flow: ConnectionFlow
    takes_websockets: Callable[[str], bool]
    _chunked: ChunkedBody  # of the current body, if it is chunked
    _allowance: FramingAllowance
    on_body: Callable[[bytes], None]  # type: ignore[assignment]

    def __init__(self, config: Any, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        self._body_pieces: list[bytes] = []
        self.on_body = self._body_pieces.append  # called by the parser: no Python frame for each chunk
        super().__init__(config, server_state, app_state, _loop)
        self._phase = Phase.HEAD
        self._parser_is_spent = False
        self._last_bytes = b""  # last bytes of the section that is being received
        self._head_size = 0
        self._body_remaining = 0
        self._content_length = 0
        self._kept: list[bytes] = []  # bytes of the next requests
        self._waiting = 0  # bytes of an incomplete head, or in `_kept`
        self._refused = False
        self._linger_size = LINGER_SIZE
        self._awaits_head = False
        self._handshake: Handshake | InvalidHandshake | None = None  # of the current request

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.connections.add(self)
        self.transport = transport
        self.flow = ConnectionFlow(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self.server, self.client = local_address(transport), peer_address(transport)
        self.shared.instrumentation.connections_changed(1)
        self.shared.became_idle(self)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._deadline.close()
        self._stop_watching_writes()
        if self._waiting:
            self._count_waiting(0)
        self._kept.clear()
        self.shared.became_busy(self)
        self.shared.instrumentation.connections_changed(-1)

    # Deadlines of a connection without a request that is being answered.

    def _await_head(self) -> None:
        if not self._awaits_head:
            self._awaits_head = True
            self._deadline.set(
                self.shared.header_timeout, self._end_with_reason, "header_timeout", "408 Request Timeout"
            )

    def _end_with_reason(self, reason: str, status: str = "") -> None:
        self.shared.instrumentation.connection_ended(reason)
        if status:
            self._refuse(status, HEADER_TIMEOUT)
        else:
            self.end(reason)

    def _await_next_request(self) -> None:
        """Continue after a response with the rest of the request, or with the next one."""
        self.shared.became_idle(self)
        if self._phase is not Phase.ENDED:
            self._deadline.set(UNREAD_BODY_TIMEOUT, self._end_with_reason, "unread_body")
            return
        self._begin_message()
        self._deadline.set(self.shared.keep_alive_timeout, self.end, "it is idle")
        if self._kept:
            held, self._kept = self._kept, []
            self._count_waiting(0)
            self._feed(b"".join(held))

    # Arrival of bytes.

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discard(len(data))
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self._refused and not self.transport.is_closing():
            if self._phase is Phase.ENDED:
                self._keep_for_later(data[position:])
                return
            if isinstance(self.cycle, WebSocketCycle) and self._phase is Phase.WEBSOCKET:
                self._websocket_data_arrived(self.cycle, data[position:])
                return
            end = self._piece_end(data, position)
            self._parse(data if end - position == len(data) else data[position:end])
            position = end

    def _piece_end(self, data: bytes, start: int) -> int:
        """Return the position in `data` up to which the parser may read: never beyond the end of the message."""
        if self._phase is Phase.SIZED_BODY:
            return min(len(data), start + self._body_remaining)
        find = self._chunked.end if self._phase is Phase.CHUNKED_BODY else section_end
        end = find(self._last_bytes, data, start)
        return end if end >= 0 else len(data)

    def _parse(self, piece: bytes) -> None:
        phase = self._phase
        if phase is Phase.HEAD:
            self._head_size += len(piece)
            if self._head_size > MAX_HEADER_BYTES:
                self._refuse(TOO_LARGE, HEAD_TOO_LONG)
                return
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._upgrade_offered()
        except httptools.HttpParserError as error:
            if phase is Phase.CHUNKED_BODY and self._phase is Phase.ENDED:
                self._end_after_body()
                return
            if self._body_pieces:
                self.cycle.body_arrived(b"".join(self._body_pieces))  # the valid bytes before the error
            too_many = isinstance(error.__context__, TooManyHeaders)
            self._refuse(TOO_LARGE if too_many else "400 Bad Request", HEAD_TOO_LONG if too_many else INVALID)
            return
        if phase is not Phase.HEAD:
            self._body_parsed(phase, len(piece))
        elif self._phase is Phase.HEAD:
            self._await_rest_of_head()
        if self._phase is not phase or piece.endswith(SECTION_END):
            self._last_bytes = b""
        else:
            self._last_bytes = (self._last_bytes + piece[-OVERLAP:])[-OVERLAP:]
        if self._phase is Phase.ENDED and not self._is_serving():
            self._await_next_request()

    def _end_after_body(self) -> None:
        """Close after the response: bytes of a next request followed an end of the body that was not found in time."""
        if self._body_pieces:
            self.cycle.body_arrived(b"".join(self._body_pieces))
            self._body_pieces.clear()
        self.cycle.body_ended()
        self.cycle.keep_alive = False
        if not self._is_serving():
            self.end("the end of a body was not found in time")

    def _body_parsed(self, phase: Phase, size: int) -> None:
        """Pass on the bytes of the body that the parser found in a piece of `size` bytes."""
        body = b"".join(self._body_pieces)
        self._body_pieces.clear()
        if body:
            self.cycle.body_arrived(body)
        if phase is Phase.SIZED_BODY:
            self._body_remaining -= size
        elif not self._allowance.add(size, len(body)):
            self._refuse(TOO_LARGE, TRAILERS_TOO_LONG)
            return
        if self._phase is Phase.ENDED:
            self.cycle.body_ended()

    def _await_rest_of_head(self) -> None:
        self._await_head()
        self._count_waiting(self._head_size)

    def _websocket_data_arrived(self, cycle: WebSocketCycle, data: bytes) -> None:
        if cycle.is_websocket:
            cycle.data_arrived(data)
        else:
            self._refuse("400 Bad Request", HANDSHAKE_ENDED)

    def _keep_for_later(self, data: bytes) -> None:
        """Keep bytes that follow the request that is being answered, and pause reading until it has been.

        Above the limit for all connections together, the connection may be closed after this response; its client tries
        again, as after any closed connection.
        """
        self.flow.pause_reading()
        if self.cycle.keep_alive:
            self._kept.append(data)
            self._count_waiting(self._waiting + len(data))

    def _count_waiting(self, size: int) -> None:
        self._waiting = size
        self.shared.count_waiting(self, size)

    def end_waiting(self) -> None:
        self._waiting = 0
        if self._is_serving():
            self.cycle.keep_alive = False
            self._kept.clear()
        else:
            logger.debug("a connection is closed: the heads of all requests take too much memory")
            self.transport.abort()

    def listen_for_disconnect(self) -> None:
        """Continue to read after the end of a body, unless bytes are kept."""
        if not self._kept:
            self.flow.resume_reading()

    # Refusals.

    def _refuse(self, status: str, text: str, **fields: str) -> None:
        """Answer an invalid request, and close a moment later: the answer would be lost if bytes were unread."""
        if self.transport.is_closing() or self._refused:
            return
        logger.debug("a connection is refused: %s", text)
        self._refused = True
        self._body_pieces.clear()
        if self._waiting:
            self._count_waiting(0)
        self.shared.became_busy(self)
        if self._is_serving():
            self.cycle.abort()
            if self.cycle.response_started:
                self.end(text)
                return
        self.transport.write(refusal(status, text, **fields))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._watch_writes()
        self._deadline.set(LINGERING_CLOSE_TIMEOUT, self.end, "it was refused")
        self.flow.resume_reading()

    def _discard(self, size: int) -> None:
        self._linger_size -= size
        if self._linger_size <= 0:
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        self._refuse("400 Bad Request", f"ERR_INVALID_REQUEST: {msg}")

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._phase is not Phase.HEAD:  # the parser read beyond the end of a message
            raise httptools.HttpParserError("a message begins before its turn")
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field to the headers, or after the body to the trailers, which must not pass for headers."""
        if self._phase is Phase.HEAD:
            if len(self.headers) >= MAX_HEADERS:
                raise TooManyHeaders
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
        elif len(self.cycle.trailers) < MAX_TRAILERS:
            self.cycle.trailers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        names = dict(self.headers)
        is_chunked = b"transfer-encoding" in names
        if is_chunked and not is_chunked_only(self.headers):  # the parser takes "gzip, chunked" for "chunked"
            raise httptools.HttpParserError("a transfer coding that is not known here")
        self._deadline.clear()
        self._awaits_head = False
        if self._waiting:
            self._count_waiting(0)
        self.shared.became_busy(self)
        self._content_length = self._body_remaining = 0
        if is_chunked:
            self._phase = Phase.CHUNKED_BODY
            self._chunked = ChunkedBody()
            self._allowance = FramingAllowance(MAX_FRAMING_BYTES, MAX_FRAMING_PER_BYTE)
        else:
            self._content_length = self._body_remaining = int(names.get(b"content-length", b"0"))
            self._phase = Phase.SIZED_BODY
        self._start_request()

    def _start_request(self) -> None:
        """Start the application on the request whose head is complete, unless its handshake is refused."""
        version = self.parser.get_http_version()
        self._handshake = self._opening_handshake(version)
        if isinstance(self._handshake, InvalidHandshake):
            return
        self.scope = http_scope(self, version)
        if self._handshake is None:
            self.cycle = UploadCycle(self, keep_alive=version != "1.0" and self.parser.should_keep_alive())
        else:
            self._phase = Phase.WEBSOCKET
            self.cycle = WebSocketCycle(self, self._handshake)
        self._start_asgi_task(self.cycle, application_of(self))

    def _opening_handshake(self, version: str) -> Handshake | InvalidHandshake | None:
        """Return the handshake of a WebSocket; None for any other request."""
        if not self.parser.should_upgrade() or not self.takes_websockets(request_target(self.url)[0]):
            return None
        return opening_handshake(self.parser.get_method(), version, self.headers)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():  # otherwise the body is still to come
            self._phase = Phase.ENDED
            if not self._body_pieces:
                self.cycle.body_ended()

    def on_response_complete(self) -> None:
        if self.cycle.receiver is not None:
            self.cycle.receiver.close()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._watch_writes()
            return
        self.flow.resume_reading()
        self._await_next_request()

    def timeout_keep_alive_handler(self) -> None:
        self.end("it is idle")

    # Messages that one parser does not read from the beginning to the end.

    def _begin_message(self) -> None:
        self._phase = Phase.HEAD
        self._head_size = 0
        if self._parser_is_spent:
            self._use_parser(self)

    def _use_parser(self, events: object) -> None:
        self._parser_is_spent = events is not self
        self.parser = new_parser(events)

    def _upgrade_offered(self) -> None:
        """Go on after the head of a request that offers another protocol."""
        if isinstance(self._handshake, InvalidHandshake):
            self._refuse(self._handshake.status, self._handshake.text, sec_websocket_version=VERSION)
        elif self._handshake is None:
            self._ignore_upgrade()

    def _ignore_upgrade(self) -> None:
        """Read the body with a new parser: the old one reads none after an offer of another protocol."""
        self._use_parser(BodyEvents(self))
        self.parser.feed_data(head_before_body(None if self._phase is Phase.CHUNKED_BODY else self._body_remaining))
        self.cycle.trailers.clear()

    def content_length(self) -> int:
        """Return the declared size of the current request's body, 0 if there is none."""
        return self._content_length

    def buffered_body_ended(self) -> None:
        """End the message whose body has bypassed the parser; a new parser reads the next one."""
        self._parser_is_spent = True
        self._phase = Phase.ENDED
        self.cycle.body_ended()
        if not self._is_serving() and not self.transport.is_closing():
            self._await_next_request()


def upload_protocol(
    header_timeout: float = 30.0,
    *,
    shared: Connections | None = None,
    takes_websockets: Callable[[str], bool] = is_path_of_events,
) -> type[UploadProtocol]:
    """Return the protocol class of one server.

    `takes_websockets` tells whether the application takes WebSockets to a path; elsewhere an offer of one is ignored.
    """
    shared = shared or Connections(header_timeout=header_timeout)
    members = {"shared": shared, "takes_websockets": staticmethod(takes_websockets)}
    return type("UploadProtocol", (UploadProtocol,), members)
