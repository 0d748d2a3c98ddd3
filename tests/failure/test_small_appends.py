"""Small bodies that have arrived as a whole: stored in one job, and nothing is lost when that fails."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.stalls import OSFaults
from tests.support.services import Body
from tests.support.small_uploads import completion_records, content, make_fast, small_append
from tests.support.timing import scaled
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import THREADS
from tusd_py.backends.disk.writer import DiskWriter
from tusd_py.backends.sqlite.writer import SQLiteWriter
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import LockTimeout, OffsetMismatch, StorageFull
from tusd_py.core.upload import Status
from tusd_py.uploads.components import Components
from tusd_py.uploads.pace import FAST_SYNC, SAMPLES, STALLED
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.small_append import MAX_SMALL_BODY
from tusd_py.uploads.validation import AppendRequest, NewUpload

HEAD_LIMIT = 2.0  # seconds, as promised


async def test_a_small_body_completes_an_upload_on_the_fast_path(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(4))
    upload = await service.append(upload.id, small_append(b"data"))
    assert (upload.status, upload.offset) == (Status.COMPLETE, 4)
    assert await service.state.get(upload.id) == upload
    assert content(tmp_path, upload.id) == b"data"
    assert completion_records(tmp_path) == [upload.id]
    assert not await service.locker.is_held(upload.id)
    assert slow_paths == []


async def test_a_storage_that_hosts_share_is_written_to_on_the_slow_path(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    shared = SharedDiskStorage(tmp_path / "shared")
    await shared.open()
    components = Components.of(
        service.state, service.locker, shared, service.events, service.budget, service.options, service.clock
    )
    other = UploadService(components)
    upload = await other.create(NewUpload(4))
    upload = await other.append(upload.id, small_append(b"data"))
    assert upload.is_complete
    assert slow_paths == [upload.id]
    await shared.close()


async def test_small_bodies_one_after_the_other_complete_an_upload(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(8))
    upload = await service.append(upload.id, small_append(b"some"))
    assert (upload.status, upload.offset) == (Status.ACTIVE, 4)
    assert completion_records(tmp_path) == []
    upload = await service.append(upload.id, small_append(b"data", 4))
    assert (upload.status, upload.offset) == (Status.COMPLETE, 8)
    assert content(tmp_path, upload.id) == b"somedata"
    assert slow_paths == []


async def test_bytes_that_were_never_committed_are_cut_off(
    service: UploadService, tmp_path: Path, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(8))
    await service.append(upload.id, small_append(b"some"))
    with (tmp_path / "uploads" / upload.id).open("ab") as file:
        file.write(b"garbage")
    await service.append(upload.id, small_append(b"data", 4))
    assert content(tmp_path, upload.id) == b"somedata"
    assert slow_paths == []


@pytest.mark.parametrize("durability", ["complete"])
async def test_a_failed_sync_is_final_and_takes_the_offset_back(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(8))
    await service.append(upload.id, small_append(b"some"))
    os_faults.fail("fsync,fdatasync", f"*/{upload.id}", errno.EIO, times=1)
    with pytest.raises(OffsetMismatch) as mismatch:
        await service.append(upload.id, small_append(b"data", 4))
    assert mismatch.value.offset == 0
    record = await service.state.get(upload.id)
    assert record is not None
    assert (record.status, record.offset) == (Status.ACTIVE, 0)
    assert not (tmp_path / "uploads" / upload.id).exists()
    assert not await service.locker.is_held(upload.id)
    await service.append(upload.id, small_append(b"somedata"))
    assert content(tmp_path, upload.id) == b"somedata"
    assert slow_paths == []


@pytest.mark.parametrize("durability", ["complete"])
async def test_an_upload_of_deferred_length_is_synced_with_each_small_body_once_its_length_is_declared(
    service: UploadService, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(None))
    await service.append(upload.id, AppendRequest(0, Body(b"some", arrived=True), length=12))
    sync = os_faults.fail("fsync,fdatasync", f"*/{upload.id}", errno.EIO)
    with pytest.raises(OffsetMismatch) as mismatch:
        await service.append(upload.id, small_append(b"more", 4))
    assert mismatch.value.offset == 4
    sync.lift()
    upload = await service.append(upload.id, small_append(b"more", 4))
    assert (upload.offset, upload.synced) == (8, 8)


async def test_a_full_disk_is_told_of_and_the_upload_goes_on_later(
    service: UploadService, tmp_path: Path, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(4))
    fault = os_faults.fail("pwritev", f"*/{upload.id}", errno.ENOSPC)
    with pytest.raises(StorageFull):
        await service.append(upload.id, small_append(b"data"))
    record = await service.state.get(upload.id)
    assert record is not None
    assert (record.status, record.offset) == (Status.ACTIVE, 0)
    fault.lift()
    await service.append(upload.id, small_append(b"data"))
    assert content(tmp_path, upload.id) == b"data"


async def test_a_failed_change_of_the_record_is_made_good_by_the_slow_path(
    service: UploadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_paths: list[str]
) -> None:
    upload = await service.create(NewUpload(4))
    transact = SQLiteWriter._transact

    def fail_once(*arguments: object) -> None:
        monkeypatch.setattr(SQLiteWriter, "_transact", transact)
        raise StorageFull

    monkeypatch.setattr(SQLiteWriter, "_transact", fail_once)
    upload = await service.append(upload.id, small_append(b"data"))
    assert upload.is_complete
    assert content(tmp_path, upload.id) == b"data"
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
    assert content(tmp_path, upload.id) == b"data"
    record = await service.state.get(upload.id)
    assert record is not None
    assert record.is_complete


async def test_a_storage_does_not_close_while_another_thread_writes_its_bytes(
    service: UploadService, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(4))
    stall = os_faults.stall("pwritev", f"*/{upload.id}", times=1)
    append = asyncio.create_task(service.append(upload.id, small_append(b"data")))
    await asyncio.to_thread(stall.wait)
    assert not await service.storage.close(0.05)
    stall.lift()
    assert await service.storage.close(scaled(30))
    await append


async def test_uploads_that_come_together_are_all_complete(
    service: UploadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing: set[str] = set()
    finish = DiskWriter.finish_in_thread

    def fail_for_some(self: DiskWriter, buffers: list[bytes], *, sync: bool) -> None:
        if self._path.name in failing:
            raise StorageFull
        finish(self, buffers, sync=sync)

    monkeypatch.setattr(DiskWriter, "finish_in_thread", fail_for_some)
    uploads = [await service.create(NewUpload(8)) for _ in range(30)]
    failing.update(upload.id for upload in uploads[::3])
    data = [f"{number:08}".encode() for number in range(30)]
    appends = (service.append(upload.id, small_append(piece)) for upload, piece in zip(uploads, data, strict=True))
    await asyncio.gather(*appends)
    assert [content(tmp_path, upload.id) for upload in uploads] == data
    assert sorted(completion_records(tmp_path)) == sorted(upload.id for upload in uploads)


@pytest.mark.parametrize("size", [4, MAX_SMALL_BODY + 1])
async def test_while_the_records_hang_a_thread_of_the_storage_is_left_for_readers(
    service: UploadService, size: int
) -> None:
    read = await service.append((await service.create(NewUpload(8))).id, small_append(b"some"))
    uploads = [await service.create(NewUpload(size)) for _ in range(THREADS + 1)]
    turn = service.state._writer._connection_lock  # type: ignore[attr-defined]
    turn.acquire()
    try:
        appends = [asyncio.create_task(service.append(upload.id, small_append(bytes(size)))) for upload in uploads]
        await asyncio.sleep(0.2)  # nothing but the time says that all have come as far as they get
        assert (await service.inspect(read.id)).offset == 4
    finally:
        turn.release()
    assert all(upload.is_complete for upload in await asyncio.gather(*appends))


@pytest.mark.parametrize("durability", ["complete"])
@pytest.mark.parametrize("call", ["open", "pwritev", "fsync,fdatasync"])
async def test_a_stalled_step_of_a_fast_disk_holds_no_other_upload(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, call: str
) -> None:
    make_fast(service)
    hanging, *others = [await service.create(NewUpload(4)) for _ in range(THREADS + 2)]
    stall = os_faults.stall(call, f"*/{hanging.id}", times=1)
    first = asyncio.create_task(service.append(hanging.id, small_append(b"data")))
    together = [asyncio.create_task(service.append(upload.id, small_append(b"data"))) for upload in others]
    await asyncio.to_thread(stall.wait)
    async with asyncio.timeout(scaled(HEAD_LIMIT)):
        assert all(upload.is_complete for upload in await asyncio.gather(*together))
    async with asyncio.timeout(scaled(HEAD_LIMIT)):
        assert (await service.inspect(hanging.id)).offset == 0
        await service.append((await service.create(NewUpload(4))).id, small_append(b"data"))
    assert await service.locker.is_held(hanging.id)
    stall.lift()
    assert (await first).is_complete
    assert content(tmp_path, hanging.id) == b"data"


async def assert_slow_steps_leave_the_thread_of_the_records(
    service: UploadService, monkeypatch: pytest.MonkeyPatch, duration: float
) -> None:
    """Append to many uploads at once, in steps of `duration` seconds: only the first ones may hold up the records."""
    threads: list[str] = []
    finish = DiskWriter.finish_in_thread

    def slow(self: DiskWriter, buffers: Sequence[Buffer], *, sync: bool) -> None:
        threads.append(threading.current_thread().name)
        time.sleep(duration)
        finish(self, buffers, sync=sync)

    monkeypatch.setattr(DiskWriter, "finish_in_thread", slow)
    uploads = [await service.create(NewUpload(4)) for _ in range(30)]
    appended = await asyncio.gather(*(service.append(upload.id, small_append(b"data")) for upload in uploads))
    assert all(upload.is_complete for upload in appended)
    assert len(threads) == len(uploads)
    assert threads.count("tusd-py-state") <= SAMPLES


@pytest.mark.parametrize("durability", ["complete"])
async def test_syncs_that_become_slow_while_many_uploads_wait_leave_the_thread_of_the_records(
    service: UploadService, os_faults: OSFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fast(service)
    await assert_slow_steps_leave_the_thread_of_the_records(service, monkeypatch, 2 * FAST_SYNC)


@pytest.mark.parametrize("durability", ["never"])
async def test_slow_writes_without_syncs_leave_the_thread_of_the_records_before_they_count_as_stalled(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await assert_slow_steps_leave_the_thread_of_the_records(service, monkeypatch, STALLED / 2)


@pytest.mark.parametrize("durability", ["complete"])
@pytest.mark.parametrize("what", ["bytes", "completion records"])
async def test_a_disk_that_stalls_for_many_uploads_holds_no_creation_and_no_reader(
    service: UploadService, os_faults: OSFaults, what: str
) -> None:
    make_fast(service)
    other = await service.append((await service.create(NewUpload(8))).id, small_append(b"some"))
    uploads = [await service.create(NewUpload(4)) for _ in range(3 * THREADS)]
    call, pattern = ("fsync,fdatasync", "*/uploads/*") if what == "bytes" else ("open", "*.json*")
    stall = os_faults.stall(call, pattern)
    appends = [asyncio.create_task(service.append(upload.id, small_append(b"data"))) for upload in uploads]
    await asyncio.to_thread(stall.wait)
    async with asyncio.timeout(scaled(HEAD_LIMIT)):
        await service.create(NewUpload(4))
    async with asyncio.timeout(scaled(HEAD_LIMIT)):
        assert (await service.inspect(other.id)).offset == 4
    stall.lift()
    assert all(upload.is_complete for upload in await asyncio.gather(*appends))


@pytest.mark.parametrize("durability", ["complete"])
async def test_a_failed_sync_of_a_fast_disk_is_final_for_its_upload_alone(
    service: UploadService, os_faults: OSFaults, slow_paths: list[str]
) -> None:
    make_fast(service)
    failing, other = [await service.create(NewUpload(4)) for _ in range(2)]
    os_faults.fail("fsync,fdatasync", f"*/{failing.id}", errno.EIO, times=1)
    outcomes = await asyncio.gather(
        *(service.append(upload.id, small_append(b"data")) for upload in (failing, other)), return_exceptions=True
    )
    assert isinstance(outcomes[0], OffsetMismatch)
    assert outcomes[0].offset == 0
    assert not isinstance(outcomes[1], BaseException)
    assert outcomes[1].is_complete
    assert slow_paths == []
    assert (await service.append(failing.id, small_append(b"data"))).is_complete
