"""Cross-origin requests: preflights, and the header fields by which browsers let pages of other origins upload."""

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
    "WWW-Authenticate",
    "X-Request-ID",
)
NEEDED_METHODS = ("POST", "HEAD", "PATCH", "DELETE")
NEEDED_HEADERS = ("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Concat")
PRIVATE_NETWORK = "Access-Control-Allow-Private-Network"
REQUESTED_METHOD = "access-control-request-method"
MAX_AGE = 86400  # seconds; browsers cap it themselves


class CrossOrigin:
    """The CORS rules of a server; without any origin, browsers let only its own pages upload."""

    def __init__(self, origins: Sequence[str], *, credentials: bool) -> None:
        any_origin = "*" in origins
        self._rules = _CorsRules(
            _no_app,
            allow_origins=["*"] if any_origin else [],
            allow_origin_regex=None if any_origin or not origins else origin_pattern(origins),
            allow_methods=METHODS,
            allow_headers=["*"],  # also a page's own headers: a page is not told why its preflight failed
            allow_credentials=credentials,
            expose_headers=EXPOSED_HEADERS,
            max_age=MAX_AGE,
            allow_private_network=True,
        )
        self._is_explicit = credentials or not any_origin
        self._is_enabled = bool(origins)
        self._origins = tuple(origins)

    def allows(self, origin: str) -> bool:
        """Return whether pages of an origin are named among those that may upload; `*` names none."""
        return "*" not in self._origins and self._rules.is_allowed_origin(origin)

    def may_read(self, origin: str) -> bool:
        """Return whether pages of an origin may read answers."""
        return self._is_enabled and self._rules.is_allowed_origin(origin)

    def preflight(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Return the response to a preflight request; None for any other request."""
        is_preflight = scope["method"] == "OPTIONS" and "origin" in headers and REQUESTED_METHOD in headers
        return self._rules.preflight_response(Headers(scope=scope)) if self._is_enabled and is_preflight else None

    def headers(self, origin: str | None) -> RawHeaders:
        """Return the CORS header fields of a response; `origin` is that field of the request, None if it has none."""
        if not self._is_enabled:
            return []
        headers = MutableHeaders(self._rules.simple_headers if origin is not None else {})
        if origin is not None and self._is_explicit and self._rules.is_allowed_origin(origin):
            headers["Access-Control-Allow-Origin"] = origin
        headers["Vary"] = "Origin"
        return headers.raw


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None: ...


class _CorsRules(CORSMiddleware):
    """CORS rules that offer access to a private network (as Chrome asks for) to allowed origins only."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code != 200 and PRIVATE_NETWORK in response.headers:
            del response.headers[PRIVATE_NETWORK]
        return response


def origin_pattern(origins: Sequence[str]) -> str:
    """Return an anchored pattern for the origins, in which `*` is one or more labels of a host name, or a port."""
    alternatives = (re.escape(origin.rstrip("/")).replace(r"\*", r"[A-Za-z0-9.-]+") for origin in origins)
    return "|".join(f"(?:{alternative})" for alternative in alternatives)


def missing_in_middleware(app: object, *, authenticates: bool) -> str:
    """Return the arguments that a CORSMiddleware of the application lacks; empty if browsers can upload through it.

    Such a middleware answers preflights itself, so that no request of this server shows that it lacks something. Where
    the server authenticates requests, pages send Authorization too.
    """
    for middleware in getattr(app, "user_middleware", ()):
        if isinstance(middleware.cls, type) and issubclass(middleware.cls, CORSMiddleware):
            given = (
                inspect.signature(CORSMiddleware).bind_partial(None, *middleware.args, **middleware.kwargs).arguments
            )
            needed = (*NEEDED_HEADERS, "Authorization") if authenticates else NEEDED_HEADERS
            return _missing_arguments(
                given.get("allow_methods", ()), given.get("allow_headers", ()), given.get("expose_headers"), needed
            )
    return ""


def _missing_arguments(
    methods: Iterable[str], headers: Iterable[str], exposed: Iterable[str] | None, needed_headers: Iterable[str]
) -> str:
    missing = []
    if "*" not in methods and not set(NEEDED_METHODS) <= set(methods):
        missing.append('allow_methods=["*"]')
    allowed = {name.lower() for name in headers}
    if "*" not in allowed and not {name.lower() for name in needed_headers} <= allowed:
        missing.append('allow_headers=["*"]')
    needed = set(EXPOSED_HEADERS) - {"WWW-Authenticate"}
    exposed_names = {name.lower() for name in exposed or ()}  # the middleware replaces the list of this server by them
    if exposed_names and "*" not in exposed_names and not {name.lower() for name in needed} <= exposed_names:
        missing.append(f"no expose_headers, or with {', '.join(EXPOSED_HEADERS)}")
    return ", ".join(missing)
