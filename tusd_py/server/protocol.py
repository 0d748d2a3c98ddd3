"""uvicorn's HTTP/1.1 protocol with what uploads need.

Bytes that arrived are delivered before a disconnect is told, and long bodies are received straight into blocks of
memory (`server/blocks.py`); trailers are kept apart from headers, interim responses can be sent, and a client has to
get to the end of its header fields in time. What concerns the application reaches it as ASGI scope extensions; under
another server it does without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from tusd_py.http.body import ARRIVALS
from tusd_py.http.tus import VERSION
from tusd_py.server.blocks import BlockReceiver
from tusd_py.storage.base import Buffer
from tusd_py.uploads.budget import BlockPool

INFORMATIONAL = "http.response.informational"  # ASGI message and scope extension: an interim (1xx) response
MOST_HEADER_BYTES = 64 << 10
MOST_TRAILERS = 16
WORTH_BLOCKS = 256 << 10  # bytes still to come for which the parser is left out


class UploadCycle(RequestResponseCycle):
    """One request and its response. It is the `Arrivals` of its body too."""

    protocol: UploadProtocol
    pool: BlockPool | None
    receiver: BlockReceiver | None
    arrived: int  # bytes of the body that passed the parser
    last_arrival: float
    trailers: list[tuple[bytes, bytes]]
    end_delivered: bool

    def adopt(self, protocol: UploadProtocol) -> None:
        """What `__init__` would do, had the base class made this object of this class."""
        self.protocol = protocol
        self.pool = None
        self.receiver = None
        self.arrived = 0
        self.last_arrival = 0.0
        self.trailers = []
        self.end_delivered = False

    async def send(self, message: Any) -> None:
        if message["type"] == INFORMATIONAL:
            self._send_informational(message["status"], message.get("headers", []))
        else:
            await super().send(message)

    def _send_informational(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """An interim response (RFC 9110, section 15.2); nothing once the final one has begun."""
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
                data = self.take()
                self.end_delivered = self._is_at_end()
                return {"type": "http.request", "body": data, "more_body": not self.end_delivered}
            if self.disconnected:
                break
            self._continue_reading()
            await self.message_event.wait()
            self.message_event.clear()
        return {"type": "http.disconnect"}

    def _has_message(self) -> bool:
        """Whether there is something to deliver: of a long body whole blocks, and what is left at its end."""
        if self.body:
            return True
        if self.receiver is not None and self.receiver.filled and (self.receiver.is_full or self.disconnected):
            return True
        return self._is_at_end() and not self.end_delivered

    def _is_at_end(self) -> bool:
        return not self.more_body and not self.body and (self.receiver is None or not self.receiver.filled)

    def take(self) -> Buffer:
        if self.body or self.receiver is None:
            body, self.body = self.body, bytearray()
            return body
        return self.receiver.take()

    def close(self) -> None:
        if self.receiver is not None:
            self.receiver.close()

    def use_blocks(self, pool: BlockPool) -> None:
        self.pool = pool

    def _continue_reading(self) -> None:
        if self.receiver is None and self.pool is not None and self.more_body:
            size = self.protocol.content_length()
            if size - self.arrived >= WORTH_BLOCKS:
                self.receiver = BlockReceiver(self.protocol, self, self.pool, size - self.arrived)
        if self.receiver is not None and self.more_body:
            self.receiver.provide_block()
        self.flow.resume_reading()


class UploadProtocol(HttpToolsProtocol):
    """One connection."""

    connections_changed: ClassVar[Callable[[int], None]]
    header_timeout: ClassVar[float]  # seconds

    _header_timer: asyncio.TimerHandle | None = None
    _head_size = 0  # bytes of a head that is not complete yet, beyond those it began with
    _in_head = False
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        type(self).connections_changed(1)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        type(self).connections_changed(-1)
        self._head_has_come()

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:
            self._head_size += len(data)
            if self._head_size > MOST_HEADER_BYTES:
                self._refuse(
                    "431 Request Header Fields Too Large", "ERR_HEADERS_TOO_LARGE: the request head is too long"
                )
        if not self._in_body and self._is_waiting():
            self._await_head()

    def _await_head(self) -> None:
        if self._header_timer is None and self.header_timeout:
            text = "ERR_HEADER_TIMEOUT: the request head did not come in time"
            self._header_timer = self.loop.call_later(self.header_timeout, self._refuse, "408 Request Timeout", text)

    def _is_waiting(self) -> bool:
        """Whether there is no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _head_has_come(self) -> None:
        self._head_size = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse("400 Bad Request", f"ERR_INVALID_REQUEST: {msg}")

    def _refuse(self, status: str, text: str) -> None:
        """Answer what never became a request, and close."""
        if not self.transport.is_closing():
            body = f"{text}\n"
            headers = {
                "content-type": "text/plain; charset=utf-8",
                "content-length": len(body),
                "connection": "close",
                "tus-resumable": VERSION,
                "x-content-type-options": "nosniff",
            }
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", body]
            self.transport.write("\r\n".join(lines).encode())
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Fields after the body are trailers, and must not pass for headers."""
        if not self._in_body:
            super().on_header(name, value)
        elif isinstance(self.cycle, UploadCycle) and len(self.cycle.trailers) < MOST_TRAILERS:
            self.cycle.trailers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._head_has_come()
        super().on_headers_complete()
        cycle = self.cycle
        # The base class names the class of its cycles in a global; the task that runs this one has not begun.
        cycle.__class__ = UploadCycle
        assert isinstance(cycle, UploadCycle)
        cycle.adopt(self)
        extensions: Any = {ARRIVALS: cycle, INFORMATIONAL: {}}
        cycle.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if isinstance(self.cycle, UploadCycle):
            self.cycle.arrived += len(body)
            self.cycle.last_arrival = time.monotonic()

    def on_response_complete(self) -> None:
        cycle = self.cycle
        if isinstance(cycle, UploadCycle) and cycle.receiver is not None:
            cycle.receiver.close()
        super().on_response_complete()

    def content_length(self) -> int:
        """The declared size of the current request's body, zero where there is none."""
        names = dict(self.headers)
        if b"transfer-encoding" in names:
            return 0
        return int(names.get(b"content-length", b"0"))

    def body_was_received_elsewhere(self) -> None:
        """The parser still waits for a body that did not pass it: go on with a new one after the body's end."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._in_body = False
        self.cycle.more_body = False
        self.cycle.message_event.set()


def upload_protocol(connections_changed: Callable[[int], None], header_timeout: float) -> type[UploadProtocol]:
    """The protocol class of one server, which reports every connection that opens (1) or closes (-1)."""
    settings = {"connections_changed": staticmethod(connections_changed), "header_timeout": header_timeout}
    return type("UploadProtocol", (UploadProtocol,), settings)
