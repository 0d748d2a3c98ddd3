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
MAX_TOLD_FAULTS = 5  # malformed lines that are named in the log
PREFIX = "tus_"
# The digests of no token at all, which a script with an unset variable makes: of an empty text, and of a newline.
EMPTY = frozenset(hashlib.sha256(text).hexdigest() for text in (b"", b"\n"))

ApiTokens: TypeAlias = Mapping[str, Principal]  # by the SHA-256 of the token in hex


def parse_api_tokens(content: bytes) -> ApiTokens:
    """Return the principals of a file with lines `name:sha256-of-the-token-in-hex[:scope,...]`.

    Empty lines and lines that begin with `#` do not count. A name may have several tokens.

    Raises:
        ValueError: there is no token, or a line is malformed; the text names the line and no digest.
    """
    tokens, faults = read_lines(content)
    if faults:
        raise ValueError(faults[0])
    if not tokens:
        raise ValueError("there is no token in it, a line such as name:SHA-256 of the token in hex")
    return tokens


def parse_changed_api_tokens(content: bytes) -> tuple[ApiTokens, str]:
    """Return the principals of a file that has changed, and a sentence about what is wrong with it, or an empty text.

    A token whose line has gone is no longer accepted, also if another line is malformed or none is left.

    Raises:
        ValueError: all lines are malformed, as those of another file would be.
    """
    tokens, faults = read_lines(content)
    if faults and not tokens:
        raise ValueError(faults[0])
    if faults:
        return tokens, f"{'; '.join(faults[:MAX_TOLD_FAULTS])}; the lines that are well formed are in effect"
    return tokens, "" if tokens else "there is no token in it any more, so that none is accepted"


def read_lines(content: bytes) -> tuple[ApiTokens, list[str]]:
    """Return the principals of the lines that are well formed, and a sentence about each other line."""
    tokens: dict[str, Principal] = {}
    faults: list[str] = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            text = line.decode().strip()
            if text and not text.startswith("#"):
                digest, principal = parse_line(text)
                if digest in tokens:
                    raise ValueError("this token is in an earlier line too")
                tokens[digest] = principal
        except UnicodeDecodeError:
            faults.append(f"line {number}: this is not UTF-8")
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    return tokens, faults


def parse_line(line: str) -> tuple[str, Principal]:
    """Return the digest and the principal of a line; raises `ValueError`."""
    name, _, rest = line.partition(":")
    digest, colon, listed = rest.partition(":")
    if not DIGEST.fullmatch(digest):
        raise ValueError("the SHA-256 of the token, 64 hex digits, has to follow the name and a colon")
    if digest.lower() in EMPTY:
        raise ValueError("this is the SHA-256 of no token, of an empty text or of a newline")
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
