"""Failures of files, and the particulars of storage in files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.stalls import OSFaults
from tests.support.timing import scaled
from tusd_py.backends.disk.storage import THREADS, DiskStorage
from tusd_py.backends.disk.writer import DiskWriter
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import PartBehind, StorageBehind, StorageFull, StorageUnavailable, UploadError, UploadNotFound
from tusd_py.core.upload import Status, Upload
from tusd_py.testing.storage_helpers import append, assert_takes_no_more, content, final_of, finish, partials, store
from tusd_py.transfer.socket_turn import MIN_TURN, SocketTurn

IDENTITY = "0123456789abcdef" * 2
UPLOAD = Upload(id="upload", created_at=1_700_000_000.0)  # 2023-11-14 in UTC
NO_ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
async def storage(directory: Path) -> AsyncIterator[DiskStorage]:
    storage = DiskStorage(directory)
    await storage.open()
    yield storage
    await storage.close()


# Where files are.


async def test_a_file_is_made_with_the_first_bytes(storage: DiskStorage, directory: Path) -> None:
    writer = storage.writer(replace(UPLOAD, length=1 << 40), 1)
    await writer.flush(sync=True)
    assert os.listdir(directory) == []
    await writer.flush([b"abc"], sync=True)
    await writer.close()
    assert os.listdir(directory) == [UPLOAD.id]


async def test_a_file_is_made_with_the_first_bytes_that_a_thread_receives(
    storage: DiskStorage, directory: Path
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        writer = storage.writer(replace(UPLOAD, length=1 << 40), 1)
        for sent, files in ((b"", []), (b"abc", [UPLOAD.id])):
            theirs.sendall(sent)
            turn = SocketTurn.of(ours, MIN_TURN, 0)
            assert turn is not None
            await writer.receive([], turn)
            turn.close()
            assert turn.received == len(sent)
            assert os.listdir(directory) == files
        await writer.close()
    assert await content(storage, replace(UPLOAD, offset=3)) == b"abc"


async def test_a_writer_stores_what_it_has_if_others_have_taken_the_last_thread_to_receive_in(
    storage: DiskStorage,
) -> None:
    turn: Any = SimpleNamespace(in_use=False)  # asked for while a thread was spare
    release = threading.Event()
    others = [storage.receiving.run(release.wait) for _ in range(THREADS)]
    writer = storage.writer(UPLOAD, 1)
    try:
        async with asyncio.timeout(scaled(10)):
            await writer.receive([b"abc"], turn)
        assert writer.snapshot().offset == 3
        assert not turn.in_use
    finally:
        release.set()
        await asyncio.gather(*others)
        await writer.close()


async def test_a_writer_stores_what_it_has_if_no_thread_can_be_started_to_receive_in(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    turn: Any = SimpleNamespace(in_use=False)
    writer = storage.writer(UPLOAD, 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        await writer.receive([b"abc"], turn)
    assert writer.snapshot().offset == 3
    assert not turn.in_use
    await writer.close()


async def test_a_connection_is_not_in_use_if_a_thread_could_not_begin_with_it(storage: DiskStorage) -> None:
    class Turn(contextlib.ExitStack):
        in_use = False
        splices = True

        def __enter__(self) -> Turn:
            raise MemoryError

    turn: Any = Turn()
    writer = storage.writer(UPLOAD, 1)
    with pytest.raises(StorageUnavailable):
        await writer.receive([], turn)
    assert not turn.in_use
    await writer.close()


async def test_folders_by_the_day_of_creation(directory: Path) -> None:
    storage = DiskStorage(directory, date_folders=True)
    await storage.open()
    uploads = {
        "2023/11/14/upload": UPLOAD,
        "2024/02/29/leap": Upload(id="leap", created_at=1_709_251_199.9),
        "1970/01/01/first": Upload(id="first", created_at=0.0),
    }
    for name, upload in uploads.items():
        complete = await finish(storage, await append(storage, upload, [b"content"], sync=True))
        assert (directory / name).read_bytes() == b"content"
        await storage.delete(complete)
        assert not (directory / name).exists()
    await storage.close()


@pytest.mark.parametrize(
    "upload_id",
    ["", ".", "..", "../outside", "/etc/outside", "a/b", "a/../../outside", ".hidden", "..//outside", "./a"],
)
@pytest.mark.parametrize("date_folders", [False, True])
async def test_an_id_cannot_leave_the_directory(tmp_path: Path, upload_id: str, date_folders: bool) -> None:
    directory = tmp_path / "uploads"
    storage = DiskStorage(directory, date_folders=date_folders)
    await storage.open()
    outside = tmp_path / "outside"
    outside.write_bytes(b"private")
    upload = replace(UPLOAD, id=upload_id, length=7, offset=7)
    with pytest.raises(UploadNotFound):
        storage.writer(upload, 1)
    for refused in (
        storage.stored_size(upload),
        storage.finish(upload, sync=False),
        storage.delete(upload),
        storage.concatenate(upload, [], sync=False),
        storage.concatenate(UPLOAD, [upload], sync=False),
        content(storage, upload),
    ):
        with pytest.raises(UploadNotFound):
            await refused
    await storage.close()
    assert outside.read_bytes() == b"private"
    assert sorted(os.listdir(tmp_path)) == ["outside", "uploads"]
    assert os.listdir(directory) == []


# Directories that cannot be used.


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "a-loop"])
async def test_a_directory_that_cannot_be_used(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-loop").symlink_to(tmp_path / "a-loop")
    storage = DiskStorage(tmp_path / place)
    with pytest.raises(StorageUnavailable):
        await storage.open()
    await storage.close()


async def test_a_directory_without_permission(
    storage: DiskStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for the administrator it would be true
    denied = DiskStorage(directory)
    with pytest.raises(StorageUnavailable):
        await denied.open()
    await denied.close()


@pytest.mark.parametrize("left", ["nothing", "an empty directory"])
async def test_a_directory_that_went_away_is_no_reason_to_begin_anew(
    storage: DiskStorage, directory: Path, left: str
) -> None:
    """A disk that was unmounted, say: nothing is written to what is beneath, and no offset goes back."""
    await storage.create_identity(IDENTITY)
    storage.expect_identity(IDENTITY)
    upload = await append(storage, UPLOAD, [b"content"])
    away = directory.with_name("away")
    os.rename(directory, away)
    if left == "an empty directory":
        os.mkdir(directory)
    with pytest.raises(StorageUnavailable):
        await storage.stored_size(upload)
    with pytest.raises(StorageUnavailable):
        await append(storage, upload, [b"more"])
    with pytest.raises(StorageUnavailable):
        await append(storage, replace(UPLOAD, id="another"), [b"content"])
    if left == "an empty directory":
        assert os.listdir(directory) == []
        os.rmdir(directory)
    os.rename(away, directory)
    assert await storage.stored_size(upload) == 7


async def test_files_that_are_written_piece_by_piece_are_whole(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may take a part of the bytes without an error: a completion record is no less for that."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    storage = DiskStorage(directory, tmp_path / "finished")
    await storage.open()
    await storage.create_identity(IDENTITY)
    assert await storage.read_identity() == IDENTITY
    await store(storage, UPLOAD.id, b"content")
    complete = replace(UPLOAD, length=7, offset=7, status=Status.COMPLETE)
    await storage.save_completion_record(complete)
    assert await storage.load_completion_record(UPLOAD.id) == complete
    await storage.close()


async def test_something_else_in_place_of_the_file(storage: DiskStorage, directory: Path) -> None:
    (directory / UPLOAD.id).mkdir()
    writer = storage.writer(UPLOAD, 1)
    with pytest.raises(StorageUnavailable):
        await writer.flush([b"abc"], sync=False)
    assert writer.snapshot().offset == 0
    await assert_takes_no_more(writer)
    await writer.close()
    parts = await partials(storage, b"one")
    for failing in (
        storage.finish(UPLOAD, sync=False),
        storage.delete(UPLOAD),
        storage.concatenate(replace(final_of(parts), id=UPLOAD.id), parts, sync=False),
        storage.concatenate(final_of([UPLOAD.at(5)]), [UPLOAD.at(5)], sync=False),
    ):
        with pytest.raises(StorageUnavailable):
            await failing


async def test_a_file_that_was_cut_off(storage: DiskStorage, directory: Path) -> None:
    upload = await store(storage, UPLOAD.id, b"0123456789")
    os.truncate(directory / upload.id, 4)
    with pytest.raises(StorageUnavailable):
        await content(storage, upload)
    with pytest.raises(PartBehind) as raised:
        await storage.concatenate(final_of([upload]), [upload], sync=False)
    assert (raised.value.upload_id, raised.value.stored) == (upload.id, 4)


# Faults of the device.

PWritev = Callable[[int, Sequence[Buffer], int], int]


def failing_after(room: int, code: int) -> PWritev:
    """Return a `pwritev` that writes what fits into `room` bytes, as file systems do, and then fails."""
    pwritev: PWritev = os.pwritev

    def write(descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        left = room - offset
        if left <= 0:
            raise OSError(code, os.strerror(code))
        return pwritev(descriptor, [b"".join(buffers)[:left]], offset)

    return write


@pytest.mark.parametrize(
    ("code", "error"), [*((code, StorageFull) for code in NO_ROOM), (errno.EIO, StorageUnavailable)]
)
@pytest.mark.parametrize("room", [4, 5, 6, 9, 10, 11])
@pytest.mark.parametrize("ending", ["write", "flush", "finish"])
async def test_a_write_that_fails_half_way(
    storage: DiskStorage,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: type[UploadError],
    room: int,
    ending: str,
) -> None:
    upload = await append(storage, UPLOAD, [b"0123"])
    writer = storage.writer(upload, 1)
    last = [b"ab", b"cd"]

    async def write() -> None:
        await writer.write([b"45", b"6789"])
        if ending == "write":
            await writer.write(last)
            await writer.flush(sync=True)
        elif ending == "flush":
            await writer.flush(last, sync=True)
        else:
            await writer.finish(last, sync=True)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing_after(room, code))
        with pytest.raises(error):
            await write()
        assert writer.snapshot().offset == room
    await assert_takes_no_more(writer)  # there is room again, but these bytes would not follow the ones before
    assert writer.snapshot().offset == room
    await writer.close()
    assert await storage.stored_size(upload) == room
    upload = await append(storage, upload.at(room), [b"!"])
    assert await content(storage, await finish(storage, upload)) == b"0123456789abcd"[:room] + b"!"


async def test_rest_of_a_failed_write_can_be_discarded(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await append(storage, UPLOAD, [b"0123"])
    writer = storage.writer(upload, 1)
    monkeypatch.setattr(os, "pwritev", failing_after(6, errno.ENOSPC))
    with pytest.raises(StorageFull):
        await writer.flush([b"456789"], sync=False)
    await writer.discard(4)
    await writer.close()
    assert await storage.stored_size(upload) == 4


@pytest.mark.parametrize("cause", ["wrong checksum", "bytes after the committed ones"])
async def test_a_cut_is_synced_before_other_bytes_follow(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    calls: list[str] = []
    writer = storage.writer(UPLOAD, 1)
    await writer.flush([b"wrong"], sync=False)
    if cause != "wrong checksum":
        await writer.close()
        writer = storage.writer(UPLOAD, 2)
    for name in ("ftruncate", "fdatasync", "pwritev"):
        watch_calls(monkeypatch, name, calls)

    if cause == "wrong checksum":
        await writer.discard(0)
    await writer.flush([b"right"], sync=False)
    await writer.close()

    assert calls == ["ftruncate", "fdatasync", "pwritev"]


def watch_calls(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[str]) -> None:
    real = getattr(os, name)

    def call(*arguments: object) -> object:
        calls.append(name)
        return real(*arguments)

    monkeypatch.setattr(os, name, call)


async def test_an_upload_at_zero_is_not_removed_from_another_directory(storage: DiskStorage, directory: Path) -> None:
    await storage.create_identity(IDENTITY)
    storage.expect_identity(IDENTITY)
    writer = storage.writer(UPLOAD, 1)
    await writer.flush([b"never committed"], sync=True)
    await writer.close()
    away = await asyncio.to_thread(directory.rename, directory.with_name("away"))
    await asyncio.to_thread(directory.mkdir)

    with pytest.raises(StorageUnavailable):
        await storage.delete(UPLOAD)

    await asyncio.to_thread(directory.rmdir)
    await asyncio.to_thread(away.rename, directory)
    await storage.delete(UPLOAD)
    assert not (directory / UPLOAD.id).exists()


async def test_short_writes_are_continued(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev: PWritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwritev(fd, [b"".join(buffers)[:5]], offset))
    upload = await append(storage, UPLOAD, [b"0123456789", b"", b"abc", bytearray(b"defghij"), b"k"], [b"lm"])
    assert await content(storage, await finish(storage, upload)) == b"0123456789abcdefghijklm"


async def finish_writing(writer: DiskWriter) -> None:
    await writer.finish([b"more"], sync=True)


async def flush(writer: DiskWriter) -> None:
    await writer.flush([b"more"], sync=True)


async def sync(writer: DiskWriter) -> None:
    await writer.flush(sync=True)


@pytest.mark.parametrize("end", [finish_writing, flush, sync])
async def test_a_sync_that_failed_is_not_made_good_by_another(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, end: Callable[[DiskWriter], Awaitable[None]]
) -> None:
    """The kernel reports lost pages once: the next sync succeeds without them."""
    failures = 0

    def fail_once(descriptor: int) -> None:
        nonlocal failures
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return  # the folder, after the file was removed from it
        failures += 1
        if failures == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail_once)
    monkeypatch.setattr(os, "fsync", fail_once)
    writer = storage.writer(UPLOAD, 1)
    await writer.write([b"abc"])
    for _ in range(2):
        with pytest.raises(StorageBehind) as raised:
            await end(writer)
        assert raised.value.stored == 0
    assert failures == 1
    await writer.close()
    assert await storage.stored_size(UPLOAD.at(3)) == 0
    with pytest.raises(StorageBehind):
        await storage.finish(UPLOAD.at(3), sync=True)


@pytest.mark.parametrize("date_folders", [False, True])
async def test_the_first_sync_of_a_file_includes_its_folders_whoever_created_it(
    directory: Path, os_faults: OSFaults, date_folders: bool
) -> None:
    """The first bytes came while the durability was another one."""
    storage = DiskStorage(directory, date_folders=date_folders)
    await storage.open()
    upload = await append(storage, UPLOAD, [b"abc"], sync=False)
    await storage.close()
    storage = DiskStorage(directory, date_folders=date_folders)
    await storage.open()
    stalls = [os_faults.stall("fsync", str(folder), times=1) for folder in storage.files.folders(storage.path(upload))]
    appending = asyncio.create_task(append(storage, upload, [b"def"], sync=True))
    for stall in stalls:
        await asyncio.to_thread(stall.wait)
        stall.lift()
    upload = await appending
    folder_syncs = os_faults.fail("fsync", f"{directory}*")
    await append(storage, upload, [b"ghi"], sync=True)  # data alone
    assert not folder_syncs.hits
    await storage.close()


async def test_an_observer_that_fails_leaves_no_gap(storage: DiskStorage) -> None:
    def observe(data: Buffer) -> None:
        if data == b"bad":
            raise ValueError("not these")

    writer = storage.writer(UPLOAD, 1, observe)
    await writer.write([b"good"])
    await writer.write([b"bad"])
    for _ in range(2):
        with pytest.raises((ValueError, UploadError)):
            await writer.write([b"more"])
    with pytest.raises((ValueError, UploadError)):
        await writer.flush(sync=False)
    assert writer.snapshot().offset == 4
    await writer.close()
    assert await storage.stored_size(UPLOAD) == 4


async def test_reading_from_a_device_that_fails(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await store(storage, UPLOAD.id, b"content")

    def fail(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StorageUnavailable):
        await content(storage, upload)


@pytest.mark.parametrize("code", NO_ROOM)
async def test_concatenating_without_room(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    parts = await partials(storage, b"one ", b"two")

    def fail(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fail)
        with pytest.raises(StorageFull):
            await storage.concatenate(final_of(parts), parts, sync=False)
    await storage.concatenate(final_of(parts), parts, sync=False)
    assert await content(storage, final_of(parts)) == b"one two"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, None])
async def test_concatenating_where_the_kernel_does_not_copy(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    parts = await partials(storage, b"one ", b"x" * 3_000_000, b"two")

    def fail(*arguments: object) -> int:
        assert code is not None
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", fail)
    await storage.concatenate(final_of(parts), parts, sync=False)
    assert await content(storage, final_of(parts)) == b"one " + b"x" * 3_000_000 + b"two"


async def test_concatenating_when_the_kernel_stops_copying_half_way(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range
    calls = 0

    def copy_a_little(source: int, target: int, count: int, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return copy(source, target, min(count, 2), offset)

    monkeypatch.setattr(os, "copy_file_range", copy_a_little)
    parts = await partials(storage, b"0123456789", b"abcdefghij")
    await storage.concatenate(final_of(parts), parts, sync=False)
    assert await content(storage, final_of(parts)) == b"0123456789abcdefghij"


def open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    found = []
    for descriptor in folder.iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            found.append(os.readlink(descriptor))
    return found


async def test_a_read_that_is_cancelled_while_its_file_is_opened_leaves_no_descriptor(
    storage: DiskStorage, os_faults: OSFaults
) -> None:
    upload = await finish(storage, await append(storage, UPLOAD, [b"content"], sync=True))
    stall = os_faults.stall("open", "*/upload")
    readers = [asyncio.create_task(content(storage, upload)) for _ in range(20)]
    await asyncio.to_thread(stall.wait)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    stall.lift()
    for _ in range(2):  # what was opened first, then what closes it
        await storage.close()
        await asyncio.sleep(0)
    assert str(storage.path(upload)) not in open_files()
