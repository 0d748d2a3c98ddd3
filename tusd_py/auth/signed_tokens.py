"""JSON Web Tokens in the compact form: their header, and the verification of their signature. Pure functions."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc.jwa import JWS_ALGORITHMS

from tusd_py.auth.keys import (
    ASYMMETRIC_ALGORITHMS,
    UNUSABLE,
    KeySet,
    VerificationKey,
    parse_json_object,
)
from tusd_py.contracts.auth import InvalidCredentials

COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
MAX_TOKEN_LENGTH = 16 << 10  # characters
MAX_TRIED_KEYS = 16  # keys of one type that are tried for one token
ALGORITHMS = {algorithm.name: algorithm for algorithm in JWS_ALGORITHMS}


class UnknownKey(InvalidCredentials):
    """No known key verifies the token; one that is not known yet may."""


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The header of a token, as its sender wrote it: nothing in it is trusted."""

    algorithm: str
    kid: str | None


def parse_header(token: str) -> TokenHeader:
    """Return the header of a token; raises `InvalidCredentials` for a malformed one and for critical extensions."""
    if len(token) > MAX_TOKEN_LENGTH or not COMPACT.fullmatch(token):
        raise InvalidCredentials("this is no JSON Web Token")
    header = _json_part(token.partition(".")[0])
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or (kid is not None and not isinstance(kid, str)):
        raise InvalidCredentials("the header of the token is malformed")
    if "crit" in header or "b64" in header:
        raise InvalidCredentials("the token demands an extension that is not known")
    return TokenHeader(algorithm, kid)


def verified_claims(token: str, keys: KeySet) -> Mapping[str, Any]:
    """Return the claims of a token that one of the keys verifies.

    The keys decide about the algorithm; the header only chooses among them, by its `kid`.

    Raises:
        UnknownKey: a public key is needed, and none of the keys is it.
        InvalidCredentials: the token is malformed, or the signature is wrong.
    """
    header = parse_header(token)
    fitting = [key for key in keys if header.algorithm in key.algorithms]
    if header.kid is not None:
        fitting = [key for key in fitting if key.kid in (None, header.kid)]
    for key in fitting[:MAX_TRIED_KEYS]:
        if _is_signed_by(token, header.algorithm, key):
            return _json_part(token.split(".")[1])
    if header.algorithm not in ASYMMETRIC_ALGORITHMS:
        raise InvalidCredentials("no key verifies the token")
    if len(fitting) > MAX_TRIED_KEYS:
        raise InvalidCredentials(f"none of {MAX_TRIED_KEYS} keys verifies the token, whose kid leaves others open")
    raise UnknownKey("no key verifies the token")


def _is_signed_by(token: str, algorithm: str, key: VerificationKey) -> bool:
    content, _, signature = token.rpartition(".")
    try:
        ALGORITHMS[algorithm].check_key(key.key)
        return bool(ALGORITHMS[algorithm].verify(content.encode(), _decoded(signature), key.key))
    except UNUSABLE:  # also of a signature that is no such number
        return False


def _json_part(part: str) -> Mapping[str, Any]:
    try:
        return parse_json_object(_decoded(part))
    except ValueError:
        raise InvalidCredentials("the token holds no JSON") from None


def _decoded(part: str) -> bytes:
    """Return the bytes of a part; raises `ValueError` for one that is no Base64."""
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
