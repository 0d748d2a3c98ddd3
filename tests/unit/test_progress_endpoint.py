"""The answers about named uploads alone: uploads of others are looked for as long as unknown ones."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tusd_py.core.clock import SystemClock
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.http.progress.endpoint import ProgressEndpoint
from tusd_py.progress.hub import ProgressHub
from tusd_py.testing import MemoryLocker

FOREIGN = Upload("a", 1.0, length=100, owner="bob")


class Service:
    """One upload; an unknown one is looked for elsewhere too."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.misses = 0

    async def find(self, upload_id: str) -> Upload | None:
        if upload_id == self.upload.id:
            return self.upload
        await self.miss()
        return None

    async def miss(self) -> None:
        self.misses += 1


async def misses(upload: Upload, query: bytes, *, may_follow: bool) -> int:
    async def decide(upload: Upload) -> bool:
        return may_follow

    service: Any = Service(upload)
    hub = ProgressHub(EventBus(), service.find, MemoryLocker(), SystemClock(), max_listeners=10)
    request: Any = SimpleNamespace(
        scope={"query_string": query},
        principal=None,
        is_head=False,
        may_follow=decide,
        client="",
        admitted_until=math.inf,
        websocket=None,
    )
    response = await ProgressEndpoint(hub, service).get_several(request)
    assert response.events is not None
    response.events.close()
    hub.close()
    return int(service.misses)


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.COMPLETE, Status.TERMINATED, Status.EXPIRED])
async def test_upload_of_another_is_looked_for_as_long_as_an_unknown_one(status: Status) -> None:
    upload = replace(FOREIGN, status=status)
    assert await misses(upload, b"upload=b", may_follow=False) == 1
    assert await misses(upload, b"upload=a", may_follow=False) == 1


async def test_upload_that_may_be_followed_is_looked_for_once() -> None:
    assert await misses(FOREIGN, b"upload=a", may_follow=True) == 0
