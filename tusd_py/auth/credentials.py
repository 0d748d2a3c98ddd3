"""Tokens in requests: in the field Authorization, or in a cookie of an allowed page. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tusd_py.contracts.auth import InvalidCredentials

SAFE_METHODS = frozenset({"GET", "HEAD"})  # whose answers pages of other origins cannot read without CORS
EMBEDDING = frozenset({"iframe", "frame", "embed", "object"})  # destinations of navigations within a page


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the token of the field Authorization; None without the field, or if it has another scheme."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookie_token(headers: Mapping[str, str], name: str) -> str | None:
    """Return the value of a cookie; None without it.

    Raises:
        InvalidCredentials: the cookie is there with different values: another host may have set one of them.
    """
    pairs = (pair.partition("=") for pair in headers.get("cookie", "").split(";"))
    values = {value.strip().strip('"') for key, _, value in pairs if key.strip() == name}
    if len(values) > 1:
        raise InvalidCredentials("the cookie has several values")
    return values.pop() if values else None


def check_origin(method: str, headers: Mapping[str, str], is_allowed: Callable[[str], bool]) -> None:
    """Raise `InvalidCredentials` unless a request with a cookie comes from a page that may send it.

    A browser adds the cookie to requests of any page, but tells the origin of the page with all that change something,
    and with the others whether a page of another site shows the answer, and so learns whether there is one.
    """
    origin = headers.get("origin")
    if origin is None and method in SAFE_METHODS and "x-http-method-override" not in headers:
        if is_embedded_elsewhere(headers):
            raise InvalidCredentials("the cookie comes from a page of another site that embeds the upload")
        return
    if origin is None or origin == "null" or not is_allowed(origin):
        raise InvalidCredentials("the cookie comes from a page of another origin")


def is_embedded_elsewhere(headers: Mapping[str, str]) -> bool:
    """Return whether a page of another site embeds the answer, as an image, by what browsers tell (Fetch Metadata).

    A link on such a page does not count: the answer takes the place of the page.
    """
    if headers.get("sec-fetch-site") != "cross-site":
        return False
    return headers.get("sec-fetch-mode") != "navigate" or headers.get("sec-fetch-dest") in EMBEDDING
