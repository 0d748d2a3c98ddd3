"""Particulars of files that several hosts share."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.stalls import OSFaults
from tests.support.upload_records import FixedRecords
from tusd_py.backends.disk.segment_map import Segment, segments, storage_state_of
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.sync_marks import mark_of
from tusd_py.core.errors import LockLost, StorageAhead, StorageBehind, StorageUnavailable
from tusd_py.core.upload import Status, Upload

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=10)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SharedDiskStorage]:
    storage = SharedDiskStorage(tmp_path / "uploads", tmp_path / "notes")
    await storage.open()
    yield storage
    await storage.close()


async def append(
    storage: SharedDiskStorage, upload: Upload, data: bytes, token: int, *, unreleased_predecessors: bool
) -> Upload:
    writer = storage.writer(upload, token, unreleased_predecessors=unreleased_predecessors)
    await writer.flush([data], sync=True)
    await writer.close()
    done = writer.snapshot()
    return replace(upload, offset=done.offset, storage_state=done.storage_state)


async def content(storage: SharedDiskStorage, upload: Upload) -> bytes:
    return b"".join([bytes(data) async for data in storage.read(upload, 0, upload.offset)])


def files(storage: SharedDiskStorage) -> list[str]:
    return sorted(path.name for path in storage.path(UPLOAD).parent.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("storage_state", "offset", "expected"),
    [
        ("", 0, [Segment(0, 0, 0)]),
        ("", 9, [Segment(0, 0, 9)]),
        ("4:7", 9, [Segment(0, 0, 4), Segment(7, 4, 9)]),
        ("0:7", 9, [Segment(0, 0, 0), Segment(7, 0, 9)]),
        ("4:7 6:9", 9, [Segment(0, 0, 4), Segment(7, 4, 6), Segment(9, 6, 9)]),
        ("4:7 6:9", 6, [Segment(0, 0, 4), Segment(7, 4, 6)]),  # what began beyond the offset holds nothing that counts
        ("4:7 6:9", 2, [Segment(0, 0, 2)]),
    ],
)
def test_which_file_holds_which_bytes(storage_state: str, offset: int, expected: list[Segment]) -> None:
    assert segments(storage_state, offset) == expected
    assert segments(storage_state_of(expected), offset) == expected


async def test_writer_with_the_token_of_a_lost_lease_has_lost_its_own_and_changes_nothing(
    storage: SharedDiskStorage,
) -> None:
    first = await append(storage, UPLOAD, b"01234", 5, unreleased_predecessors=False)
    second = await append(storage, first, b"56789", 6, unreleased_predecessors=True)

    with pytest.raises(LockLost):
        await append(storage, first, b"-----", 6, unreleased_predecessors=True)

    assert await storage.finish(second, sync=True) == ""
    assert await content(storage, replace(second, storage_state="")) == b"0123456789"


async def test_writer_after_a_released_lock_goes_on_in_the_same_file(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"01234", 5, unreleased_predecessors=False)
    upload = await append(storage, upload, b"56789", 6, unreleased_predecessors=False)
    assert upload.storage_state == ""
    assert await storage.finish(upload, sync=True) == ""
    assert files(storage) == ["upload"]
    assert await content(storage, upload) == b"0123456789"


@pytest.mark.parametrize("woken", [b"", b"x", b"xxxxx", b"xxxxxxxxxx"])
async def test_a_writer_that_wakes_up_changes_nothing(storage: SharedDiskStorage, woken: bytes) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    sleeper = storage.writer(upload, 6)
    await sleeper.flush([b"34"], sync=False)  # stored, but never committed
    upload = await append(storage, upload, b"3456", 7, unreleased_predecessors=True)
    await sleeper.flush([woken], sync=False)
    assert await storage.stored_size(upload) == 7
    await sleeper.discard(3)
    upload = await append(storage, upload, b"789", 8, unreleased_predecessors=True)
    assert upload.storage_state == "3:7 7:8"
    await sleeper.write([woken])
    assert await storage.finish(upload, sync=True) == ""
    await storage.discard_superseded(upload)
    await sleeper.flush([woken], sync=False)
    await sleeper.close()
    assert await content(storage, replace(upload, storage_state="")) == b"0123456789"
    assert files(storage) == ["upload"]


@pytest.mark.parametrize("synced", [False, True])
async def test_a_sync_that_fails_after_another_host_took_over_leaves_the_finished_file_alone(
    storage: SharedDiskStorage, os_faults: OSFaults, synced: bool
) -> None:
    """The writer was frozen, or cut off from everything; the file of its name is another one now."""
    sleeper = storage.writer(UPLOAD, 5)
    await sleeper.flush([b"012"], sync=synced)
    upload = replace(UPLOAD, offset=3, synced=sleeper.snapshot().synced)
    await sleeper.flush([b"34"], sync=False)
    upload = await append(storage, upload, b"3456789", 6, unreleased_predecessors=True)
    await storage.finish(upload, sync=True)
    os_faults.fail("fsync,fdatasync", "*/uploads/upload*", times=1)
    with pytest.raises(StorageBehind):
        await sleeper.flush([b"xxx"], sync=True)
    await sleeper.close()
    assert await content(storage, replace(upload, storage_state="")) == b"0123456789"


@pytest.mark.parametrize("ends", [False, True])
async def test_a_sync_proves_nothing_of_an_earlier_segment_whose_own_fails(
    storage: SharedDiskStorage, os_faults: OSFaults, ends: bool
) -> None:
    earlier = storage.writer(UPLOAD, 5)
    await earlier.flush([b"012"], sync=False)
    upload = replace(UPLOAD, offset=3)
    os_faults.fail("fsync,fdatasync", "*/uploads/upload", times=1)
    later = storage.writer(upload, 6, unreleased_predecessors=True)
    write = later.finish if ends else later.flush
    with pytest.raises(StorageBehind) as behind:
        await write([b"3456789"], sync=True)
    assert behind.value.stored == 0
    assert later.snapshot().synced == 0
    await later.close()
    await earlier.close()
    assert await storage.stored_size(upload) == 0


@pytest.mark.parametrize("ends", [False, True])
async def test_a_writer_without_its_lease_takes_nothing_back_that_another_one_has_proved(
    storage: SharedDiskStorage, os_faults: OSFaults, ends: bool
) -> None:
    sleeper = storage.writer(UPLOAD, 5)
    await sleeper.flush([b"012"], sync=False)
    sleeper.snapshot()  # committed
    if ends:  # in place
        await sleeper.flush([b"3456789"], sync=False)
        sleeper.snapshot()
        upload = replace(UPLOAD, offset=10)
        await storage.finish(upload, sync=True)
    else:
        successor = storage.writer(replace(UPLOAD, offset=3), 6, unreleased_predecessors=1)
        await successor.flush([b"345"], sync=True)
        done = successor.snapshot()
        await successor.close()
        assert done.synced == 6
        upload = replace(UPLOAD, offset=6, synced=6, storage_state=done.storage_state)
    os_faults.fail("fsync,fdatasync", "*/uploads/upload", times=1)
    with pytest.raises(StorageBehind):
        await sleeper.flush([b"xxx"], sync=True)
    await sleeper.close()
    if not ends:
        assert await storage.stored_size(upload) == 6
        upload = await append(storage, upload, b"6789", 7, unreleased_predecessors=True)
        await storage.finish(upload, sync=True)
        await storage.discard_superseded(upload)
        assert files(storage) == ["upload"]
    assert await content(storage, replace(upload, storage_state="")) == b"0123456789"


async def test_a_failed_sync_is_known_to_every_host_before_the_record_tells_of_it(
    storage: SharedDiskStorage, os_faults: OSFaults
) -> None:
    writer = storage.writer(UPLOAD, 5)
    await writer.flush([b"01"], sync=True)
    await writer.flush([b"2345"], sync=False)
    upload = replace(UPLOAD, offset=6, synced=writer.snapshot().synced)
    os_faults.fail("fsync,fdatasync", "*/uploads/upload", times=1)
    with pytest.raises(StorageBehind):
        await writer.flush(sync=True)
    await writer.close()

    other = SharedDiskStorage(storage.path(UPLOAD).parent)
    await other.open()
    assert await other.stored_size(upload) == 2
    for unreleased_predecessors in (0, 1):
        later = other.writer(upload, 6, unreleased_predecessors=unreleased_predecessors)
        with pytest.raises(StorageBehind) as behind:
            await later.flush([b"678"], sync=True)
        assert behind.value.stored == 2
        await later.close()
    complete = replace(upload, offset=6, length=6)
    with pytest.raises(StorageBehind) as behind:
        await other.finish(complete, sync=True)
    assert behind.value.stored == 2

    upload = await append(other, upload.at(2), b"23456789", 7, unreleased_predecessors=False)
    assert upload.storage_state == "2:7"
    await other.finish(upload, sync=True)
    await other.discard_superseded(upload)
    assert await content(other, replace(upload, storage_state="")) == b"0123456789"
    assert files(other) == ["upload"]
    await other.close()


@pytest.mark.parametrize(("left", "kept"), [(None, 0), (1, 1)])
async def test_a_sync_proves_nothing_of_bytes_that_are_missing(
    storage: SharedDiskStorage, left: int | None, kept: int
) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    later = storage.writer(upload, 6, unreleased_predecessors=True)
    await later.flush([b"345"], sync=False)
    if left is None:
        storage.path(UPLOAD).unlink()
    else:
        os.truncate(storage.path(UPLOAD), left)
    with pytest.raises(StorageBehind) as behind:
        await later.flush(sync=True)
    assert behind.value.stored == kept
    assert later.snapshot().synced == 0
    await later.close()


async def test_a_mark_of_a_later_writer_stops_one_that_wakes_up(
    storage: SharedDiskStorage, os_faults: OSFaults
) -> None:
    sleeper = storage.writer(UPLOAD, 5)
    await sleeper.flush([b"012"], sync=False)
    sleeper.snapshot()
    mark_of(storage.path(UPLOAD)).touch()
    writes = os_faults.fail("pwrite", "*/uploads/upload")
    with pytest.raises(StorageUnavailable):
        await sleeper.flush([b"345"], sync=True)
    await sleeper.close()
    assert not writes.hits
    assert mark_of(storage.path(UPLOAD)).exists()


async def test_discarding_what_a_failed_sync_of_another_host_has_cut_off_leaves_no_hole(
    storage: SharedDiskStorage,
) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    writer = storage.writer(upload, 6)
    await writer.flush([b"34"], sync=False)
    os.truncate(storage.path(UPLOAD), 1)
    await writer.discard(3)
    await writer.close()
    assert await storage.stored_size(upload) == 1


async def test_segments_that_were_synced_once_are_not_synced_again(
    storage: SharedDiskStorage, os_faults: OSFaults
) -> None:
    first = storage.writer(UPLOAD, 5)
    await first.flush([b"012"], sync=False)
    await first.close()
    later = storage.writer(replace(UPLOAD, offset=3), 6, unreleased_predecessors=True)
    await later.flush([b"345"], sync=True)
    assert later.snapshot().synced == 6
    os_faults.fail("fsync,fdatasync", "*/uploads/upload")
    await later.flush([b"678"], sync=True)
    assert later.snapshot().synced == 9
    await later.close()


async def test_a_writer_that_opens_its_file_only_after_waking_up(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    sleeper = storage.writer(upload, 6)
    upload = await append(storage, upload, b"3456789", 7, unreleased_predecessors=True)
    await storage.finish(upload, sync=True)
    await sleeper.flush([b"xxx"], sync=False)
    await sleeper.close()
    assert await content(storage, replace(upload, storage_state="")) == b"0123456789"


async def test_bytes_beyond_the_offset_are_left_alone(storage: SharedDiskStorage) -> None:
    """The records went back in time."""
    longer = await append(storage, UPLOAD, b"01234567", 5, unreleased_predecessors=False)
    earlier = await append(storage, longer.at(4), b"456", 6, unreleased_predecessors=False)
    assert earlier.storage_state == "4:6"
    assert storage.path(UPLOAD).read_bytes() == b"01234567"


async def test_completing_again_after_every_step(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    upload = await append(storage, upload, b"3456789", 6, unreleased_predecessors=True)
    for _ in range(3):
        await storage.finish(upload, sync=True)
        assert await content(storage, replace(upload, storage_state="")) == b"0123456789"
    for _ in range(2):
        await storage.discard_superseded(upload)
    assert files(storage) == ["upload"]


@pytest.mark.parametrize(("lost", "left"), [("upload", 0), ("upload.6", 3), ("upload.7", 6)])
async def test_a_lost_segment_puts_the_offset_back(storage: SharedDiskStorage, lost: str, left: int) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    upload = await append(storage, upload, b"345", 6, unreleased_predecessors=True)
    upload = await append(storage, upload, b"6789", 7, unreleased_predecessors=True)
    storage.path(UPLOAD).with_name(lost).unlink()
    assert await storage.stored_size(upload) == left
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(upload, sync=True)
    assert behind.value.stored == left


async def test_a_finished_upload_is_remembered(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"0123456789", 5, unreleased_predecessors=False)
    assert await storage.load_completion_record(UPLOAD.id) is None
    complete = replace(upload, status=Status.COMPLETE, metadata="filename YQ==")
    await storage.save_completion_record(complete)
    assert await storage.load_completion_record(UPLOAD.id) == complete
    for unreleased_predecessors in (False, True):
        writer = storage.writer(upload.at(4), 9, unreleased_predecessors=unreleased_predecessors)
        with pytest.raises(StorageAhead):
            await writer.flush([b"x"], sync=False)
        await writer.close()
    await storage.delete(complete)
    assert await storage.load_completion_record(UPLOAD.id) is None


@pytest.mark.parametrize("upload_id", ["../secret", "a/b", ".", "", "a" * 129, "\0"])
async def test_nothing_is_remembered_of_what_is_no_id(storage: SharedDiskStorage, upload_id: str) -> None:
    assert await storage.load_completion_record(upload_id) is None


async def test_segments_that_no_layout_names_are_removed(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    upload = await append(storage, upload, b"345", 6, unreleased_predecessors=True)
    folder = storage.path(UPLOAD).parent
    old = time.time() - 100_000
    for name in ("upload.7", "upload.6", "unknown.9", "upload", "notes.txt"):
        (folder / name).touch()
        os.utime(folder / name, (old, old))
    (folder / "upload.8").touch()
    records = FixedRecords(upload)
    for dry_run in (True, False):
        orphans = await storage.clean(records, older_than=86400, dry_run=dry_run)
        assert sorted(Path(orphan.name).name for orphan in orphans) == ["unknown.9", "upload.7"]
    assert files(storage) == ["notes.txt", "upload", "upload.6", "upload.8"]


async def test_marks_that_nobody_needs_are_removed(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    upload = await append(storage, upload, b"345", 6, unreleased_predecessors=True)
    folder = storage.path(UPLOAD).parent
    needed = [".upload.sync", ".upload.6.sync"]
    old = time.time() - 100_000
    for name in (*needed, ".upload.7.sync", ".unknown.sync", ".unknown.9.sync", ".notes.txt.sync", ".upload.8.sync"):
        (folder / name).touch()
        os.utime(folder / name, (old, old))
    os.utime(folder / ".upload.8.sync")
    orphans = await storage.clean(FixedRecords(upload), older_than=86400)
    assert sorted(Path(orphan.name).name for orphan in orphans) == [
        ".unknown.9.sync",
        ".unknown.sync",
        ".upload.7.sync",
    ]
    assert files(storage) == sorted([*needed, ".notes.txt.sync", ".upload.8.sync", "upload", "upload.6"])
    complete = replace(upload, status=Status.COMPLETE, storage_state="")
    await storage.clean(FixedRecords(complete), older_than=86400)
    assert not set(needed) & set(files(storage))


async def test_the_marks_of_segments_are_removed_with_them(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    upload = await append(storage, upload, b"3456789", 6, unreleased_predecessors=True)
    for name in (".upload.6.sync", ".upload.7.sync"):  # of the second the segment is gone
        storage.path(UPLOAD).with_name(name).touch()
    await storage.finish(upload, sync=True)
    await storage.discard_superseded(upload)
    assert files(storage) == ["upload"]


async def test_segments_of_an_upload_in_use_are_kept(storage: SharedDiskStorage) -> None:
    upload = await append(storage, UPLOAD, b"012", 5, unreleased_predecessors=False)
    segment = storage.path(UPLOAD).with_name("upload.7")
    segment.touch()
    os.utime(segment, (0, 0))
    records = FixedRecords(upload)
    records.in_use.add(UPLOAD.id)
    assert await storage.clean(records, older_than=86400) == []
    assert segment.exists()
