"""Removal of passwords from URLs, for log lines and error messages."""

from __future__ import annotations

import re

QUERY_PASSWORD = re.compile(r"([?&][^=&\s]*passw[^=&\s]*=)[^&\s]*", re.IGNORECASE)
QUERY = re.compile(r"[A-Za-z0-9_]+=")


def without_password(text: str) -> str:
    """Return a URL without its password, which may hold `@`, `/`, `:` and `?`, and may be in the query."""
    scheme, separator, rest = QUERY_PASSWORD.sub(r"\1***", text).partition("://")
    if not separator:
        return scheme
    place, _, query = rest.partition("?")
    if "@" not in place and QUERY.match(query):
        return f"{scheme}://{rest}"
    credentials, at, address = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}:***@{address}" if at and colon else f"{scheme}://{rest}"
