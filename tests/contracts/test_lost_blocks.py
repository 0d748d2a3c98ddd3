"""Bytes with a mark whose blocks never reached the device, as the file system tells."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.unfinished_syncs import UPLOAD, leave
from tusd_py.backends.disk import extents as extents_module, syncs
from tusd_py.backends.disk.extents import tells_gaps
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.disk.sync_marks import STEP_SIZE, mark_of
from tusd_py.core.errors import StorageBehind, StorageUnavailable


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[DiskStorage]:
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    yield storage
    await storage.close()


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
