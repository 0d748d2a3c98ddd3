"""JSON Web Tokens in the compact form: their header, and the verification of their signature. Pure functions."""

from __future__ import annotations

import base64
import binascii
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning

from tusd_py.auth.keys import (
    EC_ALGORITHMS,
    OKP_ALGORITHMS,
    RSA_ALGORITHMS,
    KeySet,
    VerificationKey,
    parse_json_object,
)
from tusd_py.contracts.auth import InvalidCredentials

COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
MAX_TOKEN_LENGTH = 16 << 10  # characters
MAX_TRIED_KEYS = 8  # keys without a name that are tried for one token
ASYMMETRIC = RSA_ALGORITHMS.union(*EC_ALGORITHMS.values(), *OKP_ALGORITHMS.values())


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
    if header.algorithm not in ASYMMETRIC or (header.kid is not None and any(key.kid == header.kid for key in keys)):
        raise InvalidCredentials("no key verifies the token")
    raise UnknownKey("no key verifies the token")


def _is_signed_by(token: str, algorithm: str, key: VerificationKey) -> bool:
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of the name EdDSA, which most issuers use
        try:
            jws.deserialize_compact(token, key.key, algorithms=[algorithm], registry=registry)
        except (JoseError, ValueError, TypeError):
            return False
    return True


def _json_part(part: str) -> Mapping[str, Any]:
    try:
        return parse_json_object(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise InvalidCredentials("the token holds no JSON") from None
