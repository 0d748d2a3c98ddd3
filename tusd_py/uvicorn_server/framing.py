"""Framing of HTTP/1.1 messages: the ends of their sections, and limits for their sizes."""

from __future__ import annotations

import re
from enum import Enum, auto
from urllib.parse import unquote

import httptools

SECTION_END = b"\r\n\r\n"  # the end of a head, and of a chunked body with its trailers
OVERLAP = len(SECTION_END) - 1
LINE_END = b"\r\n"
MAX_LINE = 32  # bytes of a line with a chunk size; longer ones are searched, not parsed
MAX_ENDS = 256  # number of possible ends of a chunked body that are found
MIN_CHUNK_SIZE = 256  # bytes; for smaller chunks a search is faster
MAX_HEADER_BYTES = 128 << 10  # enough for a thousand URLs in Upload-Concat, and the longest Upload-Metadata
MAX_FRAMING_BYTES = 64 << 10  # framing of a chunked body in a row, without content
MAX_HEADERS = 256
MAX_TRAILERS = 16
MAX_FRAMING_PER_BYTE = 32  # bytes of a chunked body for each byte of its content


PLAIN_PATH = re.compile(rb"/[^?#]*")  # a request target without a query


class Phase(Enum):
    """The part of a request that comes next; no other request comes after the start of a WebSocket."""

    HEAD = auto()
    SIZED_BODY = auto()
    CHUNKED_BODY = auto()
    ENDED = auto()
    WEBSOCKET = auto()


class TooManyHeaders(Exception):
    """A head with more than `MAX_HEADERS` fields."""


def request_target(target: bytes) -> tuple[str, bytes, bytes]:
    """Return path, raw path and query of a request target; raises `httptools.HttpParserInvalidURLError`."""
    path, query = target, b""
    if not PLAIN_PATH.fullmatch(target):
        parts = httptools.parse_url(target)
        path, query = parts.path, parts.query or b""
    text = path.decode("ascii")
    return unquote(text) if "%" in text else text, path, query


def section_end(before: bytes, data: bytes, start: int) -> int:
    """Return the position in `data` after the first end of a section from `start` on; -1 if none is there.

    `before` are the last bytes of the same section that were seen earlier, at most `OVERLAP` of them.
    """
    if before:
        found = (before + data[start : start + OVERLAP]).find(SECTION_END)
        if found >= 0:
            return start + found + len(SECTION_END) - len(before)
    found = data.find(SECTION_END, start)
    return -1 if found < 0 else found + len(SECTION_END)


class ChunkedBody:
    """A tracker of chunk sizes that finds the possible end of a chunked body without looking at its content.

    Whether the body is well-formed is up to the parser. After anything unusual this class searches for bytes that look
    like an end. They may not be the true end, but the true end is never missed before `MAX_ENDS` have been found.
    """

    def __init__(self) -> None:
        self._bytes_to_skip = 0  # bytes before the next line with a size
        self._line = b""  # received beginning of that line
        self._searching = False
        self._ends_left = MAX_ENDS

    def end(self, before: bytes, data: bytes, start: int) -> int:
        """Return what `section_end` returns; call it with all data of the body, in order."""
        if self._searching:
            return self._search(before, data, start)
        position = start + self._bytes_to_skip
        lines = len(data) // MIN_CHUNK_SIZE + 16
        while position < len(data):
            line = self._line + data[position : position + MAX_LINE]
            length = line.find(LINE_END)
            size = _chunk_size(line[:length]) if length >= 0 else None
            if size is None and length < 0 and len(line) < MAX_LINE:
                self._line, self._bytes_to_skip = line, 0
                return -1
            after = position + length + len(LINE_END) - len(self._line)
            self._line = b""
            lines -= 1
            if not size or not lines:
                self._searching = True
                return section_end(LINE_END, data, after) if size == 0 else self._search(before, data, start)
            position = after + size + len(LINE_END)
        self._bytes_to_skip = position - len(data)
        return -1

    def _search(self, before: bytes, data: bytes, start: int) -> int:
        """Search for an end, up to `MAX_ENDS` times: content full of false ends would cost a call for each."""
        if self._ends_left == 0:
            return -1
        found = section_end(before, data, start)
        if found >= 0:
            self._ends_left -= 1
        return found


def _chunk_size(line: bytes) -> int | None:
    """Return the size in a line without its end; None if it holds anything else."""
    try:
        return int(line, 16)
    except ValueError:
        return None


class FramingAllowance:
    """A count of the bytes of a chunked body that are not content: sizes, extensions and trailers.

    `max_in_a_row` limits those without a byte of content between them, `max_per_byte` those for each byte of content.
    """

    def __init__(self, max_in_a_row: int, max_per_byte: int) -> None:
        self._max_in_a_row = max_in_a_row
        self._max_per_byte = max_per_byte
        self._in_a_row = 0
        self._framing = 0
        self._content = 0

    def add(self, size: int, content: int) -> bool:
        """Count `size` bytes, `content` of which are content; return False if there is too much framing."""
        self._framing += size - content
        self._content += content
        self._in_a_row = 0 if content else self._in_a_row + size
        limit = self._max_in_a_row + self._max_per_byte * self._content
        return self._in_a_row <= self._max_in_a_row and self._framing <= limit


def is_chunked_only(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether no field names a transfer coding other than `chunked`."""
    return all(value.strip().lower() == b"chunked" for name, value in headers if name == b"transfer-encoding")
