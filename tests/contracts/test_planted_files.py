"""Links, FIFOs and devices planted in the upload directory: nothing leads out of it, nothing blocks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import within
from tests.faults.stalls import OSFaults
from tusd_py.backends.disk.files import Modes
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.core.errors import StorageUnavailable
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import append, content, final_of, finish, partials, store

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0)  # 2023-11-14 in UTC
PRIVATE = b"private"


@pytest.fixture(params=["disk", "disk by date", "shared disk", "shared disk by date"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DiskStorage]:
    kind = SharedDiskStorage if "shared" in request.param else DiskStorage
    storage = kind(tmp_path / "uploads", tmp_path / "notes", date_folders="date" in request.param)
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / UPLOAD.id).write_bytes(PRIVATE)
    return outside


def plant(kind: str, path: Path, outside: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a link":
        path.symlink_to(outside / UPLOAD.id)
    elif kind == "a link to nothing":
        path.symlink_to(outside / "nothing")
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


KINDS = ["a link", "a link to nothing", "a FIFO", "a directory", "a device"]


@pytest.mark.parametrize("kind", KINDS)
async def test_planted_file_under_the_name_of_an_upload_is_refused(
    storage: DiskStorage, outside: Path, kind: str
) -> None:
    if kind == "a device" and os.geteuid() != 0:
        pytest.skip("only root may make a device")
    plant(kind, storage.path(UPLOAD), outside)
    seven = UPLOAD.at(7)
    for upload in (UPLOAD, seven):
        writer = storage.writer(upload, 1)
        with pytest.raises(StorageUnavailable):
            await within(writer.flush([b"data"], sync=True))
        await within(writer.close())
    with pytest.raises(StorageUnavailable):
        await within(storage.stored_size(seven))
    with pytest.raises(StorageUnavailable):
        await within(storage.finish(seven, sync=True))
    with pytest.raises(StorageUnavailable):
        await within(content(storage, seven))
    with pytest.raises(StorageUnavailable):
        await within(storage.concatenate(final_of([seven]), [seven], sync=False))
    assert (outside / UPLOAD.id).read_bytes() == PRIVATE
    assert os.listdir(outside) == [UPLOAD.id]
    if kind != "a directory":
        await within(storage.delete(seven))
        assert UPLOAD.id not in os.listdir(storage.path(UPLOAD).parent)
        await finish(storage, await append(storage, UPLOAD, [b"data"]))
    assert (outside / UPLOAD.id).read_bytes() == PRIVATE


async def test_a_concatenation_takes_the_place_of_what_is_planted(storage: DiskStorage, outside: Path) -> None:
    parts = await partials(storage, b"one", b"two")
    final = replace(final_of(parts), id=UPLOAD.id, created_at=UPLOAD.created_at)
    plant("a link", storage.path(final), outside)
    plant("a link", storage.path(final).with_name(f".{final.id}.concatenation"), outside)
    await storage.concatenate(final, parts, sync=True)
    assert await content(storage, final) == b"onetwo"
    assert (outside / UPLOAD.id).read_bytes() == PRIVATE


@pytest.mark.parametrize("level", ["2023", "2023/11", "2023/11/14"])
@pytest.mark.parametrize("storage", ["disk by date", "shared disk by date"], indirect=True)
async def test_a_link_in_place_of_a_folder_is_not_followed(
    storage: DiskStorage, tmp_path: Path, outside: Path, level: str
) -> None:
    below = outside / Path("2023/11/14").relative_to(level)
    below.mkdir(parents=True, exist_ok=True)
    victim = below / UPLOAD.id
    victim.write_bytes(PRIVATE)
    folder = tmp_path / "uploads" / level
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(outside)
    writer = storage.writer(UPLOAD, 1)
    with pytest.raises(StorageUnavailable):
        await writer.flush([b"data"], sync=True)
    await writer.close()
    for refused in (
        storage.stored_size(UPLOAD.at(7)),
        storage.finish(UPLOAD.at(7), sync=True),
        storage.delete(UPLOAD.at(7)),
        content(storage, UPLOAD.at(7)),
    ):
        with pytest.raises(StorageUnavailable):
            await refused
    assert victim.read_bytes() == PRIVATE
    assert os.listdir(below) == [UPLOAD.id] or below == outside


async def test_the_upload_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "uploads").symlink_to(tmp_path / "disk")
    storage = DiskStorage(tmp_path / "uploads", date_folders=True)
    await storage.open()
    await store(storage, "upload", b"data")
    await storage.close()
    assert len(list((tmp_path / "disk").rglob("upload"))) == 1


# Permissions.


def modes_below(folder: Path) -> dict[str, int]:
    found = {".": stat.S_IMODE(folder.stat().st_mode)}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = stat.S_IMODE(path.stat().st_mode)
    return found


@pytest.mark.parametrize(
    ("modes", "umask", "file", "folder"),
    [
        pytest.param(Modes(), 0o022, 0o640, 0o750, id="default"),
        pytest.param(Modes(), 0o000, 0o640, 0o750, id="default without a umask"),
        pytest.param(Modes(), 0o077, 0o600, 0o700, id="default less a strict umask"),
        pytest.param(Modes(0o660, 0o2770, exact=True), 0o027, 0o660, 0o2770, id="chosen"),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
async def test_permissions(tmp_path: Path, shared: bool, modes: Modes, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        kind = SharedDiskStorage if shared else DiskStorage
        storage = kind(tmp_path / "uploads", tmp_path / "notes", date_folders=True, modes=modes)
        await storage.open()
        part = await store(storage, "part", b"data")
        await storage.concatenate(replace(part, id="final"), [part], sync=True)
        await storage.save_completion_record(part)
        await storage.close()
    finally:
        os.umask(before)
    found = modes_below(tmp_path / "uploads")
    assert {name: mode for name, mode in found.items() if name.endswith(("part", "final"))} == {
        "2023/11/14/part": file,
        "2023/11/14/final": file,
    }
    assert {found[name] for name in (".", "2023", "2023/11", "2023/11/14")} == {folder}
    assert set(modes_below(tmp_path / "notes").values()) <= {0o600, 0o700}


# File systems that lack something.


@pytest.mark.parametrize("code", ["EINVAL", "EOPNOTSUPP", "EACCES", "EPERM", "ENOSYS"])
@pytest.mark.parametrize("shared", [False, True])
async def test_a_file_system_that_cannot_sync_directories_is_used_all_the_same_and_told_of(
    tmp_path: Path, os_faults: OSFaults, code: str, shared: bool
) -> None:
    os_faults.fail("fsync", "*/uploads", getattr(errno, code))
    kind = SharedDiskStorage if shared else DiskStorage
    storage = kind(tmp_path / "uploads", tmp_path / "notes")
    await storage.open()
    (limitation,) = storage.limitations
    assert "directories" in limitation
    complete = await store(storage, "upload", b"data")
    assert await content(storage, complete) == b"data"
    await storage.check()
    await storage.close()


async def test_a_file_system_that_cannot_sync_files_is_refused(tmp_path: Path, os_faults: OSFaults) -> None:
    os_faults.fail("fsync", "*/uploads/*", errno.EINVAL)
    storage = DiskStorage(tmp_path / "uploads")
    with pytest.raises(StorageUnavailable, match="cannot sync files"):
        await storage.open()
    await storage.close()
    assert os.listdir(tmp_path / "uploads") == []


async def test_a_system_without_fdatasync_and_copy_file_range_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "fdatasync")
    monkeypatch.delattr(os, "copy_file_range")
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    upload = await append(storage, UPLOAD, [b"data"], sync=True)
    await finish(storage, upload)
    parts = await partials(storage, b"one", b"two")
    await storage.concatenate(final_of(parts), parts, sync=True)
    assert await content(storage, final_of(parts)) == b"onetwo"
    await storage.close()


async def test_a_full_disk_can_be_opened(tmp_path: Path, os_faults: OSFaults) -> None:
    os_faults.fail("open,write", "*/uploads/*", errno.ENOSPC)
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    assert list(storage.limitations) == []
    await storage.close()
