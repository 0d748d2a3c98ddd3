"""Header fields of tus 1.0.0, parsed and formatted by pure functions that raise `InvalidHeader` with the reason."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache

from tusd_py.core import metadata
from tusd_py.core.errors import ChecksumMismatch
from tusd_py.core.metadata import MetadataLimits
from tusd_py.http.errors import HTTPError
from tusd_py.uploads.checksum import ALGORITHMS

INTEGER = re.compile(r"[0-9]{1,19}")
MAX_INTEGER = (1 << 63) - 1
OFFSET_CONTENT_TYPE = "application/offset+octet-stream"


class InvalidHeader(HTTPError):
    """A header field or a trailer is missing or malformed."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(400, code, message)


def parse_integer(name: str, text: str, code: str) -> int:
    """Return a non-negative integer of digits only, at most 2^63-1; raises `InvalidHeader`."""
    if not INTEGER.fullmatch(text) or int(text) > MAX_INTEGER:
        raise InvalidHeader(f"{name} must be a decimal integer from 0 to {MAX_INTEGER}", code)
    return int(text)


def is_offset_content_type(text: str) -> bool:
    """Return whether a media type, case-insensitive and with any parameters (RFC 9110, 8.3.1), is that of tus."""
    return text.partition(";")[0].strip().lower() == OFFSET_CONTENT_TYPE


def parse_metadata(text: str, limits: MetadataLimits | None = None) -> dict[str, bytes]:
    """Return the pairs of Upload-Metadata (`tusd_py.core.metadata`) within the limits; raises `InvalidHeader`."""
    try:
        return metadata.parse_metadata(text, limits or MetadataLimits())
    except ValueError as error:
        raise InvalidHeader(f"Upload-Metadata {error}", "ERR_INVALID_METADATA") from None


def parse_checksum(text: str) -> tuple[str, bytes]:
    """Return the algorithm and the digest of Upload-Checksum (tus 1.0.0, Checksum).

    Raises `InvalidHeader`, and `ChecksumMismatch` for a digest whose size is not that of the algorithm.
    """
    algorithm, space, encoded = text.partition(" ")
    if algorithm not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise InvalidHeader(f"Upload-Checksum must name one of the algorithms {known}", "ERR_UNKNOWN_ALGORITHM")
    try:
        expected = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        expected = b""
    if not space or not expected:
        raise InvalidHeader(f"Upload-Checksum must hold a Base64 {algorithm} digest", "ERR_INVALID_CHECKSUM")
    size = len(ALGORITHMS[algorithm]().digest())
    if len(expected) != size:
        raise ChecksumMismatch(f"the digest has {len(expected)} bytes, a {algorithm} digest has {size}")
    return algorithm, expected


def is_version(text: str, version: str) -> bool:
    """Return whether a field is this version; a proxy or a client may have sent it twice."""
    return all(item.strip(" \t") == version for item in text.split(","))


def quoted(text: str, limit: int = 40) -> str:
    """Return text of a client in quotes, for an error message: printable ASCII, at most `limit` characters."""
    shown = "".join(letter if " " <= letter <= "~" else "?" for letter in text[:limit])
    return f'"{shown}..."' if len(text) > limit else f'"{shown}"'


def parse_final_concat(text: str) -> list[str]:
    """Return the URLs of `Upload-Concat: final;url url ...` (tus 1.0.0, Concatenation); raises `InvalidHeader`."""
    urls = text.removeprefix("final;").split(" ")
    urls = [url for url in urls if url]
    if not urls:
        raise InvalidHeader("Upload-Concat names no partial uploads", "ERR_INVALID_CONCAT")
    return urls


def format_date(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as an RFC 9110 date."""
    return _format_second(int(seconds))


@lru_cache(maxsize=256)  # many uploads expire in the same second
def _format_second(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def single_values(headers: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Return header fields by lower-case name.

    The values of a repeated field are joined to a list (RFC 9110, section 5.2), which no parser of an integer accepts,
    and those of Cookie to one of cookies (RFC 9113, section 8.2.3), whose values may hold commas.
    """
    # Not every parser strips the values (RFC 9110, section 5.5).
    pairs = [(name.decode("latin-1"), value.decode("latin-1").strip(" \t")) for name, value in headers]
    values = dict(pairs)
    if len(values) < len(pairs):
        values = {}
        for name, value in pairs:
            separator = "; " if name == "cookie" else ", "
            values[name] = f"{values[name]}{separator}{value}" if name in values else value
    return values
