"""Finished uploads that are removed after a time (`--retention`), or never."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.faults.clocks import DAY, FakeClock
from tests.support.harness import serving
from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tests.support.timing import wait_until
from tests.support.wire.promised import ask, content_of, create, head
from tusd_py.contracts.storage import SupportsCompletionRecords
from tusd_py.core.clock import Clock
from tusd_py.core.errors import UploadNotFound
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

DATA = b"0123456789"
Process: TypeAlias = Callable[..., AbstractAsyncContextManager[UploadService]]


@pytest.fixture(params=["sqlite", "redis"])
def process(tmp_path: Path, request: pytest.FixtureRequest) -> Process:
    """A function that starts one process on the records and files of this test, with settings of its own."""

    def process(clock: Clock | None = None, **options: Any) -> AbstractAsyncContextManager[UploadService]:
        values = {"upload_dir": tmp_path / "uploads"} | options
        if request.param == "redis":
            values |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
        return running_service(values, clock=clock)

    return process


async def finished(service: UploadService, **options: Any) -> Upload:
    upload = await service.create(NewUpload(len(DATA), **options))
    return await service.append(upload.id, AppendRequest(0, Body(DATA)))


async def age(service: UploadService, upload: Upload, seconds: float) -> Upload:
    """As if the upload had been completed so much earlier."""
    record = await service.state.get(upload.id)
    assert record is not None
    assert record.completed_at is not None
    earlier = replace(
        record,
        completed_at=record.completed_at - seconds,
        expires_at=None if record.expires_at is None else record.expires_at - seconds,
    )
    return await service.state.update(record, earlier, record.token)


async def is_there(service: UploadService, upload: Upload) -> bool:
    try:
        await service.get_completed(upload.id)
    except UploadNotFound:
        return False
    return await service.storage.stored_size(upload) == len(DATA)


async def test_a_finished_upload_is_removed_after_its_retention(process: Process) -> None:
    async with process(retention="30d") as service:
        upload = await finished(service)
        assert upload.announced_expiry is None
        upload = await age(service, upload, 30 * DAY - 60)
        assert (await Sweeper(service).sweep()).total == 0
        assert await is_there(service, upload)
        upload = await age(service, upload, 120)
        assert [found.id async for found in Sweeper(service).expired()] == [upload.id]
        assert (await Sweeper(service).sweep()).total == 1
        assert not await is_there(service, upload)
        assert await service.state.get(upload.id) is None
        if isinstance(service.storage, SupportsCompletionRecords):
            assert await service.storage.load_completion_record(upload.id) is None


async def test_a_finished_upload_is_never_removed_without_retention(process: Process) -> None:
    async with process() as service:
        upload = await finished(service)
        assert upload.expires_at is None
        await age(service, upload, 1000 * DAY)
        assert (await Sweeper(service).sweep()).total == 0
        assert await is_there(service, upload)


@pytest.mark.parametrize("later", [{}, {"retention": "0"}, {"retention": "60d"}])
async def test_retention_that_is_switched_off_or_longer_now_removes_nothing(
    process: Process, later: dict[str, Any]
) -> None:
    async with process(retention="30d") as service:
        upload = await finished(service)
        await age(service, upload, 31 * DAY)
    async with process(**later) as service:
        assert [found.id async for found in Sweeper(service).expired()] == []
        assert (await Sweeper(service).sweep()).total == 0
        assert await is_there(service, upload)
        record = await service.state.get(upload.id)
        assert record is not None
        assert record.completed_at is not None
        assert record.expires_at == (record.completed_at + 60 * DAY if later.get("retention") == "60d" else None)
        assert list(await service.state.due(service.clock.steady(), 10)) == []


async def test_upload_finished_before_retention_was_switched_on_stays(process: Process) -> None:
    async with process() as service:
        upload = await finished(service)
        await age(service, upload, 1000 * DAY)
    async with process(retention="1d") as service:
        assert (await Sweeper(service).sweep()).total == 0
        assert await is_there(service, upload)


async def test_the_retention_of_a_final_upload_begins_with_its_concatenation(process: Process) -> None:
    async with process(retention="30d") as service:
        part = await finished(service, concatenation=UploadKind.PARTIAL)
        final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,)))
        assert final.completed_at is not None
        assert final.expires_at == final.completed_at + 30 * DAY
        await age(service, final, 31 * DAY)
        assert (await Sweeper(service).sweep()).total == 1
        assert not await is_there(service, final)


def lasting_30_days(tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a server that keeps finished uploads for 30 days."""
    return {"upload_dir": tmp_path / "uploads", "retention": "30d", "expires_after": "1d"}


async def test_a_clock_that_jumps_ahead_removes_no_finished_upload(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running_service(lasting_30_days(tmp_path), clock=clock) as service:
        upload = await finished(service)
        clock.jump(100 * DAY)
        assert (await Sweeper(service).sweep()).total == 0
        clock.jump(-100 * DAY)
        clock.advance(29 * DAY)
        assert (await Sweeper(service).sweep()).total == 0
        assert await is_there(service, upload)
        clock.advance(2 * DAY)
        assert (await Sweeper(service).sweep()).total == 1


async def test_a_clock_that_was_behind_shortens_the_life_of_no_finished_upload(tmp_path: Path) -> None:
    """The machine started without battery or network, and its clock was corrected later."""
    clock = FakeClock()
    clock.jump(-400 * DAY)
    async with running_service(lasting_30_days(tmp_path), clock=clock) as service:
        upload = await finished(service)
        clock.jump(400 * DAY)
        for _ in range(29 * 24):
            clock.advance(DAY / 24)
            assert (await Sweeper(service).sweep()).total == 0
        assert await is_there(service, upload)
        for _ in range(2 * 24):
            clock.advance(DAY / 24)
            await Sweeper(service).sweep()
        assert not await is_there(service, upload)


def test_a_server_with_retention_removes_what_is_old_enough(tmp_path: Path) -> None:
    with serving(tmp_path, retention="1s", sweep_interval="0.3s") as server:
        location = create(server.url, len(DATA), body=DATA)
        answer = head(location)
        assert answer.status == 404 or "Upload-Expires" not in answer
        wait_until(lambda: head(location).status == 404)
        assert ask("GET", location).status == 404
        # The record says so first, then the bytes go.
        wait_until(lambda: all(path.name.startswith(".") for path in server.upload_dir.iterdir()))
    with serving(tmp_path, sweep_interval="0.3s") as server:
        location = create(server.url, len(DATA), body=DATA)
        assert content_of(location) == DATA
