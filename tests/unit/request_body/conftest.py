from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.request_bodies import Clock, Make, Wire
from tusd_py.http.body import RequestBody


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tusd_py.http.body.time", clock)
    return clock


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def make(wire: Wire) -> AsyncIterator[Make]:
    made: list[RequestBody] = []

    def make(*, receive: Callable[..., object] = wire.receive, **options: object) -> RequestBody:
        made.append(RequestBody(receive, None, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for body in made:
        body.close()
