"""Cuts after a failed sync: each is synced before bytes follow, in whichever process."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.unfinished_syncs import FILE, INHERITED, UPLOAD, leave
from tests.faults.stalls import OSFaults
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.disk.sync_marks import mark_of
from tusd_py.core.errors import StorageBehind, StorageFull, StorageUnavailable


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
