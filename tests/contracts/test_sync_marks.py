"""Marks of syncs that were under way when their process died."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.unfinished_syncs import FILE, INHERITED, UPLOAD, leave
from tests.faults.stalls import OSFaults
from tusd_py.backends.disk.copying import COPY_THREADS
from tusd_py.backends.disk.storage import THREADS, DiskStorage
from tusd_py.backends.disk.sync_marks import STEP_SIZE, Mark, SyncMarks, mark_of
from tusd_py.backends.disk.syncs import SyncUnproven
from tusd_py.contracts.storage import LastStepRefused
from tusd_py.core.errors import ServerShutdown, StorageBehind, StorageFull, StorageUnavailable


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[DiskStorage]:
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    yield storage
    await storage.close()


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
