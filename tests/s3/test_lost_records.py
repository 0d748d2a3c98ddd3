"""Uploads in S3 whose state store has lost its last changes, as Redis does in a failover: the bytes are all there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.s3_server import s3_config, s3_server
from tests.support.services import Body, running_service
from tusd_py.backends.memory.locker import MemoryLocker
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.s3.config import MIN_PART
from tusd_py.backends.s3.finished import is_finished
from tusd_py.backends.s3.layout import Layout, dump, parse
from tusd_py.backends.s3.object_keys import OWNER, PUT_ID, owner
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.composition import GivenComponents
from tusd_py.core.errors import OffsetMismatch, PartialUnfinished, UploadNotFound
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.testing.storage_helpers import content
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

PART = MIN_PART
LARGE = bytes(range(251)) * (2 * PART // 251)
SMALL = b"0123456789"
SIZES = pytest.mark.parametrize("data", [LARGE, SMALL], ids=["multipart", "one object"])
KINDS = pytest.mark.parametrize("kind", [UploadKind.NONE, UploadKind.PARTIAL])

TakeBack: TypeAlias = Callable[[], Callable[[], None]]


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords()


@pytest.fixture
def moment(records: MemoryRecords) -> TakeBack:
    """A function that notes the records; the function that it returns takes them back to that moment."""

    def note() -> Callable[[], None]:
        uploads, parts = dict(records.uploads), {id: dict(parts) for id, parts in records.parts.items()}

        def take_back() -> None:
            records.uploads.clear()
            records.uploads.update(uploads)
            records.parts.clear()
            records.parts.update(parts)

        return take_back

    return note


@pytest.fixture
def options() -> dict[str, Any]:
    return {}


@pytest.fixture
async def service(tmp_path: Path, records: MemoryRecords, options: dict[str, Any]) -> AsyncIterator[UploadService]:
    given = GivenComponents(S3Storage(s3_config(s3_server(), tmp_path)), MemoryState(records), MemoryLocker())
    settings = {"upload_dir": tmp_path / "uploads", "sweep_interval": 0, "expires_after": 0, **options}
    async with running_service(settings, given=given) as service:
        yield service


async def create(service: UploadService, data: bytes, kind: UploadKind = UploadKind.NONE) -> Upload:
    header = "partial" if kind is UploadKind.PARTIAL else None
    return await service.create(NewUpload(len(data), None, kind, header))


async def append(service: UploadService, upload: Upload, data: bytes) -> Upload:
    return await service.append(upload.id, AppendRequest(upload.offset, Body(data)))


async def started(service: UploadService, data: bytes, kind: UploadKind = UploadKind.NONE) -> Upload:
    """Return an upload that has two thirds of its bytes."""
    upload = await create(service, data, kind)
    return await append(service, upload, data[: len(data) * 2 // 3])


async def finish_and_forget(
    service: UploadService, moment: TakeBack, data: bytes, kind: UploadKind = UploadKind.NONE
) -> Upload:
    """Finish an upload, and take its record back to two thirds of it; return that record."""
    upload = await started(service, data, kind)
    take_back = moment()
    complete = await append(service, upload, data[upload.offset :])
    assert complete.is_complete
    take_back()
    return upload


async def assert_complete(service: UploadService, upload_id: str, data: bytes) -> None:
    upload = await service.get(upload_id)
    assert (upload.status, upload.offset, upload.length) == (Status.COMPLETE, len(data), len(data))
    assert await content(service.storage, upload) == data


async def ask(service: UploadService, upload: Upload) -> None:
    await service.inspect(upload.id)


async def continue_at_the_record(service: UploadService, upload: Upload) -> None:
    with pytest.raises(OffsetMismatch):
        await append(service, upload, bytes(upload.length - upload.offset if upload.length else 0))


async def continue_at_the_end(service: UploadService, upload: Upload) -> None:
    with pytest.raises(OffsetMismatch):
        await service.append(upload.id, AppendRequest(upload.length or 0, Body(b"")))


async def download(service: UploadService, upload: Upload) -> None:
    await service.get_completed(upload.id)


@SIZES
@KINDS
@pytest.mark.parametrize("look", [ask, continue_at_the_record, continue_at_the_end, download])
async def test_a_finished_upload_with_an_older_record_is_finished_again(
    service: UploadService,
    moment: TakeBack,
    data: bytes,
    kind: UploadKind,
    look: Callable[[UploadService, Upload], Awaitable[None]],
) -> None:
    upload = await finish_and_forget(service, moment, data, kind)
    await look(service, upload)
    await assert_complete(service, upload.id, data)


@SIZES
async def test_a_recording_with_an_older_record_gets_the_length_of_its_object(
    service: UploadService, moment: TakeBack, data: bytes
) -> None:
    upload = await service.create(NewUpload(None))
    upload = await append(service, upload, data[: len(data) * 2 // 3])
    take_back = moment()
    rest = data[upload.offset :]
    await service.append(upload.id, AppendRequest(upload.offset, Body(rest), length=len(data)))
    take_back()
    assert (await service.inspect(upload.id)).is_complete
    await assert_complete(service, upload.id, data)


@SIZES
async def test_a_final_upload_finds_a_finished_part_with_an_older_record(
    service: UploadService, moment: TakeBack, data: bytes
) -> None:
    part = await finish_and_forget(service, moment, data, UploadKind.PARTIAL)
    final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,)))
    await assert_complete(service, final.id, data)


@SIZES
async def test_a_final_upload_finds_a_finished_part_whose_record_knows_no_byte(
    service: UploadService, moment: TakeBack, data: bytes
) -> None:
    part = await create(service, data, UploadKind.PARTIAL)
    take_back = moment()
    await append(service, part, data)
    take_back()
    final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,)))
    await assert_complete(service, final.id, data)


@SIZES
@pytest.mark.parametrize("options", [{"concatenation_unfinished": True}])
async def test_a_waiting_final_upload_is_made_once_a_part_with_an_older_record_is_found(
    service: UploadService, moment: TakeBack, data: bytes
) -> None:
    part = await started(service, data, UploadKind.PARTIAL)
    final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,)))
    take_back = moment()
    await append(service, part, data[part.offset :])
    take_back()
    assert (await service.inspect(final.id)).is_complete
    await assert_complete(service, final.id, data)


async def test_an_unfinished_part_is_still_refused(service: UploadService) -> None:
    part = await started(service, LARGE, UploadKind.PARTIAL)
    with pytest.raises(PartialUnfinished):
        await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,)))


@SIZES
async def test_a_finished_final_upload_with_an_older_record_outlives_its_part(
    service: UploadService, moment: TakeBack, records: MemoryRecords, data: bytes
) -> None:
    part = await append(service, await create(service, data, UploadKind.PARTIAL), data)
    final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,)))
    records.uploads[final.id] = replace(
        final, offset=0, status=Status.FINISHING, completed_at=None, storage_state="", expires_at=0.0
    )
    await service.terminate(part.id)
    await Sweeper(service).sweep()
    assert (await service.inspect(final.id)).is_complete
    await assert_complete(service, final.id, data)


async def test_an_expired_record_of_a_finished_upload_is_finished_by_the_sweep(
    service: UploadService, moment: TakeBack, records: MemoryRecords
) -> None:
    upload = await finish_and_forget(service, moment, LARGE, UploadKind.PARTIAL)
    records.uploads[upload.id] = replace(records.uploads[upload.id], expires_at=1.0)
    await Sweeper(service).sweep()
    upload = await service.get(upload.id)
    assert (upload.status, upload.offset) == (Status.COMPLETE, len(LARGE))


async def test_an_upload_whose_multipart_upload_was_aborted_is_gone(service: UploadService) -> None:
    upload = await started(service, LARGE)
    storage = service.storage
    assert isinstance(storage, S3Storage)
    await storage.delete(upload)
    with pytest.raises(UploadNotFound):
        await service.inspect(upload.id)


async def test_an_object_that_another_upload_has_put_under_the_key_is_not_taken(
    service: UploadService, moment: TakeBack, records: MemoryRecords
) -> None:
    """As keys without `{id}` allow."""
    lost = await started(service, LARGE)
    other = await finish_and_forget(service, moment, LARGE)
    assert isinstance(service.storage, S3Storage)
    await service.storage.delete(lost)
    layout = replace(parse(lost.storage_state), key=parse(other.storage_state).key)
    records.uploads[lost.id] = replace(records.uploads[lost.id], storage_state=dump(layout))
    with pytest.raises(UploadNotFound):
        await service.inspect(lost.id)


async def test_the_same_bytes_are_taken_after_the_tokens_went_back(
    service: UploadService, moment: TakeBack, records: MemoryRecords
) -> None:
    """As with the clock of Redis: the object is that of a later token, and says nothing against its bytes."""
    upload = await started(service, SMALL)
    storage = service.storage
    made = storage.writer(upload, upload.token + 1_000_000)
    await made.finish([SMALL[upload.offset :]], sync=True)
    await made.close()
    complete = await append(service, upload, SMALL[upload.offset :])
    assert complete.is_complete
    await assert_complete(service, upload.id, SMALL)


RECORD = Upload(id="a" * 32, created_at=0.0, length=10, offset=4, token=7)
NAMES_MULTIPART = Layout(multipart="some id", put_id="mpu-1")


@pytest.mark.parametrize(
    ("record", "layout", "size", "put_id", "expected"),
    [
        (RECORD, NAMES_MULTIPART, 10, "mpu-1", True),
        (RECORD, NAMES_MULTIPART, 10, "mpu-2", False),  # of another multipart upload
        (RECORD, NAMES_MULTIPART, 9, "mpu-1", False),
        (replace(RECORD, length=None), NAMES_MULTIPART, 9, "mpu-1", True),
        (replace(RECORD, length=None), NAMES_MULTIPART, 3, "mpu-1", False),
        (RECORD, Layout(), 10, "7-abc", True),
        (RECORD, Layout(), 10, "6-abc", False),  # a later lock has changed the record
        (replace(RECORD, offset=0), Layout(), 10, "6-abc", True),
        (RECORD, Layout(), 10, "mpu-1", False),
        (replace(RECORD, offset=0), Layout(), 10, "mpu-1", True),
        (RECORD, Layout(), 10, "", False),
    ],
)
def test_an_object_proves_that_an_upload_was_finished_only_if_nothing_contradicts_it(
    record: Upload, layout: Layout, size: int, put_id: str, expected: bool
) -> None:
    assert is_finished(record, layout, size, {OWNER: owner(record), PUT_ID: put_id}) is expected
    assert not is_finished(record, layout, size, {OWNER: owner(replace(record, id="other")), PUT_ID: put_id})
    assert not is_finished(record, layout, size, {})
