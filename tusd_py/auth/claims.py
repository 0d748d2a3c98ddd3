"""The claims of a verified token: their checks, and the principal that they name. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tusd_py.contracts.auth import ExpiredCredentials, InvalidCredentials, Principal, is_owner

MAX_SIZE_CLAIM = "tus_max_size"
QUOTA_CLAIM = "tus_quota_bytes"
MAX_INTEGER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """The claims that a token needs.

    Attributes:
        issuer: the only `iss`; None for any.
        audience: a value that `aud` has to hold; None for any.
        leeway: seconds by which the clocks of issuer and server may differ.
        owner_claim: the claim that names the owner.
        scope_claim: the claim with the scopes, as text or as a list.
    """

    issuer: str | None = None
    audience: str | None = None
    leeway: float = 30.0
    owner_claim: str = "sub"
    scope_claim: str = "scope"


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that was accepted, and the time from which it is no longer, in seconds since the epoch."""

    principal: Principal
    expires_at: float = math.inf


def accept(claims: Mapping[str, Any], rules: ClaimRules, now: float) -> VerifiedToken:
    """Return what a verified token says.

    Args:
        claims: of a token whose signature has been verified.
        rules: the claims that it needs.
        now: seconds since the epoch.

    Raises:
        InvalidCredentials: a claim is missing, malformed or refused.
        ExpiredCredentials: the token is good but for its `exp`.
    """
    expires_at = _time(claims, "exp", math.inf) + rules.leeway
    if now < _time(claims, "nbf", -math.inf) - rules.leeway:
        raise InvalidCredentials("the token is not valid yet")
    if rules.issuer is not None and claims.get("iss") != rules.issuer:
        raise InvalidCredentials("the token is of another issuer")
    if rules.audience is not None and rules.audience not in _texts(claims.get("aud")):
        raise InvalidCredentials("the token is for another audience")
    principal = Principal(
        owner=owner_of(claims.get(rules.owner_claim)),
        scopes=scopes_of(claims.get(rules.scope_claim)),
        max_size=size_of(claims, MAX_SIZE_CLAIM),
        quota_bytes=size_of(claims, QUOTA_CLAIM),
        claims=claims,
    )
    if now >= expires_at:
        raise ExpiredCredentials("the token has expired")
    return VerifiedToken(principal, expires_at)


def owner_of(value: object) -> str:
    """Return the owner that a claim names, a text or a number; raises `InvalidCredentials` for another value."""
    text = ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        text = str(int(value)) if value == int(value) else repr(value)
    if not is_owner(text):
        raise InvalidCredentials("the token names no owner")
    return text


def scopes_of(value: object) -> frozenset[str]:
    """Return the scopes of a claim: a text with spaces between them, or a list; other values give none."""
    if isinstance(value, str):
        return frozenset(value.split())
    return frozenset(_texts(value))


def size_of(claims: Mapping[str, Any], name: str) -> int | None:
    """Return the bytes that a claim allows, None without it; raises `InvalidCredentials` for what is no size."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INTEGER:
        raise InvalidCredentials(f"the claim {name} is no number of bytes")
    return value


def _time(claims: Mapping[str, Any], name: str, default: float) -> float:
    value = claims.get(name, default)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
    except OverflowError:
        pass
    raise InvalidCredentials(f"the claim {name} is no time")


def _texts(value: object) -> list[str]:
    """Return the texts of a claim that may be one or a list."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]
