"""Small bodies on either fast path, with records in SQLite and in Redis: the same answers, and nothing is lost."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stalls import OSFaults
from tests.support.services import Body
from tests.support.small_uploads import content, records_in_redis, small_append
from tusd_py.core.errors import OffsetMismatch, SizeExceeded, UploadNotFound
from tusd_py.core.upload import Status
from tusd_py.events.types import AppendEnded, AppendStarted, UploadFinished, UploadProgressed
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

KINDS = (AppendStarted, UploadProgressed, AppendEnded, UploadFinished)


@pytest.fixture(params=["sqlite", "redis"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return records_in_redis(tmp_path) if request.param == "redis" else {}


async def test_the_fast_path_tells_the_same_as_the_slow_one(service: UploadService) -> None:
    told: list[object] = []
    for kind in KINDS:
        service.events.observe(kind, told.append)
    for body in (Body(b"data", arrived=True), Body(b"data")):
        upload = await service.create(NewUpload(4))
        await service.append(upload.id, AppendRequest(0, body))
    kinds = [type(event) for event in told]
    assert kinds[: len(KINDS)] == kinds[len(KINDS) :] == list(KINDS)
    assert [event.received for event in told if isinstance(event, UploadProgressed)] == [4, 4]


async def test_refused_small_body_raises_the_reason_and_changes_nothing(service: UploadService, tmp_path: Path) -> None:
    upload = await service.create(NewUpload(8))
    before = await service.append(upload.id, small_append(b"some"))
    with pytest.raises(OffsetMismatch) as mismatch:
        await service.append(upload.id, small_append(b"data"))
    assert mismatch.value.offset == 4
    with pytest.raises(SizeExceeded):
        await service.append(upload.id, small_append(b"too much", 4))
    with pytest.raises(UploadNotFound):
        await service.append("unknown", small_append(b"data"))
    assert await service.state.get(upload.id) == before
    assert content(tmp_path, upload.id) == b"some"


async def test_bytes_that_the_storage_lost_take_the_offset_back(service: UploadService, tmp_path: Path) -> None:
    upload = await service.create(NewUpload(8))
    await service.append(upload.id, small_append(b"some"))
    (tmp_path / "uploads" / upload.id).write_bytes(b"so")
    with pytest.raises(OffsetMismatch) as mismatch:
        await service.append(upload.id, small_append(b"data", 4))
    assert mismatch.value.offset == 2
    await service.append(upload.id, small_append(b"medata", 2))
    assert content(tmp_path, upload.id) == b"somedata"


async def test_a_failed_write_of_the_fast_path_is_made_good_by_the_slow_one(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(4))
    os_faults.fail("pwritev", f"*/{upload.id}", errno.EIO, times=1)
    upload = await service.append(upload.id, small_append(b"data"))
    assert upload.is_complete
    assert content(tmp_path, upload.id) == b"data"
    assert slow_paths == [upload.id]


@pytest.mark.parametrize("durability", ["complete"])
async def test_bytes_and_their_names_are_synced_before_the_record_is_changed(
    service: UploadService, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(4))
    stalls = [os_faults.stall("fsync,fdatasync", pattern, times=1) for pattern in (f"*/{upload.id}", "*/uploads")]
    append = asyncio.create_task(service.append(upload.id, small_append(b"data")))
    for stall in stalls:
        await asyncio.to_thread(stall.wait)
        record = await service.state.get(upload.id)
        assert record is not None
        assert record.offset == 0
        stall.lift()
    upload = await append
    assert (upload.status, upload.synced) == (Status.COMPLETE, 4)
