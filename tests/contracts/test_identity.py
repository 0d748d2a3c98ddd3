"""Contract of every storage with an identity (`SupportsIdentity` in tusd_py/contracts/storage.py)."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.contracts.parts import Instances
from tusd_py.backends.disk.identity import IdentityFile
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.storage import Storage, SupportsConcatenation, SupportsIdentity
from tusd_py.core.errors import StorageBehind, UploadNotFound, WrongStorage
from tusd_py.core.storage_identity import parse_identity
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.testing.storage_helpers import UPLOAD, append, content, finish

IDENTITY, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


def identified(storage: Storage) -> SupportsIdentity:
    assert isinstance(storage, SupportsIdentity)
    return storage


async def with_identity(storage: Storage) -> SupportsIdentity:
    one = identified(storage)
    await one.create_identity(IDENTITY)
    one.expect_identity(IDENTITY)
    return one


async def test_a_storage_keeps_its_identity(storages: Instances[Storage], storage: Storage) -> None:
    one, other = identified(storage), identified(await storages.open())
    assert await one.read_identity() is None
    await one.create_identity(IDENTITY)
    assert await one.read_identity() == await other.read_identity() == IDENTITY
    await other.create_identity(OTHER)
    assert await one.read_identity() == IDENTITY
    await other.create_identity(OTHER, replace=True)
    assert await one.read_identity() == OTHER


async def test_of_several_who_make_an_identity_at_once_one_succeeds(storages: Instances[Storage]) -> None:
    several = [identified(await storages.open()) for _ in range(4)]
    ids = [f"{number:032x}" for number in range(4)]

    async def make(storage: SupportsIdentity, identity: str) -> str | None:
        await storage.create_identity(identity)
        return await storage.read_identity()

    found = await asyncio.gather(*map(make, several, ids))
    assert len(set(found)) == 1
    assert found[0] in ids


async def test_a_storage_proves_the_identity_that_is_expected_and_no_other(storages: Instances[Storage]) -> None:
    for expected in (IDENTITY, OTHER):
        storage = identified(await storages.open())
        await storage.create_identity(IDENTITY)
        await storage.prove_identity()  # nothing is expected yet
        storage.expect_identity(expected)
        if expected == IDENTITY:
            await storage.prove_identity()
            await storage.renew_identity()
            await storage.prove_identity()
        else:
            with pytest.raises(WrongStorage) as error:
                await storage.prove_identity()
            assert storage.what_to_check in error.value.explanation
            assert error.value.message != error.value.explanation


async def test_an_identity_belongs_to_no_upload(storage: Storage) -> None:
    await with_identity(storage)
    upload = await finish(storage, await append(storage, UPLOAD, [b"content"]))
    await storage.delete(upload)
    await identified(storage).prove_identity()


ABSENCES = ("looked at", "appended to", "completed", "read", "deleted", "concatenated")


async def conclude(storage: Storage, upload: Upload, absence: str) -> None:
    """Call the methods whose answers depend on the absence of bytes."""
    if absence == "looked at":
        assert await storage.stored_size(upload) == 0
    elif absence == "appended to":
        await append(storage, upload, [b"more"])
    elif absence == "completed":
        await storage.finish(upload, getattr(upload, "part_list", ()), sync=False)
    elif absence == "read":
        await content(storage, replace(upload, storage_state=await layout_when_complete(storage, upload)))
    elif absence == "deleted":
        await storage.delete(upload)
    else:
        assert isinstance(storage, SupportsConcatenation)
        final = replace(UPLOAD, id="final", concatenation=UploadKind.FINAL, partial_ids=(upload.id,))
        whole = replace(upload, storage_state=await layout_when_complete(storage, upload))
        await storage.concatenate(replace(final, length=7, offset=7), [whole], sync=False)


async def layout_when_complete(storage: Storage, upload: Upload) -> str:
    return '{"key":"nowhere","whole":true}' if isinstance(storage, S3Storage) else ""


@pytest.mark.parametrize("absence", ABSENCES)
async def test_absence_is_no_knowledge_in_another_storage(
    storages: Instances[Storage], storage: Storage, absence: str
) -> None:
    await with_identity(storage)
    upload = await append(storage, UPLOAD, [b"content"])
    await storage.delete(upload)
    wrong = await storages.open()
    identified(wrong).expect_identity(OTHER)
    with pytest.raises(WrongStorage):
        await conclude(wrong, upload, absence)


@pytest.mark.parametrize("absence", ABSENCES)
async def test_absence_is_knowledge_in_the_right_storage(
    storages: Instances[Storage], storage: Storage, absence: str
) -> None:
    await with_identity(storage)
    upload = await append(storage, UPLOAD, [b"content"])
    await storage.delete(upload)
    storage = await storages.open()
    identified(storage).expect_identity(IDENTITY)
    if absence in ("looked at", "deleted"):
        await conclude(storage, upload, absence)
        return
    with pytest.raises((StorageBehind, UploadNotFound)):
        await conclude(storage, upload, absence)


# Directories.

Mount: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture(params=["disk", "shared disk"])
async def directory_storage(request: pytest.FixtureRequest, tmp_path: Path) -> DiskStorage:
    directory = tmp_path / "uploads"
    if request.param == "disk":
        return DiskStorage(directory)
    return SharedDiskStorage(directory, directory / ".tusd-py" / "finished")


async def test_the_inode_of_the_directory_means_nothing(directory_storage: DiskStorage, tmp_path: Path) -> None:
    """On a network file system it can change, while every file stays where it is."""
    storage = directory_storage
    await storage.open()
    await with_identity(storage)
    upload = await append(storage, UPLOAD, [b"content"])
    shutil.copytree(tmp_path / "uploads", tmp_path / "copy")
    os.rename(tmp_path / "uploads", tmp_path / "away")
    os.rename(tmp_path / "copy", tmp_path / "uploads")
    await storage.prove_identity()
    assert await storage.stored_size(upload) == 7
    upload = await append(storage, upload, [b" more"])
    assert await append(storage, replace(UPLOAD, id="another"), [b"content"])
    assert await content(storage, await finish(storage, upload)) == b"content more"
    await storage.close()


async def test_nothing_is_written_beneath_a_mount_that_is_away(directory_storage: DiskStorage, tmp_path: Path) -> None:
    storage, uploads = directory_storage, tmp_path / "uploads"
    await storage.open()
    await with_identity(storage)
    upload = await append(storage, UPLOAD, [b"content"])
    os.rename(uploads, tmp_path / "away")
    (uploads / ".tusd-py").mkdir(parents=True)
    for one in (upload, UPLOAD, replace(UPLOAD, id="another")):
        with pytest.raises(WrongStorage):
            await append(storage, one, [b"more"])
        with pytest.raises(WrongStorage):
            await storage.finish(one, sync=False)
    with pytest.raises(WrongStorage):
        await storage.stored_size(upload)
    assert [path for path in uploads.rglob("*") if path.is_file()] == []
    shutil.rmtree(uploads)
    os.rename(tmp_path / "away", uploads)
    assert await storage.stored_size(upload) == 7
    assert await content(storage, await finish(storage, await append(storage, upload, [b" more"]))) == b"content more"
    await storage.close()


async def test_another_mount_with_an_identity_of_its_own_is_noticed(tmp_path: Path) -> None:
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    await with_identity(storage)
    await storage.prove_identity()
    os.rename(tmp_path / "uploads", tmp_path / "away")
    other = DiskStorage(tmp_path / "uploads")
    await other.open()
    await other.create_identity(OTHER)
    with pytest.raises(WrongStorage):
        await storage.prove_identity()
    await other.close()
    await storage.close()


async def test_an_identity_is_made_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    storage = DiskStorage(tmp_path / "uploads")
    await storage.open()
    await storage.create_identity(IDENTITY)
    assert await storage.read_identity() == IDENTITY
    assert sorted(path.name for path in (tmp_path / "uploads" / ".tusd-py").iterdir()) == ["identity"]
    await storage.close()


def expecting(directory: Path) -> IdentityFile:
    file = IdentityFile(directory, stays_mounted=True)
    file.create(IDENTITY)
    file.read()
    file.expect(IDENTITY)
    file.check()
    return file


def test_identity_that_another_thread_reads_again_is_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = expecting(tmp_path)
    read = file.read
    reading, judged = threading.Event(), threading.Event()
    other = threading.Thread(target=file.check)

    def read_late() -> str | None:
        reading.set()
        judged.wait(60)
        return read()

    def touched_meanwhile(*arguments: int) -> None:
        monkeypatch.setattr(file, "_refuse_other_mount", lambda *arguments: None)
        monkeypatch.setattr(file, "read", read_late)
        before = file._path.stat().st_ctime_ns
        while file._path.stat().st_ctime_ns == before:
            file.touch()
        other.start()
        assert reading.wait(60)

    monkeypatch.setattr(file, "_refuse_other_mount", touched_meanwhile)
    try:
        file.check()
    finally:
        judged.set()
        other.join()


def calls_of_stat(monkeypatch: pytest.MonkeyPatch, file: IdentityFile) -> int:
    calls, stat = list[str](), os.stat

    def counted(path: str) -> os.stat_result:
        calls.append(path)
        return stat(path)

    with monkeypatch.context() as counting:
        counting.setattr(os, "stat", counted)
        file.check()
    return len(calls)


def test_check_of_an_identity_needs_one_look_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls_of_stat(monkeypatch, expecting(tmp_path)) == 1


def test_check_of_an_identity_looks_at_the_directory_if_the_folder_is_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / "uploads" / ".tusd-py").symlink_to(tmp_path / "records")
    file = expecting(tmp_path / "uploads")
    assert calls_of_stat(monkeypatch, file) == 3
    monkeypatch.setattr(file, "_look_at_mounts", lambda: (1, 2, True))
    with pytest.raises(WrongStorage):
        file.check()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 33, b"0123", b"\xff" * 32, b"0123456789ABCDEF" * 2, b"../../etc/passwd"]
)
def test_malformed_identity_is_parsed_as_none(content: bytes) -> None:
    assert parse_identity(content) is None
    assert parse_identity(f"{IDENTITY}\n".encode()) == IDENTITY


def test_an_identity_that_another_process_writes_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = IdentityFile(tmp_path), IdentityFile(tmp_path)
    read = file.read

    def read_before_the_other_process_writes() -> str | None:
        monkeypatch.setattr(file, "read", read)
        other.create("a" * 32)
        return None

    monkeypatch.setattr(file, "read", read_before_the_other_process_writes)
    file.create("b" * 32)
    assert read() == "a" * 32
