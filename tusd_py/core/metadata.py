"""Upload-Metadata (tus 1.0.0, Creation), and the media type and file name of downloads. Pure functions."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

DEFAULT_TYPE = "application/octet-stream"
TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?: *; *[A-Za-z0-9!#$&^_.+-]+=[A-Za-z0-9!#$&^_.+,-]+)*")
MAX_NAME_LENGTH = 255  # characters
MAX_EXTENSION_LENGTH = 32
# Characters that no file name may hold: separators, control characters, and those that change the direction of the text
# after them, so that "gpj.exe" looks like "exe.jpg".
NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NOT_PLAIN = re.compile(r'[^\x20-\x7e]|["%]')  # characters that clients read differently in a quoted string


@dataclass(frozen=True, slots=True)
class MetadataLimits:
    """The largest header in bytes, and the largest number of pairs in it."""

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


def encode_metadata(pairs: Mapping[str, str]) -> str | None:
    """Return the Upload-Metadata of pairs; None if there is none."""
    encoded = [
        f"{key} {base64.b64encode(value.encode('utf-8', 'replace')).decode()}".rstrip() for key, value in pairs.items()
    ]
    return ",".join(encoded) or None


def with_pairs(text: str, pairs: Mapping[str, str]) -> str:
    """Return an Upload-Metadata header, which can be parsed, with other pairs in place of those of the same keys."""
    kept = [pair.strip(" \t") for pair in text.rstrip(" \t").removesuffix(",").split(",")]
    kept = [pair for pair in kept if pair and pair.partition(" ")[0] not in pairs]
    return ",".join(filter(None, (*kept, encode_metadata(pairs))))


def readable_metadata(text: str) -> dict[str, str]:
    """Return the pairs that can be read with their values as text; leave out those that are malformed."""
    values: dict[str, bytes] = {}
    for pair in text.split(","):
        with contextlib.suppress(ValueError):
            key, value = _parse_pair(pair.strip(" \t"))
            values[key] = value
    return {key: value.decode("utf-8", "replace") for key, value in values.items()}


def declared_type_of(metadata: Mapping[str, str]) -> str:
    """Return the text by which a client tells the media type of its file; empty without one."""
    return next((metadata[key] for key in ("filetype", "type", "contentType") if metadata.get(key)), "")


def content_type_of(metadata: Mapping[str, str]) -> str:
    """Return the media type that a client gave its file; the default type if it is missing or malformed."""
    found = declared_type_of(metadata)
    return found if TYPE.fullmatch(found) else DEFAULT_TYPE


def file_name_of(metadata: Mapping[str, str]) -> str:
    """Return the name that a client gave its file, which may be unsafe; empty without one."""
    return next((metadata[key] for key in ("filename", "name") if metadata.get(key)), "")


def file_name(name: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Make the name that a client gave its file safe to save under; empty if nothing is left of it.

    A name of more than `max_length` characters is shortened and keeps its extension.
    """
    name = NO_NAME.sub("_", name).strip().rstrip(". ")
    if len(name) <= max_length:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension) > MAX_EXTENSION_LENGTH:
        return name[:max_length]
    return stem[: max_length - len(extension) - 1] + dot + extension


def content_disposition(kind: str, name: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return a Content-Disposition: a plain name for every client, the true one for those that know RFC 8187.

    Args:
        kind: `inline` or `attachment`.
        name: the name that the client gave its file.
        max_length: characters of the name at most.
    """
    name = file_name(name, max_length)
    if not name:
        return kind
    plain = NOT_PLAIN.sub("_", name)
    parameters = f'{kind}; filename="{plain}"'
    return parameters if plain == name else f"{parameters}; filename*=UTF-8''{quote(name, safe='')}"


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
    return binascii.a2b_base64(text if text.endswith("=") else text + "=" * (-len(text) % 4), strict_mode=True)
