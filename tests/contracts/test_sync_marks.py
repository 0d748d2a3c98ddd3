"""Marks of syncs that were under way when their process died."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.stalls import OSFaults
from tusd_py.backends.disk import extents as extents_module, syncs
from tusd_py.backends.disk.copying import COPY_THREADS
from tusd_py.backends.disk.extents import tells_gaps
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import THREADS, DiskStorage
from tusd_py.backends.disk.sync_marks import STEP_SIZE, Mark, SyncMarks, mark_of
from tusd_py.backends.disk.syncs import SyncUnproven
from tusd_py.contracts.storage import LastStepRefused
from tusd_py.core.errors import ServerShutdown, StorageBehind, StorageFull, StorageUnavailable
from tusd_py.core.upload import Upload

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=10)
INHERITED = replace(UPLOAD, offset=3)
FILE = "*/uploads/upload"


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[DiskStorage]:
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
async def other(tmp_path: Path, storage: DiskStorage) -> AsyncIterator[DiskStorage]:
    """The storage as another worker process has it open."""
    other = DiskStorage(tmp_path / "uploads")
    await other.open()
    yield other
    await other.close()


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[SharedDiskStorage]:
    storage = SharedDiskStorage(tmp_path / "uploads")
    await storage.open()
    yield storage
    await storage.close()


async def leave(storage: DiskStorage, data: bytes, upload: Upload = UPLOAD) -> Path:
    """Leave bytes that are committed, and a mark, as a process does that dies in the sync after them."""
    writer = storage.writer(upload, 1)
    await writer.flush([data], sync=False)
    await writer.close()
    path = storage.path(upload)
    mark_of(path).touch()
    return path


async def test_a_sync_that_endangers_acknowledged_bytes_has_a_mark_while_it_runs(storage: DiskStorage) -> None:
    path = storage.path(UPLOAD)
    marked: list[bool] = []
    real = os.fsync
    writer = storage.writer(UPLOAD, 1)
    await writer.flush([b"012"], sync=False)
    writer.snapshot()  # which may be committed
    with pytest.MonkeyPatch.context() as patched:

        def fsync(descriptor: int) -> None:
            marked.append(mark_of(path).exists())
            real(descriptor)

        patched.setattr(os, "fsync", fsync)
        await writer.finish([b"3456789"], sync=True)
    await writer.close()
    assert marked[0]
    assert not mark_of(path).exists()


@pytest.mark.parametrize("ends", ["at once", "after bytes that were synced"])
async def test_a_sync_that_endangers_no_acknowledged_byte_has_no_mark(
    storage: DiskStorage, os_faults: OSFaults, ends: str
) -> None:
    opened = os_faults.fail("open", "*.sync")
    writer = storage.writer(UPLOAD, 1)
    if ends != "at once":
        await writer.flush([b"012"], sync=True)
        writer.snapshot()
        await writer.flush([b"345"], sync=True)
    await writer.finish([b"6789"], sync=True)
    assert not opened.hits


async def test_bytes_with_a_mark_are_written_again_before_they_count_as_synced(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(storage, b"012")
    again = os_faults.fail("pwrite", FILE, errno.EIO, times=1)
    writer = storage.writer(INHERITED, 2)
    with pytest.raises(Exception):  # noqa: B017, PT011 - any: nothing was synced
        await writer.flush([b"345"], sync=True)
    assert again.hits
    assert writer.snapshot().synced == 0
    assert mark_of(path).exists()
    await writer.close()

    writer = storage.writer(INHERITED, 3)
    await writer.flush([b"345"], sync=True)
    assert writer.snapshot().synced == 6
    await writer.close()
    assert path.read_bytes() == b"012345"
    assert not mark_of(path).exists()


async def test_many_bytes_with_a_mark_are_written_again_in_steps(storage: DiskStorage, os_faults: OSFaults) -> None:
    data = os.urandom(2 * STEP_SIZE + 5)
    path = await leave(storage, data)
    syncs = os_faults.fail("fdatasync", FILE, skip=3)
    await storage.finish(replace(UPLOAD, offset=len(data), length=len(data)), sync=True)
    assert not syncs.hits
    assert path.read_bytes() == data
    assert not mark_of(path).exists()


async def test_a_sync_of_bytes_that_are_written_again_fails_for_good(storage: DiskStorage, os_faults: OSFaults) -> None:
    path = await leave(storage, b"0123456789")
    os_faults.fail("fdatasync", FILE, times=1)
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=10, synced=4), sync=True)
    assert behind.value.stored == 4
    assert path.read_bytes() == b"0123"
    assert not mark_of(path).exists()


async def test_the_removal_of_a_file_after_a_failed_sync_is_synced_before_bytes_follow(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    """A power cut could bring the file back otherwise, with bytes that were taken back."""
    path = await leave(storage, b"0123456789")
    os_faults.fail("fsync", FILE, times=1)
    folder = os_faults.fail("fsync", str(path.parent), times=1)
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert behind.value.stored == 0
    assert folder.hits
    writer = storage.writer(UPLOAD, 2)
    await writer.finish([b"9876543210"], sync=True)
    assert await storage.stored_size(replace(UPLOAD, offset=10)) == 10
    assert path.read_bytes() == b"9876543210"


async def test_a_cut_after_a_failed_sync_is_synced_before_bytes_follow(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("fsync,fdatasync", FILE, times=2)
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=10, synced=4), sync=True)
    assert behind.value.stored == 4
    left = replace(UPLOAD, offset=4, synced=4)
    again = os_faults.fail("fdatasync", FILE, times=1)
    writer = storage.writer(left, 3)
    with pytest.raises(StorageBehind):
        await writer.flush([b"xxx"], sync=False)
    await writer.close()
    assert again.hits
    writer = storage.writer(left, 4)
    await writer.flush([b"456"], sync=False)
    await writer.close()
    assert path.read_bytes() == b"0123456"
    assert await storage.stored_size(left.at(7)) == 7


async def test_a_full_disk_takes_no_byte_that_is_to_be_written_again(storage: DiskStorage, os_faults: OSFaults) -> None:
    path = await leave(storage, b"0123456789")
    os_faults.fail("pwrite", FILE, errno.ENOSPC, times=1)
    complete = replace(UPLOAD, offset=10)
    with pytest.raises(StorageFull):
        await storage.finish(complete, sync=True)
    assert mark_of(path).exists()
    await storage.finish(complete, sync=True)
    assert path.read_bytes() == b"0123456789"
    assert not mark_of(path).exists()


async def test_a_mark_that_finds_no_room_stops_the_sync(storage: DiskStorage, os_faults: OSFaults) -> None:
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("open", "*.sync", errno.ENOSPC, times=1)
    with pytest.raises(StorageFull):
        await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert path.read_bytes() == b"0123456789"


# Bytes that never reached the device.


@pytest.fixture
def extents(storage: DiskStorage) -> None:
    if not tells_gaps(storage.path(UPLOAD)):
        pytest.skip("the file system does not tell which blocks were written")


@pytest.mark.usefixtures("extents")
async def test_bytes_with_a_mark_that_never_reached_the_device_do_not_count(storage: DiskStorage) -> None:
    path = await leave(storage, b"")
    with path.open("wb") as file:
        file.truncate(1 << 20)  # one hole
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=1 << 20, length=1 << 20), sync=True)
    assert behind.value.stored == 0


@pytest.mark.usefixtures("extents")
async def test_zeros_read_in_place_of_lost_blocks_are_not_taken_for_stored_ones(storage: DiskStorage) -> None:
    """SEEK_HOLE calls an unwritten block data while a page of it is in the cache, such as after a backup."""
    path = await leave(storage, b"")
    size = 3 * STEP_SIZE
    with path.open("r+b") as file:
        file.write(os.urandom(STEP_SIZE))
        os.posix_fallocate(file.fileno(), STEP_SIZE, size - STEP_SIZE)
    assert len(path.read_bytes()) == size
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=size, length=size), sync=True)
    assert behind.value.stored == 0


@pytest.mark.usefixtures("extents")
async def test_a_file_without_gaps_is_stored_again_although_other_bytes_of_it_are_missing(storage: DiskStorage) -> None:
    data = os.urandom(2 * STEP_SIZE)
    path = await leave(storage, data)
    os.truncate(path, 3 * STEP_SIZE)  # beyond the bytes that count
    await storage.finish(replace(UPLOAD, offset=len(data), length=len(data)), sync=True)
    assert path.read_bytes() == data
    assert not mark_of(path).exists()


async def test_holes_tell_nothing_on_a_file_system_that_is_not_known(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZFS stores zeros as holes, and a restored file may be sparse."""
    monkeypatch.setattr(extents_module, "KNOWN_TYPES", ())
    size = 1 << 20
    path = await leave(storage, b"")
    os.truncate(path, size)
    await storage.finish(replace(UPLOAD, offset=size, length=size), sync=True)
    assert path.read_bytes() == bytes(size)


@pytest.mark.parametrize("error", [errno.ENOTTY, errno.EOPNOTSUPP])
async def test_holes_tell_nothing_where_extents_cannot_be_listed(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def ioctl(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(syncs, "tells_gaps", lambda path: True)
    path = await leave(storage, b"0123456789")
    await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert path.read_bytes() == b"0123456789"


async def test_extents_that_cannot_be_listed_now_take_no_bytes_along(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(syncs, "tells_gaps", lambda path: True)
    path = await leave(storage, b"0123456789")
    with monkeypatch.context() as failing:
        failing.setattr(fcntl, "ioctl", ioctl)
        with pytest.raises(StorageUnavailable):
            await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert mark_of(path).exists()
    await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert path.read_bytes() == b"0123456789"


async def test_the_short_way_leaves_bytes_with_a_mark_to_the_long_one(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(storage, b"012")
    writes = os_faults.fail("pwrite", FILE)
    with pytest.raises(SyncUnproven):
        await storage.run(lambda: storage.writer(INHERITED, 2).finish_in_thread((b"3456789",), sync=True))
    assert not writes.hits
    assert mark_of(path).exists()


async def test_the_last_step_leaves_bytes_with_a_mark_to_the_long_way(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(storage, b"012")
    writes = os_faults.fail("pwrite", FILE, times=1)
    writer = storage.writer(INHERITED, 2)
    with pytest.raises(LastStepRefused):
        await writer.finish_by([b"3456789"], storage.run, sync=True)
    assert not writes.hits
    os_faults.clear()
    assert await writer.finish(sync=True)
    await writer.close()
    assert path.read_bytes() == b"0123456789"
    assert not mark_of(path).exists()


async def test_bytes_that_are_stored_again_leave_threads_to_other_uploads(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    uploads = [replace(UPLOAD, id=f"upload{number}", offset=10) for number in range(THREADS)]
    paths = [await leave(storage, b"0123456789", replace(upload, offset=0)) for upload in uploads]
    stall = os_faults.stall("pwrite", "*/uploads/upload?")
    finishing = [asyncio.ensure_future(storage.finish(upload, sync=True)) for upload in uploads]
    await asyncio.to_thread(stall.wait, COPY_THREADS)
    async with asyncio.timeout(60):
        assert await storage.stored_size(uploads[0]) == 10
    assert stall.stalled == COPY_THREADS
    stall.lift()
    await asyncio.gather(*finishing)
    assert not any(mark_of(path).exists() for path in paths)


async def test_storing_again_that_a_shutdown_interrupts_goes_on_where_it_was(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    data = os.urandom(2 * STEP_SIZE + 5)
    path = await leave(storage, data)
    complete = replace(UPLOAD, offset=len(data), length=len(data))
    stall = os_faults.stall("pwrite", FILE, skip=1)
    finishing = asyncio.ensure_future(storage.finish(complete, sync=True))
    await asyncio.to_thread(stall.wait)
    storage.interrupt()
    stall.lift()
    with pytest.raises(ServerShutdown):
        await finishing
    assert mark_of(path).exists()

    later = DiskStorage(path.parent)
    await later.open()
    more = os_faults.fail("pwrite", FILE, skip=1)
    await later.finish(complete, sync=True)
    await later.close()
    assert not more.hits
    assert path.read_bytes() == data
    assert not mark_of(path).exists()


async def test_storing_again_that_fails_keeps_the_bytes_of_earlier_steps(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    data = os.urandom(2 * STEP_SIZE)
    path = await leave(storage, data)
    os_faults.fail("fdatasync", FILE, skip=1, times=1)
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=len(data), length=len(data)), sync=True)
    assert behind.value.stored == STEP_SIZE
    assert path.read_bytes() == data[:STEP_SIZE]
    assert not mark_of(path).exists()


async def test_a_cut_forgets_what_a_mark_calls_proven(storage: DiskStorage) -> None:
    path = await leave(storage, b"0123456789")
    inode = path.stat().st_ino
    storage.syncs.marks.note(path, inode, Mark(9))
    writer = storage.writer(replace(UPLOAD, offset=8), 2)
    await writer.flush([b"8"], sync=False)
    await writer.close()
    assert storage.syncs.marks.read(path, inode) == Mark()


def test_the_content_of_a_mark_concerns_one_file_only(storage: DiskStorage) -> None:
    marks = SyncMarks(storage.files)
    path = storage.path(UPLOAD)
    assert marks.read(path, 7) is None
    assert marks.make(path)
    assert marks.read(path, 7) == Mark()
    for mark in (Mark(12), Mark(1 << 40, lost=True), Mark(3)):
        marks.note(path, 7, mark)
        assert marks.read(path, 7) == mark
        assert marks.read(path, 8) == Mark()
    mark_of(path).write_bytes(b"half of a con")
    assert marks.read(path, 7) == Mark()


async def test_a_mark_is_removed_with_its_upload(storage: DiskStorage) -> None:
    path = await leave(storage, b"012")
    await storage.delete(INHERITED)
    assert not list(path.parent.glob(".*.sync"))


async def test_a_mark_of_a_process_that_died_after_the_cut_is_removed_by_a_writer_only(storage: DiskStorage) -> None:
    """A look without the lock may see the mark of a later sync."""
    path = await leave(storage, b"012")
    path.unlink()
    assert await storage.stored_size(INHERITED) == 0
    assert mark_of(path).exists()
    writer = storage.writer(INHERITED, 2)
    with pytest.raises(StorageBehind) as behind:
        await writer.flush([b"345"], sync=False)
    await writer.close()
    assert behind.value.stored == 0
    assert not mark_of(path).exists()


@pytest.mark.parametrize("left", ["no file", "a shorter file"])
async def test_a_cut_of_a_process_that_died_then_is_synced_before_the_offset_goes_back(
    storage: DiskStorage, os_faults: OSFaults, left: str
) -> None:
    """A power cut could undo it otherwise, and count old bytes in place of those sent after them."""
    path = await leave(storage, b"012")
    if left == "no file":
        path.unlink()
        fault = os_faults.fail("fsync", str(path.parent))
    else:
        os.truncate(path, 1)
        fault = os_faults.fail("fdatasync", FILE)
    record = replace(INHERITED, synced=1)
    for ask in (storage.stored_size(record), storage.finish(record, sync=True)):
        with pytest.raises(StorageUnavailable):
            await ask
    writer = storage.writer(record, 2)
    with pytest.raises(StorageUnavailable):
        await writer.flush([b"345"], sync=False)
    await writer.close()
    assert len(fault.hits) == 3
    fault.lift()
    assert await storage.stored_size(record) == (0 if left == "no file" else 1)


async def test_a_mark_that_outlives_its_file_calls_nothing_proven(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later file of the same name may get the same inode number."""
    path = await leave(storage, b"0123456789")
    inode = path.stat().st_ino
    storage.syncs.marks.note(path, inode, Mark(5))
    monkeypatch.setattr(storage.syncs, "_has_gap", lambda *_: True)
    monkeypatch.setattr(storage.syncs.marks, "remove", lambda path: None)  # the process dies before that
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert behind.value.stored == 0
    assert storage.syncs.marks.read(path, inode) == Mark()


async def test_a_failed_cut_leaves_a_mark_to_the_next_process(storage: DiskStorage, os_faults: OSFaults) -> None:
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("fsync", FILE, times=1)
    os_faults.fail("unlink", FILE, times=1)
    with pytest.raises(StorageBehind):
        await storage.finish(replace(UPLOAD, offset=10), sync=True)
    assert await storage.stored_size(replace(UPLOAD, offset=10)) == 0
    assert mark_of(path).exists()


@pytest.mark.parametrize("fails", ["sync of the cut", "sync of the removal"])
async def test_a_cut_that_is_not_synced_is_made_again_by_other_processes(
    storage: DiskStorage, other: DiskStorage, os_faults: OSFaults, fails: str
) -> None:
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("fsync", FILE, times=1)
    kept = 4 if fails == "sync of the cut" else 0
    fault = os_faults.fail("fdatasync", FILE) if kept else os_faults.fail("fsync", str(path.parent))
    with pytest.raises(StorageBehind):
        await storage.finish(replace(UPLOAD, offset=10, synced=kept), sync=True)
    left = replace(UPLOAD, offset=kept, synced=kept)
    writer = other.writer(left, 2)
    failed = len(fault.hits)
    with pytest.raises((StorageBehind, StorageUnavailable)):
        await writer.flush([b"xxx"], sync=False)
    await writer.close()
    assert len(fault.hits) > failed
    fault.lift()
    writer = other.writer(left, 3)
    await writer.flush([b"456"], sync=False)
    await writer.close()
    assert path.read_bytes() == b"0123456789"[:kept] + b"456"


async def test_a_refusal_of_bytes_whose_cut_is_not_synced_is_cut_again(
    storage: DiskStorage, other: DiskStorage, os_faults: OSFaults
) -> None:
    """No room for the mark: nothing tells of the cut but the size of the file."""
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("open", "*.sync", errno.ENOSPC, times=1)
    writer = storage.writer(INHERITED, 2)
    with pytest.raises(StorageFull):
        await writer.flush([b"xxx"], sync=False)
    await writer.close()
    fault = os_faults.fail("fdatasync", FILE)
    writer = other.writer(INHERITED, 3)
    with pytest.raises((StorageBehind, StorageUnavailable)):
        await writer.flush([b"xxx"], sync=False)
    await writer.close()
    assert fault.hits


@pytest.mark.parametrize("fault", ["fdatasync", "ftruncate"])
async def test_a_failed_cut_concerns_no_byte_that_another_process_has_stored_since(
    storage: DiskStorage, other: DiskStorage, os_faults: OSFaults, fault: str
) -> None:
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("fsync", FILE, times=1)
    cut = os_faults.fail(fault, FILE)
    with pytest.raises(StorageBehind):
        await storage.finish(replace(UPLOAD, offset=10, synced=4), sync=True)
    assert await storage.stored_size(replace(UPLOAD, offset=10, synced=4)) == 4
    assert cut.hits
    cut.lift()
    left = replace(UPLOAD, offset=4, synced=4)
    writer = other.writer(left, 2)
    await writer.finish([b"cdefgh"], sync=True)
    await writer.close()
    complete = replace(UPLOAD, offset=10, synced=10)
    assert await storage.stored_size(complete) == 10
    await storage.finish(complete, sync=True)
    assert path.read_bytes() == b"0123cdefgh"
    assert not mark_of(path).exists()


async def test_an_upload_that_is_removed_leaves_no_distrust_to_a_later_one(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(storage, b"0123456789")
    mark_of(path).unlink()
    os_faults.fail("fsync", FILE, times=1)
    os_faults.fail("unlink", FILE, times=1)
    complete = replace(UPLOAD, offset=10)
    with pytest.raises(StorageBehind):
        await storage.finish(complete, sync=True)
    await storage.delete(complete)
    path.write_bytes(b"0123456789")
    assert await storage.stored_size(complete) == 10


async def test_the_next_writer_of_a_shared_file_with_a_mark_copies_its_bytes(shared: SharedDiskStorage) -> None:
    """The earlier one may wake up in its sync, and cut its file off."""
    path = await leave(shared, b"012")
    writer = shared.writer(INHERITED, 6, unreleased_predecessors=1)
    await writer.flush([b"345"], sync=True)
    done = writer.snapshot()
    await writer.close()
    assert (done.offset, done.synced, done.storage_state) == (6, 6, "0:6")
    os.truncate(path, 0)  # by the earlier writer

    upload = replace(UPLOAD, offset=6, synced=6, storage_state="0:6")
    assert await shared.stored_size(upload) == 6
    writer = shared.writer(upload, 7)
    await writer.finish([b"6789"], sync=True)
    await writer.close()
    upload = replace(upload, offset=10, storage_state=writer.snapshot().storage_state)
    await shared.finish(upload, sync=True)
    await shared.discard_superseded(upload)
    assert path.read_bytes() == b"0123456789"
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["upload"]


async def test_a_failed_sync_of_a_shared_file_with_nothing_left_to_prove_takes_no_later_bytes_back(
    shared: SharedDiskStorage, os_faults: OSFaults
) -> None:
    """The kernel may report late what it has lost of a file whose bytes were copied, or of bytes that do not count."""
    path = await leave(shared, b"012")
    writer = shared.writer(INHERITED, 6, unreleased_predecessors=1)
    await writer.flush([b"345"], sync=True)
    await writer.finish([b"6789"], sync=True)
    await writer.close()
    done = writer.snapshot()
    upload = replace(UPLOAD, offset=10, synced=done.synced, storage_state=done.storage_state)
    os_faults.fail("fsync,fdatasync", FILE, times=1)
    await shared.finish(upload, sync=True)
    await shared.discard_superseded(upload)
    assert path.read_bytes() == b"0123456789"


async def test_the_end_of_a_shared_upload_copies_the_files_with_a_mark_once(
    shared: SharedDiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(shared, b"012")
    copies = os_faults.fail("pwrite", "*/uploads/upload*")
    writer = shared.writer(INHERITED, 6, unreleased_predecessors=1)
    assert not await writer.finish([b"3456789"], sync=True)
    done = writer.snapshot()
    await writer.close()
    assert done.synced == 0
    assert not copies.hits
    upload = replace(UPLOAD, offset=10, storage_state=done.storage_state)
    await shared.finish(upload, sync=True)
    await shared.discard_superseded(upload)
    assert path.read_bytes() == b"0123456789"
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["upload"]


async def test_a_copy_of_shared_bytes_with_a_mark_ends_at_a_shutdown(
    shared: SharedDiskStorage, os_faults: OSFaults
) -> None:
    data = os.urandom(2 * STEP_SIZE)
    await leave(shared, data)
    upload = replace(UPLOAD, offset=len(data), length=len(data) + 3)
    stall = os_faults.stall("pwrite", "*/uploads/upload.6")
    writer = shared.writer(upload, 6, unreleased_predecessors=1)
    flushing = asyncio.ensure_future(writer.flush([b"345"], sync=True))
    await asyncio.to_thread(stall.wait)
    shared.interrupt()
    stall.lift()
    with pytest.raises(ServerShutdown):
        await flushing
    await writer.close()
    assert len(stall.hits) == 1
    assert (writer.snapshot().synced, writer.snapshot().storage_state) == (0, f"{len(data)}:6")


async def test_only_what_is_not_synced_of_shared_files_with_a_mark_is_copied(shared: SharedDiskStorage) -> None:
    path = await leave(shared, b"012")
    writer = shared.writer(INHERITED, 6, unreleased_predecessors=1)
    await writer.flush([b"345"], sync=False)
    await writer.close()
    upload = replace(UPLOAD, offset=6, synced=2, storage_state=writer.snapshot().storage_state)
    assert upload.storage_state == "3:6"
    writer = shared.writer(upload, 7, unreleased_predecessors=1)
    await writer.flush([b"678"], sync=True)
    done = writer.snapshot()
    await writer.close()
    assert (done.offset, done.synced, done.storage_state) == (9, 9, "2:7")
    assert path.with_name("upload.7").read_bytes()[2:] == b"2345678"


async def test_a_whole_shared_file_with_a_mark_is_replaced_by_a_copy(
    shared: SharedDiskStorage, os_faults: OSFaults
) -> None:
    path = await leave(shared, b"0123456789")
    os_faults.fail("copy_file_range", "*")  # which could share blocks that were never written
    number = path.stat().st_ino
    await shared.finish(replace(UPLOAD, offset=10), sync=True)
    assert path.read_bytes() == b"0123456789"
    assert path.stat().st_ino != number
    assert not mark_of(path).exists()


# Errors that are no failed sync.


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOENT])
async def test_a_folder_that_cannot_be_opened_takes_no_bytes_along(
    storage: DiskStorage, os_faults: OSFaults, error: int
) -> None:
    """The file is synced; nothing is known to be lost, so nothing is cut off."""
    writer = storage.writer(UPLOAD, 1)
    await writer.flush([b"012"], sync=False)
    fault = os_faults.fail("open", "*/uploads", error)
    with pytest.raises(StorageUnavailable):
        await writer.finish([b"3456789"], sync=True)
    fault.lift()
    await writer.close()
    assert storage.path(UPLOAD).read_bytes() == b"0123456789"


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOMEM])
async def test_inherited_bytes_that_cannot_be_read_now_are_neither_cut_off_nor_believed(
    storage: DiskStorage, os_faults: OSFaults, error: int
) -> None:
    path = await leave(storage, b"0123456789")
    fault = os_faults.fail("pread", FILE, error)
    with pytest.raises(StorageUnavailable):
        await storage.finish(replace(UPLOAD, offset=10, synced=4), sync=True)
    assert mark_of(path).exists()
    fault.lift()
    await storage.finish(replace(UPLOAD, offset=10, synced=4), sync=True)
    assert path.read_bytes() == b"0123456789"
    assert not mark_of(path).exists()


async def test_folders_that_may_not_be_opened_are_not_synced(storage: DiskStorage, os_faults: OSFaults) -> None:
    writer = storage.writer(UPLOAD, 1)
    await writer.flush([b"012"], sync=False)
    os_faults.fail("open", "*/uploads", errno.EACCES)
    await writer.finish([b"3456789"], sync=True)
    os_faults.clear()
    await writer.close()
    assert any("cannot sync directories" in text for text in storage.limitations)
