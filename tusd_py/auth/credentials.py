"""Tokens in requests: in the field Authorization, or in a cookie of an allowed page. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tusd_py.contracts.auth import InvalidCredentials

SAFE_METHODS = frozenset({"GET", "HEAD"})  # whose answers pages of other origins cannot read without CORS


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
    pairs = (pair.partition("=") for pair in re.split("[;,]", headers.get("cookie", "")))
    values = {value.strip().strip('"') for key, _, value in pairs if key.strip() == name}
    if len(values) > 1:
        raise InvalidCredentials("the cookie has several values")
    return values.pop() if values else None


def check_origin(method: str, headers: Mapping[str, str], is_allowed: Callable[[str], bool]) -> None:
    """Raise `InvalidCredentials` unless a request with a cookie comes from a page that may send it.

    A browser adds the cookie to requests of any page, but tells the origin of the page with all that change something.
    """
    origin = headers.get("origin")
    if origin is None and method in SAFE_METHODS and "x-http-method-override" not in headers:
        return
    if origin is None or origin == "null" or not is_allowed(origin):
        raise InvalidCredentials("the cookie comes from a page of another origin")
