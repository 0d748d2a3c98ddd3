"""Ids that one upload takes: its record stays after its end, and goes when nobody asks for the id any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tests.support.timing import TIMEOUT
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import UploadError, UploadExists, UploadGone, UploadNotFound
from tusd_py.core.upload import Status
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload, Reservation

RESERVED = "reserved"
DATA = b"0123456789"
Process: TypeAlias = Callable[..., AbstractAsyncContextManager[UploadService]]


@pytest.fixture(params=["sqlite", "redis"])
def process(tmp_path: Path, request: pytest.FixtureRequest) -> Process:
    """A function that starts one process on the records and files of this test, with settings of its own."""

    def process(**options: Any) -> AbstractAsyncContextManager[UploadService]:
        values = {"upload_dir": tmp_path / "uploads"} | options
        if request.param == "redis":
            values |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
        return running_service(values)

    return process


def reserving(length: int, seconds: float = 3600) -> NewUpload:
    return NewUpload(length, reservation=Reservation(RESERVED, time.time() + seconds))


async def create(service: UploadService, *, arrived: bool) -> None:
    request = AppendRequest(0, Body(DATA, arrived=arrived))
    assert (await service.create_with(reserving(len(DATA)), request)).id == RESERVED


@pytest.mark.parametrize("arrived", [True, False], ids=["small", "large"])
async def test_reserved_id_is_taken_once(process: Process, arrived: bool) -> None:
    async with process() as service:
        await create(service, arrived=arrived)
        for _ in range(2):
            with pytest.raises(UploadExists):
                await create(service, arrived=arrived)
            with pytest.raises(UploadExists):
                await service.create(reserving(0))
        assert (await service.get(RESERVED)).offset == len(DATA)
        await service.terminate(RESERVED)
        with pytest.raises(UploadExists):
            await create(service, arrived=arrived)
    async with process() as service:
        with pytest.raises(UploadExists):
            await create(service, arrived=arrived)
        with pytest.raises(UploadNotFound):
            await service.get(RESERVED)


class WaitingBody(Body):
    """A body whose end comes when it is told to, or when the append has to end."""

    def __init__(self) -> None:
        super().__init__(DATA, piece_size=5)
        self.is_read = asyncio.Event()
        self.may_end = asyncio.Event()
        self.reasons: list[UploadError] = []

    async def read(self) -> Buffer | None:
        data = await super().read()
        if data == DATA[5:]:
            self.is_read.set()
            await self.may_end.wait()
            if self.reasons:
                raise self.reasons[0]
        return data

    def interrupt(self, reason: UploadError) -> None:
        self.reasons.append(reason)
        self.may_end.set()


@pytest.mark.parametrize("length", [0, len(DATA)])
async def test_another_creation_by_a_reservation_stops_no_append(process: Process, length: int) -> None:
    async with process() as service:
        body = WaitingBody()
        appending = asyncio.create_task(service.create_with(reserving(len(DATA)), AppendRequest(0, body)))
        async with asyncio.timeout(TIMEOUT):
            await body.is_read.wait()
        with pytest.raises(UploadExists):
            await service.create(reserving(length))
        assert body.reasons == []
        body.may_end.set()
        assert (await appending).is_complete


@pytest.mark.parametrize("gone_for", [0, 10_000])
async def test_record_of_an_ended_upload_goes_with_its_reservation(process: Process, gone_for: int) -> None:
    async with process(gone_for=gone_for) as service:
        await create(service, arrived=True)
        await service.terminate(RESERVED)
        record = await service.state.get(RESERVED)
        assert record is not None
        assert record.reserved_until is not None
        assert record.expires_at is not None
        assert record.status is Status.TERMINATED
        assert record.expires_at >= record.reserved_until
        with pytest.raises(UploadGone if gone_for else UploadNotFound):
            await service.get(RESERVED)
        await Sweeper(service).sweep()
        assert await service.state.get(RESERVED) == record
        over = replace(record, expires_at=time.time() - 1, reserved_until=time.time() - 1)
        await service.state.update(record, over, record.token)
        await Sweeper(service).sweep()
        assert await service.state.get(RESERVED) is None


async def test_reservation_that_is_over_keeps_no_record(process: Process) -> None:
    async with process() as service:
        await service.create(reserving(10, seconds=-1))
        await service.terminate(RESERVED)
        assert await service.state.get(RESERVED) is None


async def test_upload_of_another_id_takes_the_reservation_first(process: Process) -> None:
    async with process() as service:
        first = await service.create(replace(reserving(10), id="chosen"))
        assert (first.id, first.reserved_until) == ("chosen", None)
        with pytest.raises(UploadExists):
            await service.create(replace(reserving(10), id="other"))
        assert await service.state.get("other") is None
        with pytest.raises(UploadExists):
            await service.create(reserving(10))


async def test_id_that_is_in_use_leaves_the_reservation_free(process: Process) -> None:
    async with process() as service:
        await service.create(NewUpload(10, id="chosen"))
        with pytest.raises(UploadExists):
            await service.create(replace(reserving(10), id="chosen"))
        assert await service.state.get(RESERVED) is None
        assert (await service.create(reserving(10))).id == RESERVED
