"""Cross-origin requests: which origins may upload, and what they get to see."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

METHODS = ("POST", "HEAD", "PATCH", "DELETE", "GET", "OPTIONS")
EXPOSED_HEADERS = (
    "Location",
    "Upload-Offset",
    "Upload-Length",
    "Upload-Defer-Length",
    "Upload-Metadata",
    "Upload-Concat",
    "Upload-Expires",
    "Tus-Resumable",
    "Tus-Version",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Checksum-Algorithm",
    "Retry-After",
    "X-Request-ID",
)
NEEDED_METHODS = ("POST", "HEAD", "PATCH", "DELETE")
NEEDED_HEADERS = ("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Concat")
PRIVATE_NETWORK = "Access-Control-Allow-Private-Network"
REQUESTED_METHOD = "access-control-request-method"
MAX_AGE = 86400  # seconds; browsers cap it themselves


class CrossOrigin:
    """Lets browsers on some origins use the server; without any, none but on its own."""

    def __init__(self, origins: Sequence[str], *, credentials: bool) -> None:
        everyone = "*" in origins
        self._rules = _Rules(
            _nothing,
            allow_origins=["*"] if everyone else [],
            allow_origin_regex=None if everyone else origin_pattern(origins),
            allow_methods=METHODS,
            allow_headers=["*"],  # whatever the page's own headers are: a preflight that fails hides the reason from it
            allow_credentials=credentials,
            expose_headers=EXPOSED_HEADERS,
            max_age=MAX_AGE,
            allow_private_network=True,
        )
        self._is_explicit = credentials or not everyone
        self._offered = bool(origins)

    def preflight(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Return the answer to a request that a browser asks for permission with; None for any other request."""
        is_preflight = scope["method"] == "OPTIONS" and "origin" in headers and REQUESTED_METHOD in headers
        return self._rules.preflight_response(Headers(scope=scope)) if self._offered and is_preflight else None

    def headers(self, origin: str | None) -> RawHeaders:
        """Return what every other answer to a request from an origin carries; None for a request that names none."""
        if not self._offered:
            return []
        headers = MutableHeaders(self._rules.simple_headers if origin is not None else {})
        if origin is not None and self._is_explicit and self._rules.is_allowed_origin(origin):
            headers["Access-Control-Allow-Origin"] = origin
        headers["Vary"] = "Origin"
        return headers.raw


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None: ...


class _Rules(CORSMiddleware):
    """Lets pages on the internet use a server in a private network (Chrome asks), if their origin is allowed."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code != 200 and PRIVATE_NETWORK in response.headers:
            del response.headers[PRIVATE_NETWORK]
        return response


def origin_pattern(origins: Sequence[str]) -> str:
    """An anchored pattern: each origin as it stands, where `*` is one or more labels of a host name, or a port."""
    alternatives = (re.escape(origin.rstrip("/")).replace(r"\*", r"[A-Za-z0-9.-]+") for origin in origins)
    return "|".join(f"(?:{alternative})" for alternative in alternatives)


def missing_in_middleware(app: object) -> str:
    """The arguments that a CORSMiddleware of the application around this server lacks; empty if browsers can upload.

    Such a middleware answers preflights itself, so that no request would ever tell of it.
    """
    for middleware in getattr(app, "user_middleware", ()):
        if isinstance(middleware.cls, type) and issubclass(middleware.cls, CORSMiddleware):
            given = (
                inspect.signature(CORSMiddleware).bind_partial(None, *middleware.args, **middleware.kwargs).arguments
            )
            return _missing(given.get("allow_methods", ()), given.get("allow_headers", ()), given.get("expose_headers"))
    return ""


def _missing(methods: Iterable[str], headers: Iterable[str], exposed: Iterable[str] | None) -> str:
    lacks = []
    if "*" not in methods and not set(NEEDED_METHODS) <= set(methods):
        lacks.append('allow_methods=["*"]')
    allowed = {name.lower() for name in headers}
    if "*" not in allowed and not {name.lower() for name in NEEDED_HEADERS} <= allowed:
        lacks.append('allow_headers=["*"]')
    shown = {name.lower() for name in exposed or ()}  # they take the place of those that this server exposes
    if shown and "*" not in shown and not {name.lower() for name in EXPOSED_HEADERS} <= shown:
        lacks.append(f"no expose_headers, or with {', '.join(EXPOSED_HEADERS)}")
    return ", ".join(lacks)
