"""Copies of files beside the other work of a storage: their threads, their room, their ends."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.stalls import OSFaults
from tests.support.timing import scaled
from tusd_py.backends.disk import storage as disk
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.core.errors import StorageFull, UploadError
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import append, content, final_of, partials

LARGE = bytes(range(256)) * 1000
TIMEOUT = scaled(30.0)  # seconds for anything that has to happen


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture(params=["disk", "shared-disk"])
async def storage(directory: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[DiskStorage]:
    shared = request.param == "shared-disk"
    storage = SharedDiskStorage(directory, tmp_path / "notes") if shared else DiskStorage(directory)
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make slices a kilobyte long."""
    monkeypatch.setattr("tusd_py.backends.disk.copying.SLICE_SIZE", 1000, raising=False)


class HeldCopies:
    """A `copy_file_range` whose calls wait until the test lets them continue."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._copy = os.copy_file_range
        self._free = threading.Event()
        self._passes = threading.Semaphore(0)
        monkeypatch.setattr(os, "copy_file_range", self._wait)

    def _wait(self, source: int, target: int, count: int, offset: int) -> int:
        self.calls += 1
        if not self._free.is_set():
            self._passes.acquire()
        return self._copy(source, target, count, offset)

    def let_one_pass(self) -> None:
        self._passes.release()

    def release(self) -> None:
        self._free.set()
        self._passes.release(1000)

    async def wait_for(self, calls: int) -> None:
        await eventually(lambda: self.calls >= calls)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, storage: DiskStorage) -> Iterator[HeldCopies]:
    held = HeldCopies(monkeypatch)
    yield held
    held.release()


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Make the file system report `free` bytes of room."""
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_blocks=1 << 30, f_bavail=free, f_frsize=1), raising=True
    )


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


def finals(parts: list[Upload], count: int) -> list[Upload]:
    return [replace(final_of(parts), id=f"final-{number}") for number in range(count)]


async def test_writes_and_looks_do_not_wait_for_copies(storage: DiskStorage, held: HeldCopies) -> None:
    parts = await partials(storage, LARGE)
    copies = [asyncio.ensure_future(storage.concatenate(final, parts, sync=False)) for final in finals(parts, 20)]
    await held.wait_for(2)
    async with asyncio.timeout(TIMEOUT):
        other = await append(storage, Upload(id="other", created_at=0.0), [b"small"], sync=True)
        assert await storage.stored_size(other) == 5
        assert await content(storage, parts[0]) == LARGE
    held.release()
    await asyncio.gather(*copies)


async def test_a_join_of_segments_does_not_hold_up_writes(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SharedDiskStorage(directory, tmp_path / "notes")
    await storage.open()
    joined = []
    for number in range(12):
        upload = Upload(id=f"taken-over-{number}", created_at=0.0)
        upload = await append(storage, upload, [b"one "], sync=False)
        writer = storage.writer(upload, 2, unreleased_predecessors=1)
        await writer.flush([b"two"], sync=False)
        await writer.close()
        joined.append(replace(upload, offset=7, length=7, storage_state=writer.snapshot().storage_state))
    held = HeldCopies(monkeypatch)
    try:
        joins = [asyncio.ensure_future(storage.finish(upload, sync=False)) for upload in joined]
        await held.wait_for(2)
        async with asyncio.timeout(TIMEOUT):
            await append(storage, Upload(id="other", created_at=0.0), [b"small"], sync=True)
    finally:
        held.release()
    assert await asyncio.gather(*joins) == [""] * 12
    assert await content(storage, replace(joined[0], storage_state="")) == b"one two"
    await storage.close()


async def test_a_small_copy_takes_its_turn_among_large_ones(
    storage: DiskStorage, held: HeldCopies, slices: None
) -> None:
    parts = await partials(storage, LARGE, b"small")
    copies = [asyncio.ensure_future(storage.concatenate(final, parts[:1], sync=False)) for final in finals(parts, 4)]
    await held.wait_for(2)
    small = asyncio.ensure_future(storage.concatenate(final_of(parts[1:]), parts[1:], sync=False))
    passed = 0
    while not small.done():
        passed += 1
        assert passed < 100, "the large copies go first"
        held.let_one_pass()
        await held.wait_for(2 + passed)
    held.release()
    await asyncio.gather(small, *copies)
    assert await content(storage, finals(parts, 1)[0].at(len(LARGE))) == LARGE


async def test_a_copy_without_room_writes_nothing(
    storage: DiskStorage, directory: Path, held: HeldCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.release()
    parts = await partials(storage, b"one ", b"two")
    before = files(directory)
    room(monkeypatch, 6)
    with pytest.raises(StorageFull):
        await storage.concatenate(final_of(parts), parts, sync=True)
    assert (held.calls, files(directory)) == (0, before)
    room(monkeypatch, 7)
    final = final_of(parts)
    final = replace(final, storage_state=await storage.concatenate(final, parts, sync=True))
    assert await content(storage, final) == b"one two"


async def test_the_room_of_a_copy_under_way_is_taken(
    storage: DiskStorage, held: HeldCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await partials(storage, LARGE)
    first, second = finals(parts, 2)
    room(monkeypatch, len(LARGE) * 3 // 2)
    copy = asyncio.ensure_future(storage.concatenate(first, parts, sync=False))
    await held.wait_for(1)
    with pytest.raises(StorageFull):
        await storage.concatenate(second, parts, sync=False)
    held.release()
    await copy
    await storage.concatenate(second, parts, sync=False)
    assert await content(storage, second) == LARGE


async def test_an_unknown_amount_of_room_stops_no_copy(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = await partials(storage, LARGE)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=1))
    await storage.concatenate(final_of(parts), parts, sync=False)
    assert await content(storage, final_of(parts)) == LARGE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_copy_that_runs_out_of_room_leaves_no_stump(
    storage: DiskStorage, directory: Path, monkeypatch: pytest.MonkeyPatch, slices: None, code: int
) -> None:
    parts = await partials(storage, LARGE)
    before = files(directory)
    copy, calls = os.copy_file_range, 0

    def run_out(source: int, target: int, count: int, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(code, os.strerror(code))
        return copy(source, target, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", run_out)
        with pytest.raises(StorageFull):
            await storage.concatenate(final_of(parts), parts, sync=True)
    assert calls == 6
    assert files(directory) == before
    await storage.concatenate(final_of(parts), parts, sync=True)
    assert await content(storage, final_of(parts)) == LARGE


async def test_a_copy_whose_sync_fails_leaves_no_file(
    storage: DiskStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await partials(storage, LARGE)
    before = files(directory)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(UploadError):
            await storage.concatenate(final_of(parts), parts, sync=True)
    assert files(directory) == before


async def test_a_cancelled_copy_ends_after_its_slice_and_leaves_nothing(
    storage: DiskStorage, directory: Path, held: HeldCopies, slices: None
) -> None:
    parts = await partials(storage, LARGE)
    before = files(directory)
    copy = asyncio.ensure_future(storage.concatenate(final_of(parts), parts, sync=False))
    await held.wait_for(1)
    for _ in range(3):  # however often it is cancelled, it ends no earlier than what it does in its thread
        copy.cancel()
        await asyncio.sleep(0.02)
        assert not copy.done()
    held.release()
    with pytest.raises(asyncio.CancelledError):
        await copy
    assert held.calls <= 2
    assert files(directory) == before


async def test_closing_does_not_wait_for_the_whole_copy(
    storage: DiskStorage, directory: Path, held: HeldCopies, slices: None
) -> None:
    parts = await partials(storage, LARGE)
    before = files(directory)
    copies = [asyncio.ensure_future(storage.concatenate(final, parts, sync=False)) for final in finals(parts, 3)]
    await held.wait_for(2)
    closing = asyncio.ensure_future(storage.close())
    await asyncio.sleep(0.02)
    held.release()
    await closing
    for copy in copies:
        with pytest.raises(UploadError):
            await copy
    assert held.calls <= 6
    assert files(directory) == before
    await storage.open()


async def test_a_finished_file_stays_until_its_copy_is_whole(
    storage: DiskStorage, directory: Path, held: HeldCopies
) -> None:
    parts = await partials(storage, b"one ", b"two")
    held.release()
    final = final_of(parts)
    await storage.concatenate(final, parts, sync=False)
    with pytest.raises(UploadError):
        await storage.concatenate(final, [*parts, Upload(id="gone", created_at=0.0, offset=3)], sync=False)
    assert await content(storage, final) == b"one two"


async def test_rest_of_a_killed_copy_is_removed_with_the_upload(tmp_path: Path, directory: Path) -> None:
    storage = DiskStorage(directory)
    await storage.open()
    parts = await partials(storage, b"one")
    final = final_of(parts)
    stump = disk._unfinished(storage.path(final))
    stump.write_bytes(b"longer than one")
    await storage.concatenate(final, parts, sync=False)
    assert await content(storage, final) == b"one"
    stump.write_bytes(b"again")
    await storage.delete(final)
    assert files(directory) == {parts[0].id}
    await storage.close()


def test_a_storage_whose_copy_lost_its_event_loop_closes_once_the_thread_has_ended(
    directory: Path, os_faults: OSFaults
) -> None:
    """A loop that is closed cancels nothing: its tasks never end, only their threads do."""
    storage = DiskStorage(directory)
    stall = os_faults.stall("copy_file_range", "*")
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[str]:
        await storage.open()
        parts = await partials(storage, LARGE)
        copy = asyncio.create_task(storage.concatenate(final_of(parts), parts, sync=False))
        await asyncio.to_thread(stall.wait)
        return copy

    copy = loop.run_until_complete(begin())
    loop.close()
    assert not asyncio.run(storage.close(0.1))
    stall.lift()
    assert asyncio.run(storage.close(TIMEOUT))
    assert not copy.done()
