"""Removal of passwords and tokens from URLs, for log lines and error messages."""

from __future__ import annotations

import re

QUERY_PASSWORD = re.compile(r"([?&][^=&\s]*passw[^=&\s]*=)[^&\s]*", re.IGNORECASE)
SIGNATURES = frozenset({"k", "t", "d"})  # parameters of signed URLs
# A signature within a query or a path, where a URL is the value of a parameter, encoded or not.
SIGNATURE_IN_TEXT = re.compile(r"(?:[?&;]|%3F|%26)[ktd](?:=|%3D)1\.[A-Za-z0-9_.-]*", re.IGNORECASE)
QUERY_IN_TEXT = re.compile(r"\?([^#\s]*)")
QUERY = re.compile(r"[A-Za-z0-9_]+=")
URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
REDIS_SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "unix")
# A host with a port, and a path: anything else before the first slash may be the beginning of a password.
ADDRESS = re.compile(r"(?:[^@:/?#\[\]]*|\[[0-9A-Fa-f:.%]*\])(?::[0-9]*)?(?:/.*)?", re.DOTALL)


def without_secrets(text: str) -> str:
    """Return a URL without its user, its password and its query, where tokens are common.

    Of a URL of Redis, the user and the other options of the query stay. A text that is no URL is returned as it is.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    if scheme.lower() in REDIS_SCHEMES:
        return without_password(text)
    place, mark, query = _split_query(rest)
    if "@" in query:  # of the query, or the end of a password
        return f"{scheme}://***"
    _, at, address = place.rpartition("@")
    if not ADDRESS.fullmatch(address):
        return f"{scheme}://***"
    return f"{scheme}://{'***@' if at else ''}{address}{mark}{'***' if mark else ''}"


def without_secrets_within(text: str) -> str:
    """Return a text with `without_secrets` of every URL in it."""
    return URL_IN_TEXT.sub(lambda found: without_secrets(found[0]), text)


def without_signatures(query: str) -> str:
    """Return the query of a URL without capabilities and signatures (`k`, `t`, `d`)."""
    return "&".join(pair for pair in query.split("&") if pair.partition("=")[0] not in SIGNATURES)


def without_signatures_within(text: str) -> str:
    """Return a text with `without_signatures` of the query of every URL and path in it.

    Signatures of URLs that are values of such a query are taken out too.
    """
    text = QUERY_IN_TEXT.sub(lambda found: f"?{query}" if (query := without_signatures(found[1])) else "", text)
    return SIGNATURE_IN_TEXT.sub("", text)


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


def _split_query(rest: str) -> tuple[str, str, str]:
    """Return what is before the first `?` or `#`, that sign, and what follows."""
    found = re.search(r"[?#]", rest)
    return (rest, "", "") if found is None else (rest[: found.start()], found[0], rest[found.end() :])
