"""Answers of the application to HTTP requests, parsed within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import httptools

MAX_HEAD = 32 << 10  # bytes of the status line and the header fields


class HttpFailure(Exception):
    """There is no answer that can be understood; the text says why, for the operator."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer.

    Attributes:
        status: the status, from 200.
        headers: by their names in lower case; fields of one name are joined by commas.
        body: None if it is longer than the caller wants.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)

    @property
    def retry_after(self) -> float | None:
        """The seconds of Retry-After; None without it, or for a date."""
        value = self.headers.get("retry-after", "").strip()
        return float(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


class ResponseParser:
    """A parser of one answer. Interim answers (1xx) are passed over, and so is what follows the answer."""

    def __init__(self, max_body: int) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._max_body = max_body
        self._head_size = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._has_head = False
        self._is_too_long = False
        self.has_begun = False
        self.is_complete = False
        self.keeps_alive = False  # whether the connection can be used again
        self.has_surplus = False  # whether something followed the answer, which belongs to no request

    def feed(self, data: bytes) -> None:
        """Take bytes of the connection; none at its end.

        Raises:
            HttpFailure: the answer ends too early, or its head is too long.
            httptools.HttpParserError: it is not HTTP.
        """
        if not data:
            self._end()
            return
        self.has_begun = True
        if not self._has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self.is_complete:
                raise
            self.has_surplus = True
        if self.has_surplus:
            self.keeps_alive = False
        if not self._has_head and self._head_size > MAX_HEAD:
            raise HttpFailure("the header fields of the answer are too long")
        if self._is_too_long:
            self.is_complete = True

    def _end(self) -> None:
        has_length = "content-length" in self._headers or "transfer-encoding" in self._headers
        if not self._has_head or has_length:
            raise HttpFailure("the connection was closed before the end of the answer")
        self.is_complete = True

    def answer(self) -> HttpAnswer:
        """Return the answer, once it is complete."""
        body = None if self._is_too_long else bytes(self._body)
        return HttpAnswer(self._status, self._headers, body)

    # Called by httptools.

    def on_message_begin(self) -> None:
        """Note the beginning of what follows the answer."""
        self.has_surplus = self.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field."""
        if self.has_surplus:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """Note the status."""
        if self.has_surplus:
            return
        self._status = self._parser.get_status_code()
        if self._status < 200:
            self._headers.clear()
        else:
            self._has_head = True

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self.has_surplus:
            return
        if len(self._body) + len(data) > self._max_body:
            self._is_too_long = True
            self._body.clear()
        if not self._is_too_long:
            self._body += data

    def on_message_complete(self) -> None:
        """Note the end."""
        if self.has_surplus:
            return
        self.is_complete = self._has_head
        self.keeps_alive = self._has_head and not self._is_too_long and self._parser.should_keep_alive()
