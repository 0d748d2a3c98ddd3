"""A request as the protocol sees it, and what it is answered with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from tusd_py.contracts.storage import Buffer
from tusd_py.http.body import RequestBody
from tusd_py.http.tus.headers import parse_integer


class Request:
    """One request to the endpoint; `upload_id` is empty for the endpoint itself."""

    def __init__(self, scope: Scope, upload_id: str, body: RequestBody, headers: Mapping[str, str]) -> None:
        self.scope = scope
        self.upload_id = upload_id
        self.body = body
        self.headers = headers
        # What is told of the request when it has ended.
        self.bytes_sent = 0  # of a stream
        self.offset_before: int | None = None
        self.offset_after: int | None = None
        self.expires_at: float | None = None  # for a refusal that has to tell

    @property
    def has_body(self) -> bool:
        """Whether there may be bytes: neither a length nor a transfer coding means an empty body (RFC 9112, 6.3)."""
        return bool(self.body.declared_size) or "transfer-encoding" in self.headers

    @property
    def awaits_continue(self) -> bool:
        """Whether the client has not been told to send the body it announced (RFC 9110, section 10.1.1)."""
        return self.headers.get("expect", "").lower() == "100-continue" and not self.body.started

    def integer(self, name: str, code: str) -> int | None:
        """A header field that holds a non-negative integer; None if it is absent."""
        text = self.headers.get(name.lower())
        return None if text is None else parse_integer(name, text, code)


def method_of(scope: Scope, headers: Mapping[str, str]) -> str:
    """The method, or what X-HTTP-Method-Override says it is."""
    method: str = scope["method"]
    override = headers.get("x-http-method-override", "").strip()
    return override.upper() if override and method != "OPTIONS" else method


def declared_size(headers: Mapping[str, str]) -> int | None:
    """Content-Length in bytes; zero where nothing announces a body, None for a chunked one."""
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length")
    return parse_integer("Content-Length", text, "ERR_INVALID_CONTENT_LENGTH") if text is not None else 0


@dataclass(slots=True)
class Response:
    """Status, header fields, and a body that is at hand or made while it is sent."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncIterator[Buffer] | None = None
    error_code: str = ""

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
