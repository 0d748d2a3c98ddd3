"""Parsers of HTTP/1.1 messages, and of a body whose head another parser has read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from tusd_py.uvicorn_server.protocol import UploadProtocol


class BodyEvents:
    """The receiver of a parser's events for a body whose head another parser has read."""

    def __init__(self, protocol: UploadProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_header = protocol.on_header
        self.on_message_complete = protocol.on_message_complete


def new_parser(events: object) -> Any:
    """Return a parser that reports to an object."""
    parser = httptools.HttpRequestParser(events)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def head_before_body(size: int | None) -> bytes:
    """Return a head after which a parser takes a body of so many bytes, None for a chunked one."""
    field = b"Transfer-Encoding: chunked" if size is None else b"Content-Length: %d" % size
    return b"POST / HTTP/1.1\r\n%s\r\n\r\n" % field
