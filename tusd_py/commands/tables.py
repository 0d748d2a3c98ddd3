"""Tables for people: columns of a fixed width, which fit the terminal. Pure functions."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: the first line.
        width: cells of the terminal; 0 for the last column, which takes the rest of the line.
        right: whether its values are at the right side, as numbers are.
        cut: whether a longer value is cut off.
    """

    title: str
    width: int = 0
    right: bool = False
    cut: bool = True


def line(columns: Sequence[Column], values: Sequence[str], width: int | None) -> str:
    """Return a line of a table; of at most `width` cells, unless that is None or a value may not be cut off."""
    cells = []
    for column, value in zip(columns, values, strict=True):
        text = plain(value)
        if column.width and column.cut:
            text = _cut(text, column.width)
        space = " " * max(0, column.width - cells_of(text))
        cells.append(f"{space}{text}" if column.right else f"{text}{space}")
    whole = "  ".join(cells).rstrip()
    last = columns[-1]
    if width is None or last.width or not last.cut:
        return whole
    before = "  ".join(cells[:-1])
    return f"{before}  {_cut(cells[-1], max(1, width - cells_of(before) - 2))}".rstrip()


def plain(text: str) -> str:
    """Return a text without characters that would move the cursor or change the direction of a line."""
    return text if text.isprintable() else "".join(one if one.isprintable() else REPLACEMENT for one in text)


def size(count: int) -> str:
    """Return a number of bytes for people, such as `1.5 GiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def cells_of(text: str) -> int:
    """Return the cells of a terminal that a text takes: two for each wide character, none for one that combines."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _cut(text: str, width: int) -> str:
    if cells_of(text) <= width:
        return text
    kept = text[:width]
    while kept and cells_of(kept) > width - 1:
        kept = kept[:-1]
    return f"{kept}…"
