"""Signatures in URLs: capabilities of uploads, downloads, and grants of one creation. Pure functions.

A signature is `1.FIELD....MAC`: the version, the fields, and HMAC-SHA-256 in Base64 for URLs over the version, the
purpose, the upload and the fields. Texts are compared, not what they decode to, so that each has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tusd_py.auth.signing_keys import SigningKeys
from tusd_py.contracts.auth import is_owner
from tusd_py.core.metadata import encode_metadata, parse_metadata
from tusd_py.core.upload import MAX_UPLOAD_SIZE

VERSION = "1"
MAX_LENGTH = 4096  # characters of a signature; proxies take 8 KiB for a request line
NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
TYPE_PATTERN = re.compile(r"[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+)")
NONCE = re.compile(r"[A-Za-z0-9_-]{22}")


class Purpose(StrEnum):
    """The use of a signature; none is good for another."""

    CAPABILITY = "capability"
    DOWNLOAD = "download"
    CREATION = "creation"


@dataclass(frozen=True, slots=True)
class Capability:
    """The right to use one upload without a token.

    Attributes:
        expires_at: seconds since the epoch.
        created_at: the creation of the upload in microseconds since the epoch: an id may be used again.
        may_terminate: whether it is good for DELETE too.
    """

    expires_at: int
    created_at: int
    may_terminate: bool


@dataclass(frozen=True, slots=True)
class CreationGrant:
    """The right to create one upload without a token.

    Attributes:
        nonce: makes the grant different from all others.
        expires_at: seconds since the epoch.
        owner: the owner of the upload; empty for none.
        max_size: bytes that the upload may have; None: as many as the server allows.
        types: media types that the upload may have, such as `image/*`; empty for any.
        metadata: pairs that are added to those of the client, and win.
    """

    nonce: str = field(repr=False)
    expires_at: int
    owner: str = ""
    max_size: int | None = None
    types: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def upload_id(self) -> str:
        """The id of the upload: always the same, so that there is one, whichever hosts are asked."""
        return hashlib.sha256(f"tusd-py upload {self.nonce}".encode()).hexdigest()[:32]


def new_grant(
    expires_at: int,
    *,
    owner: str = "",
    max_size: int | None = None,
    types: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> CreationGrant:
    """Return a new grant; raises `ValueError` with one sentence for what no upload can have."""
    grant = CreationGrant(secrets.token_urlsafe(16), expires_at, owner, max_size, tuple(types), dict(metadata or {}))
    return check_grant(grant)


def check_grant(grant: CreationGrant) -> CreationGrant:
    """Return the grant; raises `ValueError` as `new_grant` does."""
    if grant.owner and not is_owner(grant.owner):
        raise ValueError("an owner has 1 to 255 printable characters")
    if grant.max_size is not None and not 0 <= grant.max_size <= MAX_UPLOAD_SIZE:
        raise ValueError(f"the largest size is from 0 to {MAX_UPLOAD_SIZE} bytes")
    for name in grant.types:
        if not TYPE_PATTERN.fullmatch(name):
            raise ValueError(f"a type is such as image/png or image/*, not {name[:40]!r}")
    for key, value in grant.metadata.items():
        if not key or " " in key or "," in key:
            raise ValueError("a key of metadata is not empty, and has no spaces and no commas")
        try:
            parse_metadata(encode_metadata({key: value}) or "")
        except ValueError as error:
            raise ValueError(f"the metadata {error}") from None
    return grant


# Signing.


def sign_capability(keys: SigningKeys, upload_id: str, capability: Capability) -> str:
    """Return the signature of a capability of an upload."""
    rights = "hpd" if capability.may_terminate else "hp"
    return _sign(keys, Purpose.CAPABILITY, upload_id, str(capability.expires_at), str(capability.created_at), rights)


def sign_download(keys: SigningKeys, upload_id: str, expires_at: int) -> str:
    """Return the signature for downloads of an upload."""
    return _sign(keys, Purpose.DOWNLOAD, upload_id, str(expires_at))


def sign_creation(keys: SigningKeys, grant: CreationGrant) -> str:
    """Return the signature of a grant; raises `ValueError` if it would be too long for a URL."""
    fields = {
        "n": grant.nonce,
        "o": grant.owner,
        "s": grant.max_size,
        "t": list(grant.types),
        "m": dict(grant.metadata),
    }
    given = {name: value for name, value in fields.items() if value not in ("", None, [], {})}
    document = json.dumps(given, separators=(",", ":"))
    signature = _sign(keys, Purpose.CREATION, "", str(grant.expires_at), _base64(document.encode()))
    if len(signature) > MAX_LENGTH:
        raise ValueError(f"the signature would be longer than {MAX_LENGTH} characters: give less metadata")
    return signature


# Verifying.


class Expired(ValueError):
    """A signature was good until it expired."""


def read_capability(keys: SigningKeys, upload_id: str, text: str, now: float) -> Capability:
    """Return the capability of an upload that a text is; raises `ValueError`, and `Expired` for an earlier one."""
    expires_at, created_at, rights = _fields(keys, Purpose.CAPABILITY, upload_id, text, now, 3)
    return Capability(_number(expires_at), _number(created_at), "d" in rights)


def verify_download(keys: SigningKeys, upload_id: str, text: str, now: float) -> None:
    """Raise `ValueError` unless a text is the signature for downloads of an upload; `Expired` for an earlier one."""
    _fields(keys, Purpose.DOWNLOAD, upload_id, text, now, 1)


def read_creation(keys: SigningKeys, text: str, now: float) -> CreationGrant:
    """Return the grant that a text is; raises `ValueError`, and `Expired` for an earlier one."""
    expires_at, document = _fields(keys, Purpose.CREATION, "", text, now, 2)
    try:
        values: Any = json.loads(base64.urlsafe_b64decode(document + "=" * (-len(document) % 4)))
        grant = CreationGrant(
            nonce=values["n"],
            expires_at=_number(expires_at),
            owner=values.get("o", ""),
            max_size=values.get("s"),
            types=tuple(values.get("t", ())),
            metadata=values.get("m", {}),
        )
        if not NONCE.fullmatch(grant.nonce):
            raise ValueError("the nonce is malformed")
        return check_grant(grant)
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError("the grant is malformed") from error


def _fields(keys: SigningKeys, purpose: Purpose, upload_id: str, text: str, now: float, count: int) -> tuple[str, ...]:
    """Return the fields of a signature, of which the first is its expiry; raises `ValueError`."""
    fields = text.split(".", count + 2)[1:-1] if len(text) <= MAX_LENGTH else []
    if len(fields) != count or not _is_signed(keys, purpose, upload_id, text, fields):
        raise ValueError("the signature is not accepted")
    if now >= _number(fields[0]):
        raise Expired("the signature has expired")
    return tuple(fields)


def _is_signed(keys: SigningKeys, purpose: Purpose, upload_id: str, text: str, fields: Sequence[str]) -> bool:
    given = text.encode("utf-8", "replace")
    expected = [_sign(SigningKeys((key,)), purpose, upload_id, *fields) for key in keys.keys]
    return any(hmac.compare_digest(given, signature.encode("utf-8", "replace")) for signature in expected)


def _number(text: str) -> int:
    if not NUMBER.fullmatch(text):
        raise ValueError("a number is malformed")
    return int(text)


def _sign(keys: SigningKeys, purpose: Purpose, upload_id: str, *fields: str) -> str:
    text = "\n".join(("tusd-py", VERSION, purpose, upload_id, *fields))
    mac = hmac.digest(keys.keys[0], text.encode("utf-8", "replace"), "sha256")
    return ".".join((VERSION, *fields, _base64(mac)))


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
