"""The digests of a whole upload that its creation names: `Repr-Digest` (RFC 9530) and the metadata `sha256`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from tusd_py.core.conditions import DIGEST_ALGORITHMS
from tusd_py.http.errors import HTTPError

METADATA_KEY = "sha256"
MAX_MEMBERS = 16
_HEX = re.compile(rb"[0-9A-Fa-f]{64}")
# A member of a dictionary of structured fields (RFC 8941, section 3.2): its key, its value, and parameters.
_KEY = r"[a-z*][a-z0-9_.*-]*"
_TOKEN = r"[A-Za-z*][!#$%&'*+.^_`|~:/0-9A-Za-z-]*"
_TEXT = r"\"(?:[ !#-\[\]-~]|\\[\"\\])*\""
_ITEM = rf":[A-Za-z0-9+/]*={{0,2}}:|{_TEXT}|\?[01]|-?[0-9]+(?:\.[0-9]+)?|{_TOKEN}"
_PARAMETERS = rf"(?: *; *{_KEY}(?:=(?:{_ITEM}))?)*"
_MEMBER = re.compile(rf"[ \t]*({_KEY})(?:=({_ITEM}|\([^()]*\)))?{_PARAMETERS}[ \t]*(?:,|$)")


class InvalidDigest(HTTPError):
    """A digest of a whole upload is malformed."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "ERR_INVALID_DIGEST", message)


def digests_of(headers: Mapping[str, str], metadata: Mapping[str, bytes]) -> tuple[tuple[str, str], ...]:
    """Return the algorithms and digests in hex that the creation of an upload names.

    Other algorithms than those of `DIGEST_ALGORITHMS` are ignored, as RFC 9530 has it.

    Raises:
        InvalidDigest: a digest is malformed.
    """
    field = headers.get("repr-digest", "")
    found = parse_repr_digest(field) if field else []
    value = metadata.get(METADATA_KEY)
    if value is not None:
        if not _HEX.fullmatch(value):
            raise InvalidDigest(f"the metadata {METADATA_KEY} must be a SHA-256 digest in hex, 64 digits")
        found.append(("sha-256", value.decode().lower()))
    return tuple(found)


def parse_repr_digest(text: str) -> list[tuple[str, str]]:
    """Return the algorithms and digests in hex of a field `Repr-Digest`; raises `InvalidDigest`."""
    found: list[tuple[str, str]] = []
    position = 0
    for _ in range(MAX_MEMBERS):
        member = _MEMBER.match(text, position)
        if member is None:
            raise InvalidDigest("Repr-Digest must be a list such as sha-256=:BASE64:")
        name, value = member[1], member[2]
        if name in DIGEST_ALGORITHMS:
            found.append((name, _hex_digest(name, value or "")))
        position = member.end()
        if position == len(text):
            if member[0].endswith(","):
                break
            return found
    raise InvalidDigest(f"Repr-Digest must be a list of at most {MAX_MEMBERS} digests, without a comma at its end")


def _hex_digest(name: str, value: str) -> str:
    _, size = DIGEST_ALGORITHMS[name]
    try:
        digest = base64.b64decode(value[1:-1], validate=True) if value.startswith(":") else b""
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != size:
        raise InvalidDigest(f"Repr-Digest must have a Base64 digest of {size} bytes between colons for {name}")
    return digest.hex()
