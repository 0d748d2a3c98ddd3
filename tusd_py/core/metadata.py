"""The pairs of an Upload-Metadata header (tus 1.0.0, Creation). Pure functions."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetadataLimits:
    """The longest header in bytes, and the most pairs in it."""

    header_size: int = 16 << 10
    pairs: int = 64


def parse_metadata(text: str, limits: MetadataLimits | None = None) -> dict[str, bytes]:
    """Return the decoded pairs of an Upload-Metadata header; an empty header has none.

    Example: `parse_metadata(upload.metadata or "")["fingerprint"]` is the value as bytes, whatever they are.

    Spaces around commas, a comma at the end and Base64 without its padding are accepted, as some clients send them.

    Args:
        text: the header as the client sent it, as in `Upload.metadata`.
        limits: None for no limits.

    Raises:
        ValueError: the header is malformed or beyond a limit; the text says how and follows "Upload-Metadata".
    """
    if limits is not None and len(text) > limits.header_size:
        raise ValueError(f"is longer than {limits.header_size} bytes")
    if not text.strip(" \t"):
        return {}
    pairs = text.rstrip(" \t").removesuffix(",").split(",")
    if limits is not None and len(pairs) > limits.pairs:
        raise ValueError(f"has more than {limits.pairs} pairs")
    metadata: dict[str, bytes] = {}
    for pair in pairs:
        key, value = _parse_pair(pair.strip(" \t"))
        if key in metadata:
            raise ValueError(f"has the key {key!r} twice")
        metadata[key] = value
    return metadata


def decode_metadata(text: str) -> dict[str, str]:
    """Return the pairs with their values as text; a malformed header has none.

    Bytes that are not UTF-8 become U+FFFD; `parse_metadata` gives them as they are.
    """
    try:
        pairs = parse_metadata(text)
    except ValueError:  # no server of this project accepted it
        return {}
    return {key: value.decode("utf-8", "replace") for key, value in pairs.items()}


def _parse_pair(pair: str) -> tuple[str, bytes]:
    key, _, encoded = pair.partition(" ")
    if not key:
        raise ValueError("has an empty key")
    if not key.isascii() or not key.isprintable():
        raise ValueError("has a key that is not printable ASCII")
    if " " in encoded:
        raise ValueError(f"must have one space between the key {key!r} and its value")
    try:
        return key, _decode_base64(encoded)
    except (binascii.Error, ValueError):
        raise ValueError(f"has a value for {key!r} that is not Base64") from None


def _decode_base64(text: str) -> bytes:
    """Decode Base64 with or without padding; raises `ValueError` for anything else."""
    return base64.b64decode(text if text.endswith("=") else text + "=" * (-len(text) % 4), validate=True)
