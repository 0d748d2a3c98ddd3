"""Small bodies where the records are in Redis: stored in one job, and nothing is lost when a step fails."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stalls import OSFaults
from tests.support.services import Body, running_service
from tests.support.small_uploads import completion_records, content, make_fast, records_in_redis, small_append
from tests.support.timing import scaled
from tusd_py.backends.disk.storage import THREADS
from tusd_py.backends.redis.scripts import RELEASE, UPDATE, Script
from tusd_py.core.errors import LockLost, LockTimeout, OffsetMismatch, StateUnavailable, StorageFull
from tusd_py.core.upload import Status
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

HEAD_LIMIT = 2.0  # seconds, as promised


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Any]:
    return records_in_redis(tmp_path)


def fail_calls(monkeypatch: pytest.MonkeyPatch, service: UploadService, script: Script, *, done: bool) -> list[str]:
    """Have the calls of a script fail, after they are `done` or before; return the names of those that did."""
    connection = service.state._redis  # type: ignore[attr-defined]
    run = connection.run
    failed: list[str] = []

    async def fail(called: Script, *arguments: Any) -> Any:
        if called is not script:
            return await run(called, *arguments)
        failed.append(called.name)
        if done:
            await run(called, *arguments)
        raise StateUnavailable

    monkeypatch.setattr(connection, "run", fail)
    return failed


async def test_small_bodies_one_after_the_other_complete_an_upload_on_the_fast_path(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(8))
    upload = await service.append(upload.id, small_append(b"some"))
    assert (upload.status, upload.offset) == (Status.ACTIVE, 4)
    assert completion_records(tmp_path) == []
    upload = await service.append(upload.id, small_append(b"data", 4))
    assert (upload.status, upload.offset) == (Status.COMPLETE, 8)
    assert await service.state.get(upload.id) == upload
    assert content(tmp_path, upload.id) == b"somedata"
    assert completion_records(tmp_path) == [upload.id]
    assert not await service.locker.is_held(upload.id)
    assert slow_paths == []


async def test_bytes_that_were_never_committed_are_not_overwritten(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    """Another host may have the file open: the bytes go to a file of their own, and are joined at the completion."""
    upload = await service.create(NewUpload(8))
    await service.append(upload.id, small_append(b"some"))
    with (tmp_path / "uploads" / upload.id).open("ab") as file:
        file.write(b"garbage")
    upload = await service.append(upload.id, small_append(b"data", 4))
    assert upload.is_complete
    assert upload.storage_state == ""
    assert content(tmp_path, upload.id) == b"somedata"
    assert completion_records(tmp_path) == [upload.id]
    assert slow_paths == []


async def test_an_upload_in_several_files_is_appended_to_on_the_slow_path(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(12))
    await service.append(upload.id, small_append(b"some"))
    with (tmp_path / "uploads" / upload.id).open("ab") as file:
        file.write(b"garbage")
    upload = await service.append(upload.id, small_append(b"more", 4))
    assert (upload.offset, upload.storage_state != "") == (8, True)
    upload = await service.append(upload.id, small_append(b"data", 8))
    assert upload.is_complete
    assert content(tmp_path, upload.id) == b"somemoredata"
    assert slow_paths == [upload.id]


async def test_a_full_disk_is_told_of_and_the_upload_goes_on_later(
    service: UploadService, tmp_path: Path, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(4))
    fault = os_faults.fail("pwritev", f"*/{upload.id}*", errno.ENOSPC)
    with pytest.raises(StorageFull):
        await service.append(upload.id, small_append(b"data"))
    fault.lift()
    await service.append(upload.id, small_append(b"data"))
    assert content(tmp_path, upload.id) == b"data"


@pytest.mark.parametrize("durability", ["complete"])
@pytest.mark.parametrize("fast", [False, True])
async def test_a_failed_sync_is_final_and_takes_the_offset_back(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, slow_paths: list[str], fast: bool
) -> None:
    if fast:
        make_fast(service)
    upload = await service.create(NewUpload(8))
    await service.append(upload.id, small_append(b"some"))
    os_faults.fail("fsync,fdatasync", f"*/{upload.id}", errno.EIO, times=1)
    with pytest.raises(OffsetMismatch) as mismatch:
        await service.append(upload.id, small_append(b"data", 4))
    assert mismatch.value.offset == 0
    record = await service.state.get(upload.id)
    assert record is not None
    assert (record.status, record.offset) == (Status.ACTIVE, 0)
    assert not await service.locker.is_held(upload.id)
    assert slow_paths == []
    await service.append(upload.id, small_append(b"somedata"))  # the slow path: bytes that were lost may come back
    assert content(tmp_path, upload.id) == b"somedata"


@pytest.mark.parametrize("durability", ["complete"])
async def test_an_upload_of_deferred_length_is_synced_with_each_small_body_once_its_length_is_declared(
    service: UploadService, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(None))
    await service.append(upload.id, AppendRequest(0, Body(b"some", arrived=True), length=12))
    sync = os_faults.fail("fsync,fdatasync", f"*/{upload.id}*", errno.EIO)
    with pytest.raises(OffsetMismatch) as mismatch:
        await service.append(upload.id, small_append(b"more", 4))
    assert mismatch.value.offset == 4
    sync.lift()
    upload = await service.append(upload.id, small_append(b"more", 4))
    assert (upload.offset, upload.synced) == (8, 8)


async def test_a_change_whose_outcome_is_not_known_is_no_success_and_loses_nothing(
    service: UploadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await service.create(NewUpload(8))
    for done in (False, True):
        with monkeypatch.context() as patched:
            failed = fail_calls(patched, service, UPDATE, done=done)
            with pytest.raises(StateUnavailable):
                await service.append(upload.id, small_append(b"some"))
            assert failed
        assert not await service.locker.is_held(upload.id)
        assert (await service.inspect(upload.id)).offset == (4 if done else 0)
    upload = await service.append(upload.id, small_append(b"data", 4))
    assert upload.is_complete
    assert content(tmp_path, upload.id) == b"somedata"


async def test_the_change_of_a_holder_that_another_one_has_replaced_is_refused(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, settings: dict[str, Any]
) -> None:
    upload = await service.create(NewUpload(4))
    stall = os_faults.stall("pwritev", f"*/{upload.id}", times=1)
    append = asyncio.create_task(service.append(upload.id, small_append(b"lost")))
    await asyncio.to_thread(stall.wait)
    connection = service.state._redis  # type: ignore[attr-defined]
    await connection.command("DEL", service.locker._keys.lock(upload.id))  # type: ignore[attr-defined]
    async with running_service(settings) as other:
        taken = await other.append(upload.id, small_append(b"data"))
        assert taken.is_complete
        stall.lift()
        with pytest.raises(LockLost):
            await append
        read = other.downloads.read(taken, 0, 4)
        assert b"".join([bytes(piece) async for piece in read]) == b"data"


async def test_the_append_of_a_holder_after_one_that_vanished_takes_the_slow_path(
    service: UploadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(8))
    with monkeypatch.context() as patched:
        fail_calls(patched, service, RELEASE, done=False)
        await service.append(upload.id, small_append(b"some"))
    connection = service.state._redis  # type: ignore[attr-defined]
    await connection.command("DEL", service.locker._keys.lock(upload.id))  # type: ignore[attr-defined]
    assert slow_paths == []
    upload = await service.append(upload.id, small_append(b"data", 4))
    assert upload.is_complete
    assert content(tmp_path, upload.id) == b"somedata"
    assert slow_paths == [upload.id]


async def test_the_lock_outlasts_a_request_that_is_cancelled_while_its_bytes_are_written(
    service: UploadService, tmp_path: Path, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(4))
    stall = os_faults.stall("pwritev", f"*/{upload.id}", times=1)
    append = asyncio.create_task(service.append(upload.id, small_append(b"data")))
    await asyncio.to_thread(stall.wait)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    assert await service.locker.is_held(upload.id)
    with pytest.raises(LockTimeout):
        await service.append(upload.id, small_append(b"else"))
    stall.lift()
    await service.drain()
    assert not await service.locker.is_held(upload.id)
    record = await service.state.get(upload.id)
    assert record is not None
    assert record.is_complete
    assert content(tmp_path, upload.id) == b"data"


@pytest.mark.parametrize("call", ["open", "pwritev"])
async def test_a_stalled_step_holds_no_other_upload(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, call: str
) -> None:
    hanging, *others = [await service.create(NewUpload(4)) for _ in range(THREADS + 2)]
    stall = os_faults.stall(call, f"*/{hanging.id}", times=1)
    first = asyncio.create_task(service.append(hanging.id, small_append(b"data")))
    together = [asyncio.create_task(service.append(upload.id, small_append(b"data"))) for upload in others]
    await asyncio.to_thread(stall.wait)
    async with asyncio.timeout(scaled(HEAD_LIMIT)):
        assert all(upload.is_complete for upload in await asyncio.gather(*together))
    assert await service.locker.is_held(hanging.id)
    stall.lift()
    assert (await first).is_complete
    assert content(tmp_path, hanging.id) == b"data"


async def test_a_storage_does_not_close_while_bytes_are_written(service: UploadService, os_faults: OSFaults) -> None:
    upload = await service.create(NewUpload(4))
    stall = os_faults.stall("pwritev", f"*/{upload.id}", times=1)
    append = asyncio.create_task(service.append(upload.id, small_append(b"data")))
    await asyncio.to_thread(stall.wait)
    assert not await service.storage.close(0.05)
    stall.lift()
    assert await service.storage.close(scaled(30))
    await append  # the rest of it finds new threads


async def test_uploads_that_come_together_are_all_complete(service: UploadService, tmp_path: Path) -> None:
    uploads = [await service.create(NewUpload(8)) for _ in range(30)]
    data = [f"{number:08}".encode() for number in range(30)]
    appends = (service.append(upload.id, small_append(piece)) for upload, piece in zip(uploads, data, strict=True))
    await asyncio.gather(*appends)
    assert [content(tmp_path, upload.id) for upload in uploads] == data
    assert sorted(completion_records(tmp_path)) == sorted(upload.id for upload in uploads)
