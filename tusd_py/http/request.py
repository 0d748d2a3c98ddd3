"""Requests and responses as protocol adapters see them."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias
from urllib.parse import unquote

from starlette.types import Scope, Send

from tusd_py.auth.signatures import CreationGrant
from tusd_py.contracts.auth import Action, Principal
from tusd_py.contracts.storage import OpenFile
from tusd_py.core.buffers import Buffer
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.http.body import RequestBody
from tusd_py.http.body_extension import BODY_EXTENSION
from tusd_py.http.cors import CrossOrigin, RawHeaders
from tusd_py.http.tus.headers import parse_integer
from tusd_py.http.websocket import WebSocketExchange
from tusd_py.uploads.admission import ANY_UPLOAD

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # in the value of a header field
FILE_SENDING = "http.response.zerocopysend"  # ASGI message and scope extension
MAX_CACHED_ORIGINS = 1000
MAX_CACHED_ORIGIN_SIZE = 300  # characters: scheme, the longest host name, and port; clients may send any text


class Request:
    """One HTTP request below the base path; `upload_id` is empty for the creation URL."""

    def __init__(
        self, scope: Scope, upload_id: str, body: RequestBody, headers: Mapping[str, str], method: str, client: str = ""
    ) -> None:
        self.scope = scope
        self.method = method
        self.path = requested_path(scope)
        self.client = client  # address of the client as told by trusted proxies, otherwise of the peer
        self.upload_id = upload_id
        self.sub_resource = ""  # the path below the upload, without a slash at its beginning
        self.body = body
        self.headers = headers
        self.sends_files = False  # whether the response may be a file
        self._principal: Principal | None = None
        self._context: RequestContext | None = None
        self.may_use: Callable[[Upload], Awaitable[bool]] | None = None  # see `NewUpload`
        # Whether the sender of a creation may remove its upload; None: anybody may.
        self.may_terminate: Callable[[Upload], Awaitable[bool]] | None = None
        self.secret_headers: frozenset[str] = frozenset()  # see `RequestContext`
        self.admission = ANY_UPLOAD  # the upload that the request was let in to
        # Makes the decision about an upload that is left to the append under the lock, should that fail.
        self.decide: Callable[[], Awaitable[None]] | None = None
        self.signatures: Mapping[str, str] = {}  # of the URL, by the names of their parameters
        self.grant: CreationGrant | None = None  # of the URL, for a creation
        self.refusal = ""  # why the request was not let in, for the log
        # Whether the sender may follow an upload, of a stream of several; see `AccessControl`.
        self.may_follow: Callable[[Upload], Awaitable[bool]] | None = None
        self.purpose: Action | None = None  # of a sub-resource; None: that of the method
        self.admitted_until = math.inf  # end of the right by a signature, in seconds since the epoch
        self.websocket: WebSocketExchange | None = None  # of a request that opens a WebSocket
        self.is_stream = False  # whether the answer lasts as long as its client listens
        self.answered_at: float | None = None  # monotonic time when the answer began
        # Fields of the event `RequestFinished`.
        self.bytes_sent = 0  # of a stream
        self.offset_before: int | None = None
        self.offset_after: int | None = None
        self.location = ""  # of an upload that a failed request has created
        self.expires_at: float | None = None  # Upload-Expires of an error response, seconds since the epoch
        self.deadline = math.inf  # of the answer to a HEAD, in the time of the event loop

    @property
    def principal(self) -> Principal | None:
        """The authenticated sender."""
        return self._principal

    @principal.setter
    def principal(self, principal: Principal | None) -> None:
        self._principal = principal
        self._context = None  # which names the sender

    @property
    def is_head(self) -> bool:
        """Whether this is a HEAD, by its method or by the one that X-HTTP-Method-Override gives it."""
        return self.method == "HEAD" or self.scope["method"] == "HEAD"

    @property
    def has_body(self) -> bool:
        """Whether a body may follow: neither a length nor a transfer coding means an empty body (RFC 9112, 6.3)."""
        return bool(self.body.declared_size) or "transfer-encoding" in self.headers

    @property
    def awaits_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1)."""
        return self.headers.get("expect", "").lower() == "100-continue" and not self.body.started

    @property
    def is_plain_head(self) -> bool:
        """Whether a client that does not speak tus asks for the header fields of a download (`curl -I`)."""
        return "tus-resumable" not in self.headers and self.scope["method"] == "HEAD" and self.method == "HEAD"

    def context(self) -> RequestContext:
        """Return the request context for the service and the events, one and the same while the sender is the same."""
        if self._context is None:
            self._context = self._new_context()
        return self._context

    def _new_context(self) -> RequestContext:
        scope = self.scope
        query, peer = scope.get("query_string"), scope.get("client")
        principal = self._principal
        return RequestContext(
            self.method,
            self.path,
            self.headers,
            self.client,
            None if principal is None else principal.owner,
            query=query.decode("latin-1") if query else "",
            port=(peer[1] or 0) if peer and peer[0] == self.client else 0,
            scopes=frozenset() if principal is None else principal.scopes,
            scope=scope,
            secret_headers=self.secret_headers,
        )

    def integer(self, name: str, code: str) -> int | None:
        """Return the value of a header field that holds a non-negative integer; None if it is absent."""
        text = self.headers.get(name.lower())
        return None if text is None else parse_integer(name, text, code)


def requested_path(scope: Scope) -> str:
    """Return the decoded path that the client asked for.

    A framework may have changed `path` for a mount: Litestar takes its prefix off, and adds a slash.
    """
    raw: bytes | None = scope.get("raw_path")
    return unquote(raw.partition(b"?")[0].decode(errors="replace")) if raw else str(scope["path"])


def method_of(scope: Scope, headers: Mapping[str, str]) -> str:
    """Return the method of a request, which X-HTTP-Method-Override may replace."""
    method: str = scope["method"]
    override = headers.get("x-http-method-override", "").strip()
    return override.upper() if override and method != "OPTIONS" else method


def declared_size(headers: Mapping[str, str]) -> int | None:
    """Return Content-Length in bytes: 0 if the request announces no body, None for a chunked one."""
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length")
    return parse_integer("Content-Length", text, "ERR_INVALID_CONTENT_LENGTH") if text is not None else 0


@dataclass(frozen=True, slots=True)
class FileBody:
    """A range of an open file, which the response that has it closes."""

    file: OpenFile
    start: int
    end: int


WriteLimit: TypeAlias = Callable[[int], AbstractAsyncContextManager[None]]


class EventStream(Protocol):
    """A body of events, sent as they happen."""

    async def send(self, request: Request, send: Send, write_limit: WriteLimit) -> None:
        """Send the body after the start of the response.

        Args:
            request: the request.
            send: sends messages of ASGI.
            write_limit: returns a context that bounds the time in which the client takes so many bytes.

        Raises:
            WriteTimeout: the client has taken too little.
        """

    def end(self) -> None:
        """End the events: `send` returns once the client has taken those before."""

    def close(self) -> None:
        """Free the place of the client; called once the response has ended, or if it has not begun."""


@dataclass(slots=True)
class Response:
    """Status, header fields, and a body of bytes at hand, of a stream, of a file or of events.

    A stream is closed by whoever sends the response, whether it comes to its end or not; `body` comes before it.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncGenerator[Buffer, None] | None = None
    file: FileBody | None = None
    events: EventStream | None = None
    error_code: str = ""

    def raw_headers(self) -> RawHeaders:
        return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]

    def header_lines(self) -> bytes:
        """Return the header fields as bytes of HTTP/1.1; raises `ValueError` for a value with a control character."""
        if CONTROL_CHARACTERS.search("".join(self.headers.values())):
            raise ValueError("a header field holds a control character")
        return "".join([f"{name.lower()}: {value}\r\n" for name, value in self.headers.items()]).encode("latin-1")


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Responder(Protocol):
    """A server that can send a whole response in one call."""

    def respond(self, status: int, header_lines: bytes, body: bytes, *, close: bool) -> bool:
        """Send a response; return False if it must be sent in ASGI messages instead.

        Args:
            status: the status of the response.
            header_lines: its header fields as bytes of HTTP/1.1.
            body: its whole body.
            close: whether the header fields close the connection.
        """


def responder_of(scope: Scope, send: Send) -> Responder | None:
    """Return the server behind `send` if it can send whole responses; None where a middleware replaced `send`."""
    responder: Responder | None = scope.get("extensions", {}).get(BODY_EXTENSION)
    return responder if responder is not None and getattr(send, "__self__", None) is responder else None


def sends_files(scope: Scope, send: Send) -> bool:
    """Return whether the server behind `send` can have the kernel send files; middlewares may drop such messages."""
    return FILE_SENDING in scope.get("extensions", {}) and responder_of(scope, send) is not None


@dataclass(frozen=True, slots=True)
class CommonFields:
    """Header fields that many responses carry, as an ASGI list and as bytes of HTTP/1.1."""

    raw: RawHeaders
    lines: bytes


class CommonHeaders:
    """The header fields of every response, prepared once for each origin of a page, in bounded memory."""

    def __init__(self, always: RawHeaders, cross_origin: CrossOrigin) -> None:
        self._always = always
        self._cross_origin = cross_origin
        self._known: dict[str | None, CommonFields] = {}

    def to(self, origin: str | None) -> CommonFields:
        """Return the fields of a response to a page of `origin`; None stands for a request without that field."""
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
