"""Responses of the protocol class itself, to bytes that are not a valid request, or too many."""

from __future__ import annotations

from tusd_py.http.security_headers import SECURITY_HEADERS
from tusd_py.http.tus.handlers import VERSION

TOO_LARGE = "431 Request Header Fields Too Large"
HEAD_TOO_LONG = "ERR_HEADERS_TOO_LARGE: the request head is too long"
TRAILERS_TOO_LONG = "ERR_HEADERS_TOO_LARGE: the trailers or the chunk extensions are too long"
INVALID = "ERR_INVALID_REQUEST: this is not a valid HTTP request"
HANDSHAKE_ENDED = "ERR_INVALID_REQUEST: a client of a WebSocket has to wait for the answer to its handshake"
HEADER_TIMEOUT = "ERR_HEADER_TIMEOUT: the request head did not come in time"


def refusal(status: str, text: str, **fields: str) -> bytes:
    """Return a whole response with one line of text and further fields, after which the connection is closed."""
    body = f"{text}\n"
    headers = {
        "content-type": "text/plain; charset=utf-8",
        "content-length": len(body),
        "connection": "close",
        "tus-resumable": VERSION,
        **{name.decode(): value.decode() for name, value in SECURITY_HEADERS},
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", body]
    return "\r\n".join(lines).encode()
