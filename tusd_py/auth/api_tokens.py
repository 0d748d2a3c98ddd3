"""API tokens: random texts of which the server keeps the digests, in a file with one token a line. Pure functions."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tusd_py.contracts.auth import KNOWN_SCOPES, MAX_OWNER_LENGTH, Principal, is_owner

DIGEST = re.compile(r"[0-9a-fA-F]{64}")
TOKEN_BYTES = 32  # random bytes in a token
PREFIX = "tus_"

ApiTokens: TypeAlias = Mapping[str, Principal]  # by the SHA-256 of the token in hex


def parse_api_tokens(content: bytes) -> ApiTokens:
    """Return the principals of a file with lines `name:sha256-of-the-token-in-hex[:scope,...]`.

    Empty lines and lines that begin with `#` do not count. A name may have several tokens.

    Raises:
        ValueError: there is no token, or a line is malformed; the text names the line and no digest.
    """
    tokens: dict[str, Principal] = {}
    for number, line in enumerate(content.decode().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            digest, principal = parse_line(line.strip())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if digest in tokens:
            raise ValueError(f"line {number}: this token is in an earlier line too")
        tokens[digest] = principal
    if not tokens:
        raise ValueError("there is no token in it, a line such as name:SHA-256 of the token in hex")
    return tokens


def parse_line(line: str) -> tuple[str, Principal]:
    """Return the digest and the principal of a line; raises `ValueError`."""
    name, _, rest = line.partition(":")
    digest, colon, listed = rest.partition(":")
    if not DIGEST.fullmatch(digest):
        raise ValueError("the SHA-256 of the token, 64 hex digits, has to follow the name and a colon")
    return digest.lower(), Principal(check_name(name), check_scopes(listed.split(",") if colon else ()))


def check_name(name: str) -> str:
    """Return the name of a token; raises `ValueError` for one that cannot be the owner of an upload."""
    if not is_owner(name) or ":" in name or name.startswith("#"):
        raise ValueError(f"a name has 1 to {MAX_OWNER_LENGTH} printable characters, without a colon or # in front")
    return name


def check_scopes(scopes: Sequence[str]) -> frozenset[str]:
    """Return the scopes of a token; raises `ValueError` for one that does not exist."""
    found = [scope.strip() for scope in scopes]
    for scope in found:
        if scope not in KNOWN_SCOPES:
            raise ValueError(f"the scopes are {', '.join(sorted(KNOWN_SCOPES))}, not {scope[:40]!r}")
    return frozenset(found)


def principal_of(token: str, tokens: ApiTokens) -> Principal | None:
    """Return the principal of a token; None for an unknown one.

    The time of the lookup depends on the digest alone, and nobody can choose tokens by their digests: the time tells
    nothing that leads to a token.
    """
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    return tokens.get(digest)


def new_token(name: str, scopes: Sequence[str] = ()) -> tuple[str, str]:
    """Return a new token and its line; raises `ValueError` for a name or a scope that cannot be used."""
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    line = f"{check_name(name)}:{digest}"
    granted = ",".join(sorted(check_scopes(scopes)))
    return token, f"{line}:{granted}" if granted else line
