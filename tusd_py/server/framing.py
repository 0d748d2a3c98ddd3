"""Where the pieces of HTTP/1.1 end, so that the parser never sees more than one message and no more than it may."""

from __future__ import annotations

SECTION_END = b"\r\n\r\n"  # ends a head, and a chunked body with its trailers
OVERLAP = len(SECTION_END) - 1


def section_end(before: bytes, data: bytes, start: int) -> int:
    """The position in `data` after the first end of a section from `start` on; -1 if none is there.

    `before` are the last bytes of the same section that were seen earlier, at most `OVERLAP` of them.
    """
    if before:
        found = (before + data[start : start + OVERLAP]).find(SECTION_END)
        if found >= 0:
            return start + found + len(SECTION_END) - len(before)
    found = data.find(SECTION_END, start)
    return -1 if found < 0 else found + len(SECTION_END)


class FramingAllowance:
    """Counts the bytes of a chunked body that are not its content: sizes, extensions and trailers.

    `most_in_a_row` bounds those without a byte of content between them, `most_per_byte` those of the whole body.
    """

    def __init__(self, most_in_a_row: int, most_per_byte: int) -> None:
        self._most_in_a_row = most_in_a_row
        self._most_per_byte = most_per_byte
        self._in_a_row = 0
        self._framing = 0
        self._content = 0

    def add(self, size: int, content: int) -> bool:
        """Count `size` bytes of which `content` are content; False if there is more framing than is allowed."""
        self._framing += size - content
        self._content += content
        self._in_a_row = 0 if content else self._in_a_row + size
        most = self._most_in_a_row + self._most_per_byte * self._content
        return self._in_a_row <= self._most_in_a_row and self._framing <= most
