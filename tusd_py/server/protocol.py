"""uvicorn's HTTP/1.1 protocol with what uploads need: bytes that arrived are delivered before a disconnect is told.

What it adds reaches the application as ASGI scope extensions; under another server the application does without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tusd_py.http.body import RECEIVED


class UploadCycle(RequestResponseCycle):
    """One request and its response."""

    end_delivered = False

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        while not self.response_complete:
            if self.body or not (self.more_body or self.end_delivered):
                return {"type": "http.request", "body": self.take_received(), "more_body": not self.end_delivered}
            if self.disconnected:
                break
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        return {"type": "http.disconnect"}

    def take_received(self) -> bytearray:
        """The bytes that have arrived, without a copy."""
        body, self.body = self.body, bytearray()
        self.end_delivered = not self.more_body
        return body


class UploadProtocol(HttpToolsProtocol):
    """One connection."""

    connections_changed: ClassVar[Callable[[int], None]]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        type(self).connections_changed(1)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        type(self).connections_changed(-1)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if isinstance(self.cycle, RequestResponseCycle):
            # The base class names the class of its cycles in a global; the task that runs this one has not begun.
            self.cycle.__class__ = UploadCycle
            self.scope["extensions"] = {RECEIVED: self.cycle.take_received}  # type: ignore[attr-defined]


def upload_protocol(connections_changed: Callable[[int], None]) -> type[UploadProtocol]:
    """The protocol class of one server, which reports every connection that opens (1) or closes (-1)."""
    return type("UploadProtocol", (UploadProtocol,), {"connections_changed": staticmethod(connections_changed)})
