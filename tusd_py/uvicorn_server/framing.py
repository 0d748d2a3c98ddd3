"""The pieces of an HTTP/1.1 message, where they end, and how long they may be."""

from __future__ import annotations

import re
from enum import Enum, auto
from urllib.parse import unquote

import httptools

SECTION_END = b"\r\n\r\n"  # ends a head, and a chunked body with its trailers
OVERLAP = len(SECTION_END) - 1
LINE_END = b"\r\n"
MAX_LINE = 32  # bytes of a line with the size of a chunk that are looked at as such
MAX_ENDS = 256  # of what looks like the end of a chunked body
SMALL_CHUNK = 256  # bytes; with smaller ones a search is faster
MAX_HEADER_BYTES = 128 << 10  # a thousand URLs in Upload-Concat, and the longest Upload-Metadata
MAX_FRAMING_BYTES = 64 << 10  # of a chunked body without a byte of content between them
MAX_HEADERS = 256
MAX_TRAILERS = 16
MAX_FRAMING_PER_BYTE = 32  # bytes of a chunked body for each byte of its content


PLAIN_PATH = re.compile(rb"/[^?#]*")  # the target of a request that is a path alone


class Phase(Enum):
    """The part of a request that comes next."""

    HEAD = auto()
    SIZED_BODY = auto()
    CHUNKED_BODY = auto()
    ENDED = auto()


class TooManyHeaders(Exception):
    """A head has more fields than `MOST_HEADERS`."""


def request_target(target: bytes) -> tuple[str, bytes, bytes]:
    """The path, the path as it was sent, and the query; raises `httptools.HttpParserInvalidURLError`."""
    path, query = target, b""
    if not PLAIN_PATH.fullmatch(target):
        parts = httptools.parse_url(target)
        path, query = parts.path, parts.query or b""
    text = path.decode("ascii")
    return unquote(text) if "%" in text else text, path, query


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


class ChunkedBody:
    """Follows the sizes of chunks, to tell where a chunked body may end without looking at its content.

    Whether the body is well-formed is up to the parser. After anything unusual this class searches for what looks like
    an end, and may find one where there is none, but does not miss the true one, before it has found `MOST_ENDS`.
    """

    def __init__(self) -> None:
        self._skip = 0  # bytes before the next line with a size
        self._line = b""  # what has come of it
        self._searching = False
        self._ends_left = MAX_ENDS

    def end(self, before: bytes, data: bytes, start: int) -> int:
        """See `section_end`; to be called for all data of the body, in order."""
        if self._searching:
            return self._search(before, data, start)
        position = start + self._skip
        lines = len(data) // SMALL_CHUNK + 16
        while position < len(data):
            line = self._line + data[position : position + MAX_LINE]
            length = line.find(LINE_END)
            size = _chunk_size(line[:length]) if length >= 0 else None
            if size is None and length < 0 and len(line) < MAX_LINE:
                self._line, self._skip = line, 0
                return -1
            after = position + length + len(LINE_END) - len(self._line)
            self._line = b""
            lines -= 1
            if not size or not lines:
                self._searching = True
                return section_end(LINE_END, data, after) if size == 0 else self._search(before, data, start)
            position = after + size + len(LINE_END)
        self._skip = position - len(data)
        return -1

    def _search(self, before: bytes, data: bytes, start: int) -> int:
        """Search, but no more after many ends that were none: content of nothing else would cost a call for each."""
        if self._ends_left == 0:
            return -1
        found = section_end(before, data, start)
        if found >= 0:
            self._ends_left -= 1
        return found


def _chunk_size(line: bytes) -> int | None:
    """The size in a line without its end; None if there is more in it, or something else."""
    try:
        return int(line, 16)
    except ValueError:
        return None


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


def is_chunked_only(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether no field names a transfer coding other than `chunked`."""
    return all(value.strip().lower() == b"chunked" for name, value in headers if name == b"transfer-encoding")
