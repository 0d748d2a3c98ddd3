"""Reports of a migration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Reporter: TypeAlias = Callable[[str], None]


class Refused(Exception):
    """An upload that is not taken over; the text says why, and begins with a verb."""


@dataclass(slots=True)
class Counts:
    """Numbers of uploads by outcome."""

    done: int = 0
    skipped: int = 0  # there already
    refused: int = 0


def no_report(text: str) -> None:
    pass


def abbreviated(text: str) -> str:
    """A text of a record or file name cut to 200 characters, safe for one line on a terminal."""
    text = text if len(text) <= 200 else text[:200] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def printable(text: str) -> str:
    """A line for a terminal, which must not see what names of files and records hold besides letters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def root_cause(error: Exception) -> str:
    """Return the reason underneath, without error numbers and names of classes."""
    cause = error.__cause__ or error
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
