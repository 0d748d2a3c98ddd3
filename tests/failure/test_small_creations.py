"""Uploads that are created with a small body: record and bytes in one job, and nothing is lost when that fails."""

from __future__ import annotations

import asyncio
import errno
from hashlib import sha1
from pathlib import Path

import pytest

from tests.faults.stalls import OSFaults
from tests.support.services import Body
from tests.support.small_uploads import completion_records, content, make_fast, small_append
from tests.support.timing import scaled
from tusd_py.backends.disk.storage import THREADS
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.backends.sqlite.writer import SQLiteWriter
from tusd_py.core.errors import LockTimeout, MaxSizeExceeded, StateUnavailable
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.events.types import AppendEnded, AppendStarted, UploadCreated, UploadFinished, UploadProgressed
from tusd_py.uploads.checksum import AnnouncedChecksum, Verification
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

HEAD_LIMIT = 2.0  # seconds, as promised
KINDS = (UploadCreated, AppendStarted, UploadProgressed, AppendEnded, UploadFinished)


@pytest.fixture
def service(service: UploadService) -> UploadService:
    """A service that knows the syncs as fast."""
    make_fast(service)
    return service


@pytest.fixture
def created_apart(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the uploads whose records were added by jobs of their own."""
    ids: list[str] = []
    create = SQLiteState.create

    async def noted(self: SQLiteState, upload: Upload, *, durable: bool = False) -> None:
        ids.append(upload.id)
        await create(self, upload, durable=durable)

    monkeypatch.setattr(SQLiteState, "create", noted)
    return ids


@pytest.fixture
def created(service: UploadService) -> list[Upload]:
    """The records of the uploads as they were created."""
    records: list[Upload] = []
    service.events.observe(UploadCreated, lambda event: records.append(event.upload))
    return records


async def only_record(service: UploadService) -> Upload:
    (record,) = [upload async for upload in service.state.all()]
    return record


async def test_a_small_body_is_stored_by_the_job_that_adds_the_record(
    service: UploadService, tmp_path: Path, created_apart: list[str]
) -> None:
    upload = await service.create_with(NewUpload(4, metadata="filename YQ=="), small_append(b"data"))
    assert (upload.status, upload.offset, upload.metadata) == (Status.COMPLETE, 4, "filename YQ==")
    assert await service.state.get(upload.id) == upload
    assert content(tmp_path, upload.id) == b"data"
    assert completion_records(tmp_path) == [upload.id]
    assert not await service.locker.is_held(upload.id)
    assert created_apart == []


async def test_an_upload_whose_first_bytes_are_a_part_of_it_goes_on(
    service: UploadService, tmp_path: Path, created_apart: list[str]
) -> None:
    upload = await service.create_with(NewUpload(8), small_append(b"some"))
    assert (upload.status, upload.offset) == (Status.ACTIVE, 4)
    assert completion_records(tmp_path) == []
    upload = await service.append(upload.id, small_append(b"data", 4))
    assert upload.is_complete
    assert content(tmp_path, upload.id) == b"somedata"
    assert created_apart == []


async def test_one_job_tells_the_same_as_two(service: UploadService) -> None:
    told: list[object] = []
    for kind in KINDS:
        service.events.observe(kind, told.append)
    for body in (Body(b"data", arrived=True), Body(b"data")):
        await service.create_with(NewUpload(4), AppendRequest(0, body))
    kinds = [type(event) for event in told]
    assert kinds[: len(KINDS)] == kinds[len(KINDS) :] == list(KINDS)
    assert [event.upload.offset for event in told if isinstance(event, UploadCreated)] == [0, 0]


@pytest.mark.parametrize(
    ("new", "verification", "arrived"),
    [
        (NewUpload(None), None, True),
        (NewUpload(4, concatenation=UploadKind.PARTIAL), None, True),
        (NewUpload(4), AnnouncedChecksum("sha1", sha1(b"data").digest()), True),
        (NewUpload(4), None, False),
    ],
    ids=["deferred", "partial", "checksum", "not arrived"],
)
@pytest.mark.parametrize("durability", ["complete"])
async def test_special_cases_take_the_slow_path(
    service: UploadService,
    created_apart: list[str],
    new: NewUpload,
    verification: Verification | None,
    arrived: bool,
) -> None:
    upload = await service.create_with(new, AppendRequest(0, Body(b"data", arrived=arrived), verification=verification))
    assert upload.offset == 4
    assert created_apart == [upload.id]


async def test_a_subscriber_of_creations_finds_an_upload_without_bytes(
    service: UploadService, created_apart: list[str]
) -> None:
    found: list[Upload] = []

    async def look(event: UploadCreated) -> None:
        found.append(await service.get(event.upload.id))

    service.events.subscribe(UploadCreated, look)
    upload = await service.create_with(NewUpload(4), small_append(b"data"))
    assert upload.is_complete
    assert [record.offset for record in found] == [0]
    assert created_apart == [upload.id]


async def test_an_upload_that_is_too_long_is_not_created(service: UploadService) -> None:
    with pytest.raises(MaxSizeExceeded):
        await service.create_with(NewUpload(2 << 20), small_append(b"data"))
    assert [upload async for upload in service.state.all()] == []


async def test_a_crash_before_the_first_byte_leaves_a_record_and_no_file(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, created: list[Upload]
) -> None:
    stall = os_faults.stall("open", f"*/uploads/{'[0-9a-f]' * 32}", times=1)
    creation = asyncio.create_task(service.create_with(NewUpload(4), small_append(b"data")))
    await asyncio.to_thread(stall.wait)
    record = await only_record(service)
    assert (record.status, record.offset) == (Status.ACTIVE, 0)
    assert not (tmp_path / "uploads" / record.id).exists()
    assert await service.locker.is_held(record.id)
    assert created == []
    stall.lift()
    assert (await creation).id == record.id
    assert created == [record]


@pytest.mark.parametrize("durability", ["complete"])
async def test_bytes_and_their_name_are_synced_before_the_record_tells_of_them(
    service: UploadService, os_faults: OSFaults
) -> None:
    patterns = (f"*/uploads/{'[0-9a-f]' * 32}", "*/uploads")
    stalls = [os_faults.stall("fsync,fdatasync", pattern, times=1) for pattern in patterns]
    creation = asyncio.create_task(service.create_with(NewUpload(4), small_append(b"data")))
    for stall in stalls:
        await asyncio.to_thread(stall.wait)
        assert (await only_record(service)).offset == 0
        stall.lift()
    upload = await creation
    assert (upload.status, upload.synced) == (Status.COMPLETE, 4)


async def test_a_failed_write_is_made_good_by_the_slow_path(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, created: list[Upload]
) -> None:
    os_faults.fail("pwritev", "*/uploads/*", errno.EIO, times=1)
    upload = await service.create_with(NewUpload(4), small_append(b"data"))
    assert upload.is_complete
    assert [record.id for record in created] == [upload.id]
    assert content(tmp_path, upload.id) == b"data"


async def test_an_upload_exists_although_the_storage_refuses_its_small_append(
    service: UploadService, os_faults: OSFaults, created: list[Upload]
) -> None:
    fault = os_faults.fail("pwritev", "*/uploads/*", errno.ENOSPC)
    upload = await service.create_with(NewUpload(4), small_append(b"data"))
    assert (upload.status, upload.offset) == (Status.ACTIVE, 0)
    assert [record.id for record in created] == [upload.id]
    assert not await service.locker.is_held(upload.id)
    fault.lift()
    assert (await service.append(upload.id, small_append(b"data"))).is_complete


@pytest.mark.parametrize("durability", ["complete"])
async def test_a_failed_sync_is_final_and_leaves_an_upload_without_bytes(
    service: UploadService, tmp_path: Path, os_faults: OSFaults, created: list[Upload]
) -> None:
    os_faults.fail("fsync,fdatasync", f"*/uploads/{'[0-9a-f]' * 32}", errno.EIO, times=1)
    upload = await service.create_with(NewUpload(4), small_append(b"data"))
    assert (upload.status, upload.offset) == (Status.ACTIVE, 0)
    assert await service.state.get(upload.id) == upload
    assert [record.id for record in created] == [upload.id]
    assert not (tmp_path / "uploads" / upload.id).exists()
    assert (await service.append(upload.id, small_append(b"data"))).is_complete


async def test_a_record_that_cannot_be_added_leaves_nothing(
    service: UploadService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, created: list[Upload]
) -> None:
    def fail(*arguments: object) -> None:
        raise StateUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteWriter, "_transact", fail)
        with pytest.raises(StateUnavailable):
            await service.create_with(NewUpload(4), small_append(b"data"))
    assert [upload async for upload in service.state.all()] == []
    assert [path for path in (tmp_path / "uploads").iterdir() if not path.name.startswith(".")] == []
    assert created == []
    assert await service.storage.close(scaled(30)), "a step that was never taken must not be waited for"


async def test_without_a_lock_the_slow_path_is_taken(
    service: UploadService, monkeypatch: pytest.MonkeyPatch, created_apart: list[str]
) -> None:
    acquire = LocalLocker.acquire

    async def refuse_once(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(LocalLocker, "acquire", acquire)
        raise LockTimeout

    monkeypatch.setattr(LocalLocker, "acquire", refuse_once)
    upload = await service.create_with(NewUpload(4), small_append(b"data"))
    assert upload.is_complete
    assert created_apart == [upload.id]


async def test_the_lock_outlasts_a_request_that_is_cancelled_while_its_bytes_are_written(
    service: UploadService, tmp_path: Path, os_faults: OSFaults
) -> None:
    stall = os_faults.stall("pwritev", "*/uploads/*", times=1)
    creation = asyncio.create_task(service.create_with(NewUpload(4), small_append(b"data")))
    await asyncio.to_thread(stall.wait)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    upload = await only_record(service)
    assert await service.locker.is_held(upload.id)
    stall.lift()
    await service.drain()
    assert not await service.locker.is_held(upload.id)
    assert (await only_record(service)).is_complete
    assert content(tmp_path, upload.id) == b"data"


async def test_a_stalled_creation_holds_no_other_upload(
    service: UploadService, os_faults: OSFaults, tmp_path: Path
) -> None:
    stall = os_faults.stall("pwritev", "*/uploads/*", times=1)
    hanging = asyncio.create_task(service.create_with(NewUpload(4), small_append(b"data")))
    await asyncio.to_thread(stall.wait)
    async with asyncio.timeout(scaled(HEAD_LIMIT)):
        others = await asyncio.gather(
            *(service.create_with(NewUpload(4), small_append(b"data")) for _ in range(THREADS + 2))
        )
    assert all(upload.is_complete for upload in others)
    stall.lift()
    assert content(tmp_path, (await hanging).id) == b"data"


async def test_creations_that_come_together_are_all_complete(
    service: UploadService, tmp_path: Path, os_faults: OSFaults
) -> None:
    data = [f"{number:08}".encode() for number in range(30)]
    os_faults.fail("pwritev", "*/uploads/*", errno.EIO, times=5)
    uploads = await asyncio.gather(*(service.create_with(NewUpload(8), small_append(piece)) for piece in data))
    assert all(upload.is_complete for upload in uploads)
    assert [content(tmp_path, upload.id) for upload in uploads] == data
    assert sorted(completion_records(tmp_path)) == sorted(upload.id for upload in uploads)
