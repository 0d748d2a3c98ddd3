"""A client of Server-Sent Events that reads what it is told to, byte by byte."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.timing import TIMEOUT
from tests.support.wire.connection import Closed, Connection
from tests.support.wire.messages import Answer, Body, Headers


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `received_at` is a time of `time.monotonic`."""

    kind: str
    number: int
    data: dict[str, Any]
    received_at: float = field(compare=False)

    @property
    def offset(self) -> int:
        return int(self.data["offset"])


class Listening(Connection):
    """A stream of events."""

    def __init__(
        self,
        server: str | int,
        path: str,
        headers: Headers | None = None,
        *,
        version: str = "1.1",
        method: str = "GET",
        body: Body = None,
        receive_buffer: int | None = None,
        address: str = "",
    ) -> None:
        super().__init__(server, receive_buffer=receive_buffer, address=address)
        self.retry: int | None = None
        self.comments = 0
        if body is None:
            self.send_head(method, path, headers, version=version)
        else:
            self.send_request(method, path, headers, body)
        self.status, self._all_fields = self._read_head()
        self.fields = dict(self._all_fields)
        self._is_chunked = self.fields.get("transfer-encoding") == "chunked"
        self._text = b""
        self.ended = False

    def next(self, timeout: float = TIMEOUT) -> Event | None:
        """Return the next event; None at the end of the stream."""
        self.socket.settimeout(timeout)
        while not self.ended or b"\n\n" in self._text:
            block, end, rest = self._text.partition(b"\n\n")
            if not end:
                self._read_more()
                continue
            self._text = rest
            event = self._event_of(block.decode())
            if event is not None:
                return event
        return None

    def rest_of_answer(self) -> Answer:
        """Return the whole answer, which is no stream."""
        body = b"" if self.status in (204, 304) else self._read(int(self.fields["content-length"]))
        return Answer(self.status, tuple(self._all_fields), body)

    def _read_more(self) -> None:
        if not self._is_chunked:
            with contextlib.suppress(Closed):
                self._receive()
                self._text += self._read(len(self._received))
                return
            self.ended = True
            return
        size = int(self._read_through(b"\r\n"), 16)
        self._text += self._read(size)
        assert self._read(2) == b"\r\n"
        self.ended = size == 0

    def _event_of(self, block: str) -> Event | None:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            if name == "":
                self.comments += 1
            elif name == "retry":
                self.retry = int(value)
            else:
                fields[name] = value
        if not fields:
            return None
        assert set(fields) == {"event", "id", "data"}, block
        data = json.loads(fields["data"])
        assert data["type"] == fields["event"]
        return Event(fields["event"], int(fields["id"]), data, time.monotonic())

    def __iter__(self) -> Iterator[Event]:
        while (event := self.next()) is not None:
            yield event

    def until(self, kind: str, condition: Callable[[Event], bool] = lambda event: True) -> list[Event]:
        """Return the events up to the first one of a kind that fulfils the condition."""
        events: list[Event] = []
        for event in self:
            events.append(event)
            if event.kind == kind and condition(event):
                return events
        raise AssertionError(f"the stream ended without {kind}: {events}")


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]
