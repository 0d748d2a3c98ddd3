"""The progress of a long command, which tells it to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

# Takes the number of things that are done, and that of all, None if it is not known.
Progress: TypeAlias = Callable[[int, int | None], object]


def no_progress(done: int, total: int | None) -> None:
    """Drop the progress."""
