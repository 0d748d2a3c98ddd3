"""A request as the protocol sees it, and what it is answered with."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from starlette.types import Scope, Send

from tusd_py.core.buffers import Buffer
from tusd_py.core.request_context import RequestContext
from tusd_py.http.body import BODY_EXTENSION, RequestBody
from tusd_py.http.cors import CrossOrigin, RawHeaders
from tusd_py.http.tus.headers import parse_integer

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # in the value of a header field
MAX_CACHED_ORIGINS = 1000
MAX_CACHED_ORIGIN_SIZE = 300  # characters: scheme, the longest name of a host, and port; a client may send any text


class Request:
    """One request to the endpoint; `upload_id` is empty for the endpoint itself."""

    def __init__(
        self, scope: Scope, upload_id: str, body: RequestBody, headers: Mapping[str, str], method: str, client: str = ""
    ) -> None:
        self.scope = scope
        self.method = method
        self.client = client  # address, as far as the proxies in between are trusted
        self.upload_id = upload_id
        self.sub_resource = ""  # the path below the upload, without a slash at its beginning
        self.body = body
        self.headers = headers
        # Facts for the event that tells of the end of the request.
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

    def context(self) -> RequestContext:
        """Return the request as the service and the events see it."""
        return RequestContext(self.method, self.scope["path"], self.headers, self.client)

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

    def raw_headers(self) -> RawHeaders:
        return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]

    def header_lines(self) -> bytes:
        """The header fields as they are sent; raises `ValueError` for a value with a control character."""
        if CONTROL_CHARACTERS.search("".join(self.headers.values())):
            raise ValueError("a header field holds a control character")
        return "".join([f"{name.lower()}: {value}\r\n" for name, value in self.headers.items()]).encode("latin-1")


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Responder(Protocol):
    """A server that takes a whole response at once."""

    def respond(self, status: int, header_lines: bytes, body: bytes, *, close: bool) -> bool:
        """Send a response; False if the messages of ASGI have to do it. `close` if the fields say so."""


def responder_of(scope: Scope, send: Send) -> Responder | None:
    """The server behind `send`, if it takes whole responses; None where a middleware is in between."""
    responder: Responder | None = scope.get("extensions", {}).get(BODY_EXTENSION)
    return responder if responder is not None and getattr(send, "__self__", None) is responder else None


@dataclass(frozen=True, slots=True)
class CommonFields:
    """Header fields that many responses carry, as messages of ASGI want them and as they are sent."""

    raw: RawHeaders
    lines: bytes


class CommonHeaders:
    """The headers of every response, prepared once for each origin that a page comes from, in bounded memory."""

    def __init__(self, always: RawHeaders, cross_origin: CrossOrigin) -> None:
        self._always = always
        self._cross_origin = cross_origin
        self._known: dict[str | None, CommonFields] = {}

    def to(self, origin: str | None) -> CommonFields:
        """The fields for a page from this origin, None for a request that names none."""
        fields = self._known.get(origin)
        if fields is None:
            raw = [*self._cross_origin.headers(origin), *self._always]
            fields = CommonFields(raw, b"".join(b"%s: %s\r\n" % pair for pair in raw))
            if origin is not None and len(origin) > MAX_CACHED_ORIGIN_SIZE:
                return fields
            if len(self._known) >= MAX_CACHED_ORIGINS:
                self._known.clear()
            self._known[origin] = fields
        return fields
