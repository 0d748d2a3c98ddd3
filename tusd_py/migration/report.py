"""Reports of a migration: progress, refused uploads, and the numbers at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Reporter: TypeAlias = Callable[[str], None]


class UploadRefused(Exception):
    """An upload that the migration refuses; the text is the reason, and continues a sentence: `has no Size`."""


@dataclass(slots=True)
class Summary:
    """Numbers of uploads by outcome: copied, skipped since the target has them already, and refused."""

    copied: int = 0
    skipped: int = 0
    refused: int = 0

    @property
    def done(self) -> int:
        """The number of uploads that have been dealt with."""
        return self.copied + self.skipped + self.refused


def no_report(text: str) -> None:
    """Drop a report."""


def abbreviated(text: str) -> str:
    """Return a text of a record or a file name, cut to 200 characters and safe for one line of a terminal."""
    text = text if len(text) <= 200 else text[:200] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def printable(text: str) -> str:
    """Return a line with control characters escaped, since file names and records may contain them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def root_cause(error: Exception) -> str:
    """Return the text of the error that caused `error`, without error number and class name."""
    cause = error.__cause__ or error
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
