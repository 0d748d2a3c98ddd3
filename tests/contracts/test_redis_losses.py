"""Changes that Redis loses while the offset of their record stays: no later change builds on what is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import TIMEOUT
from tests.support.redis_hosts import Host
from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tusd_py.backends.redis.schema import Keys
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import LockLost
from tusd_py.core.upload import Status, Upload
from tusd_py.http.download import Selection, select
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

DATA = b"0123456789"
UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=len(DATA))


@pytest.fixture
async def service(tmp_path: Path, prefix: str) -> AsyncIterator[UploadService]:
    settings = {"upload_dir": tmp_path / "uploads", "redis_url": shared_redis_url(), "redis_prefix": prefix}
    async with running_service(settings) as one:
        yield one


class WaitingBody(Body):
    """A body whose bytes arrive when they are let go; until then a read ends when somebody asks for a commit."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.is_awaited = asyncio.Event()
        self._may_arrive = False
        self._woken = asyncio.Event()

    async def read(self) -> Buffer | None:
        if self._may_arrive:
            return await super().read()
        self.is_awaited.set()
        await self._woken.wait()
        self._woken.clear()
        return b""

    def wake(self) -> None:
        self._woken.set()

    def let_arrive(self) -> None:
        self._may_arrive = True
        self._woken.set()


async def test_an_upload_can_be_downloaded_after_redis_has_lost_its_declared_length(
    service: UploadService, host: Host, prefix: str
) -> None:
    created = await service.create(NewUpload(None))
    source = WaitingBody(DATA)
    appending = asyncio.create_task(service.append(created.id, AppendRequest(0, source, len(DATA))))
    async with asyncio.timeout(TIMEOUT):
        await source.is_awaited.wait()
    assert (await service.inspect(created.id)).length == len(DATA)

    assert await host.connection.command("HDEL", Keys(prefix).record(created.id), "length") == 1
    source.let_arrive()
    assert (await appending).is_complete

    complete = await service.get_completed(created.id)
    assert complete.length == len(DATA)
    assert select(complete, {}) == Selection(200, 0, len(DATA))
    assert (await service.inspect(created.id)).length == len(DATA)


async def test_a_complete_record_without_a_length_has_that_of_its_bytes(
    service: UploadService, host: Host, prefix: str
) -> None:
    created = await service.create(NewUpload(len(DATA)))
    upload = await service.append(created.id, AppendRequest(0, Body(DATA)))
    await host.connection.command("HDEL", Keys(prefix).record(upload.id), "length")

    assert (await service.get_completed(upload.id)).length == len(DATA)
    assert (await service.inspect(upload.id)).length == len(DATA)


async def test_a_record_that_has_lost_where_its_bytes_are_is_not_changed(host: Host, prefix: str) -> None:
    before = replace(UPLOAD, storage_state="0:7")
    await host.state.create(before)
    await host.connection.command("HDEL", Keys(prefix).record(before.id), "layout")

    with pytest.raises(LockLost):
        await host.state.update(before, before.at(4), 1)

    assert await host.state.get(before.id) == UPLOAD


async def test_a_length_that_another_host_was_told_is_not_replaced(host: Host, prefix: str) -> None:
    before = replace(UPLOAD, length=None, deferred=True)
    await host.state.create(before)
    await host.state.update(before, replace(before, length=5), 1)

    for after in (before.at(4), replace(before, length=6)):
        with pytest.raises(LockLost):
            await host.state.update(before, after, 1)

    assert await host.state.get(before.id) == replace(before, length=5, token=1)


async def test_an_upload_can_be_removed_where_a_refused_completion_has_stored_it(host: Host) -> None:
    before = replace(UPLOAD, status=Status.FINISHING)
    await host.state.create(before)
    finished = replace(before, storage_state="0:7")

    await host.state.update(finished, replace(finished, status=Status.TERMINATED), 1)

    found = await host.state.get(before.id)
    assert found is not None
    assert found.status is Status.TERMINATED
