"""Marks of unfinished syncs in a directory that hosts share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.unfinished_syncs import FILE, INHERITED, UPLOAD, leave
from tests.faults.stalls import OSFaults
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.sync_marks import STEP_SIZE, mark_of
from tusd_py.core.errors import ServerShutdown


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[SharedDiskStorage]:
    storage = SharedDiskStorage(tmp_path / "uploads")
    await storage.open()
    yield storage
    await storage.close()


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
