"""The origin of the page that opens a WebSocket: browsers connect pages of every origin, and leave it to the server."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import Scope

from tusd_py.auth.credentials import bearer_token
from tusd_py.http.cors import CrossOrigin
from tusd_py.http.errors import HTTPError
from tusd_py.http.request import Request
from tusd_py.http.urls import UrlBuilder

DEFAULT_PORTS = (None, 80, 443)


class ForeignOrigin(HTTPError):
    """A WebSocket of a page that may not read what the server tells."""

    def __init__(self) -> None:
        super().__init__(403, "ERR_ORIGIN_NOT_ALLOWED", "pages of this origin may not follow uploads")


def check_page(request: Request, cross_origin: CrossOrigin, urls: UrlBuilder) -> None:
    """Do for a WebSocket what a browser does for answers: let no page read what its origin may not.

    A page of another host has to be one of those that are named if the browser has added credentials: a middleware may
    have made a user of them already. Raises `ForeignOrigin`.
    """
    origin = request.headers.get("origin")
    if origin is None or not is_foreign(origin, request.scope, request.headers, urls):
        return
    is_allowed = cross_origin.allows if _has_credentials_of_browser(request.headers) else cross_origin.may_read
    if not is_allowed(origin):
        request.refusal = "a page of another origin"
        raise ForeignOrigin


def _has_credentials_of_browser(headers: Mapping[str, str]) -> bool:
    """Return whether a handshake has credentials that a browser adds by itself, whichever page opens the WebSocket.

    Of the field Authorization these are all but bearer tokens: names and passwords, and tickets of Kerberos.
    """
    return "cookie" in headers or ("authorization" in headers and bearer_token(headers) is None)


def is_foreign(origin: str, scope: Scope, headers: Mapping[str, str], urls: UrlBuilder) -> bool:
    """Return whether a page is not one of the host of the server.

    The scheme does not count: a proxy that ends TLS may not tell of it.
    """
    own = {_authority(urls.base(scope, headers)), _authority("//" + headers.get("host", ""))}
    return _authority(origin) not in own - {None}


def _authority(url: str) -> tuple[str, int | None] | None:
    """Return host and port of a URL, the port None for those of http and https; None without a host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.hostname, None if port in DEFAULT_PORTS else port
