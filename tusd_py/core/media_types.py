"""Media types of uploads, as clients declare them, and the lists of those that are allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAME = r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}"
MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}")
PATTERN = re.compile(rf"{_NAME}/(?:{_NAME}|\*)|\*/\*")


def media_type_of(text: str) -> str:
    """Return a media type in lower case without its parameters; empty if the text is none."""
    found = text.partition(";")[0].strip().lower()
    return found if MEDIA_TYPE.fullmatch(found) else ""


def parse_patterns(entries: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a list of allowed types, such as `image/*`, in the form that `allows` takes.

    Raises:
        ValueError: an entry is neither a type nor a pattern; the text names the accepted values.
    """
    found = tuple(entry.partition(";")[0].strip().lower() for entry in entries)
    if not all(PATTERN.fullmatch(entry) for entry in found):
        raise ValueError("media types such as application/pdf, or image/* for every image")
    return found


def allows(patterns: Sequence[str], media_type: str) -> bool:
    """Return whether a list of allowed types has a media type; both in lower case."""
    return media_type in patterns or f"{media_type.partition('/')[0]}/*" in patterns or "*/*" in patterns
