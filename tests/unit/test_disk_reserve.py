"""The watch over free space: judged by the last measurement, which never keeps a creation waiting."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from tests.support.timing import TIMEOUT
from tusd_py import InvalidSettings, TusServer
from tusd_py.core.errors import StorageFull
from tusd_py.testing import MemoryStorage
from tusd_py.uploads import disk_reserve
from tusd_py.uploads.disk_reserve import DiskReserve


class Disk:
    """A file system whose free space the test sets; measuring may hang or fail."""

    def __init__(self) -> None:
        self.free: int | OSError = 100
        self.answers = threading.Event()
        self.answers.set()
        self.begun = 0  # measurements

    def free_space(self) -> int:
        self.begun += 1
        assert threading.current_thread() is not threading.main_thread()
        assert self.answers.wait(TIMEOUT)
        if isinstance(self.free, OSError):
            raise self.free
        return self.free


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def reserve(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DiskReserve]:
    monkeypatch.setattr(disk_reserve, "INTERVAL", 0.01)
    reserve = DiskReserve(disk, 100)
    yield reserve
    disk.answers.set()
    await reserve.close()


async def refuses(reserve: DiskReserve) -> bool:
    try:
        await reserve.refuse_if_low()
    except StorageFull:
        return True
    return False


async def until_refused(reserve: DiskReserve) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await refuses(reserve):  # noqa: ASYNC110 - it is measured in another thread
            await asyncio.sleep(0.01)


async def until_taken(reserve: DiskReserve) -> None:
    async with asyncio.timeout(TIMEOUT):
        while await refuses(reserve):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_first_creation_is_judged_by_a_measurement(disk: Disk, reserve: DiskReserve) -> None:
    disk.free = 99
    with pytest.raises(StorageFull, match="too little free space"):
        await reserve.refuse_if_low()


async def test_creations_follow_the_free_space_and_the_log_tells_both_changes(
    disk: Disk, reserve: DiskReserve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await reserve.refuse_if_low()
    disk.free = 99
    await until_refused(reserve)
    disk.free = 100
    await until_taken(reserve)
    await reserve.close()  # the line follows the measurement, in its thread
    assert [record.levelname for record in caplog.records if record.name == "tusd_py.storage"] == ["WARNING", "INFO"]


@pytest.mark.parametrize("free", [99, 100])
async def test_a_file_system_that_hangs_or_fails_leaves_the_last_measurement(
    disk: Disk, reserve: DiskReserve, free: int
) -> None:
    disk.free = free
    judge = until_refused if free < 100 else until_taken
    await judge(reserve)
    disk.free = OSError("no such mount")
    begun = disk.begun
    async with asyncio.timeout(TIMEOUT):
        while disk.begun < begun + 2:  # noqa: ASYNC110 - one may have begun before the change
            await asyncio.sleep(0.01)
    await judge(reserve)
    disk.answers.clear()
    for _ in range(10):
        await judge(reserve)


async def test_creations_that_wait_for_the_first_measurement_hold_no_thread(
    disk: Disk, reserve: DiskReserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of the event loop also hash and sync; a file system that hangs must not take them away."""
    monkeypatch.setattr(disk_reserve, "FIRST_TIMEOUT", TIMEOUT)
    disk.answers.clear()
    disk.free = 99
    creations = [asyncio.create_task(refuses(reserve)) for _ in range(100)]
    async with asyncio.timeout(TIMEOUT):
        while not disk.begun:  # noqa: ASYNC110 - it is measured in another thread
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(lambda: 1)
    assert not any(creation.done() for creation in creations)
    disk.answers.set()
    assert all(await asyncio.gather(*creations))


async def test_creations_are_taken_if_the_first_measurement_hangs(
    disk: Disk, reserve: DiskReserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_reserve, "FIRST_TIMEOUT", 0.01)
    disk.answers.clear()
    disk.free = 99
    assert not await refuses(reserve)


async def test_the_thread_ends_with_the_service_and_begins_again(disk: Disk, reserve: DiskReserve) -> None:
    def running() -> bool:
        return any(thread.name == "tusd-py-reserve" for thread in threading.enumerate())

    assert not running()
    for _ in range(2):
        await reserve.refuse_if_low()
        assert running()
        await reserve.close()
        assert not running()


async def test_a_reserve_of_a_storage_without_free_space_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="reserve_disk"):
        TusServer(storage=MemoryStorage(), reserve_disk="1GiB")


async def test_a_watch_for_which_no_thread_could_be_started_begins_with_a_later_creation(
    reserve: DiskReserve, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    disk.free = 99
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            await reserve.refuse_if_low()
    assert await refuses(reserve)
