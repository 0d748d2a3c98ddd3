"""The end of a stream for administrators whose right has gone, or cannot be found out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.timing import scaled
from tusd_py.admin import streams
from tusd_py.admin.streams import EventAnswer
from tusd_py.core.errors import AuthenticationUnavailable, CodedError
from tusd_py.http.access import Unauthorized
from tusd_py.http.request import Response


class Events:
    """Events that go on until they are ended."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def send(self, *_: object) -> None:
        await self._ended.wait()

    def end(self) -> None:
        self._ended.set()

    def close(self) -> None:
        pass


async def send(message: object) -> None:
    pass


@pytest.mark.parametrize("error", [Unauthorized("changed", had_credentials=True), AuthenticationUnavailable()])
async def test_stream_ends_when_the_right_has_gone_or_is_unknown_for_long(
    error: CodedError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ADMISSION_INTERVAL", 0.01)
    monkeypatch.setattr(streams, "MAX_UNKNOWN", 0.2)
    answers: list[CodedError | None] = [None, None, error]

    async def admit() -> None:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is not None:
            raise answer

    request: Any = SimpleNamespace(body=SimpleNamespace(close=lambda: None))
    events: Any = Events()
    limit: Any = None
    async with asyncio.timeout(scaled(10)):
        await EventAnswer(request, Response(200, events=events), limit, admit).send(send)
    assert answers == [error]
