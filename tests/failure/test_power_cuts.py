"""Power cuts: after the next boot only bytes that were synced count, and a clean stop proves all of them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.services import Body
from tests.support.wire.messages import MEBI, payload
from tests.support.wire.requests import assert_content, complete, create, head, offset_of, patch
from tusd_py.backends.disk import file_system_sync
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.composition import build_service
from tusd_py.contracts.hooks import HookCall
from tusd_py.core import clock
from tusd_py.core.durability import BOOT
from tusd_py.core.errors import ClientDisconnected, HookUnavailable, StateFull, StorageUnavailable
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import close_service, open_service
from tusd_py.settings.sources import from_arguments
from tusd_py.sinks import build_hooks
from tusd_py.uploads.power_cuts import SYNCED
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

DATA = payload(3 * MEBI + 77)
HALF = len(DATA) // 2
ERA = clock.SystemClock().era()
UPLOAD = Upload(id="unfinished", created_at=1_700_000_000.0, length=10, offset=5, location=".")

needs_boot_id = pytest.mark.skipif(not ERA, reason="the system has no id of its boot")
pytestmark = needs_boot_id


def read(uploads: Path) -> str | None:
    with closing(sqlite3.connect(uploads / ".tusd-py" / "uploads.sqlite3")) as connection:
        row = connection.execute("SELECT value FROM metadata WHERE name = ?", (BOOT,)).fetchone()
    return None if row is None else str(row[0])


def boot_of(note: str | None) -> str | None:
    return None if note is None else note.partition(" ")[0]


def come_from_an_earlier_boot(uploads: Path) -> None:
    """Have the records tell that servers of an earlier boot did not stop cleanly."""
    with closing(sqlite3.connect(uploads / ".tusd-py" / "uploads.sqlite3")) as connection, connection:
        changed = connection.execute("UPDATE metadata SET value = 'an earlier boot' WHERE name = ?", (BOOT,))
        assert changed.rowcount == 1


@pytest.mark.parametrize("durability", ["complete", "always", "never"])
def test_an_unfinished_upload_goes_back_to_its_synced_bytes_after_a_power_cut(tmp_path: Path, durability: str) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads, durability="complete") as server:  # which accounts for its boot
        path = create(server.port, len(DATA))
    with ServerProcess(uploads, durability=durability) as server:
        assert patch(server.port, path, 0, DATA[:HALF]).status == 204
        server.kill()
    come_from_an_earlier_boot(uploads)
    if durability == "complete":
        file = uploads / path.rpartition("/")[2]
        with file.open("r+b") as damaged:  # the size of the file was stored, and its last bytes were not
            damaged.seek(HALF - 100)
            damaged.write(bytes(100))
    with ServerProcess(uploads, durability=durability) as server:
        assert offset_of(server.port, path) == (0 if durability == "complete" else HALF)
        complete(server.port, path, DATA)
        assert_content(server.port, path, DATA)


def test_a_recording_keeps_every_acknowledged_byte_over_a_power_cut(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads) as server:
        path = create(server.port, None)
        assert patch(server.port, path, 0, DATA[:HALF]).status == 204
        server.kill()
    come_from_an_earlier_boot(uploads)
    with ServerProcess(uploads) as server:
        assert offset_of(server.port, path) == HALF


@pytest.mark.parametrize("workers", [1, 3])
def test_a_server_that_is_killed_takes_no_byte_back_in_the_same_boot(tmp_path: Path, workers: int) -> None:
    with ServerProcess(tmp_path / "uploads", workers=workers) as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:HALF]).status == 204
        server.kill()
        server.restart()
        assert offset_of(server.port, path) == HALF
        assert boot_of(read(server.upload_dir)) == ERA


@pytest.mark.parametrize("workers", [1, 3])
def test_a_server_that_is_stopped_cleanly_takes_no_byte_back_after_the_next_boot(tmp_path: Path, workers: int) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads, workers=workers) as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:HALF]).status == 204
    assert read(uploads) == SYNCED
    with ServerProcess(uploads, workers=workers) as server:
        assert head(server.port, path).offset == HALF
        assert boot_of(read(uploads)) == ERA


# The account of one boot, with services in this process.


class Hosts:
    """Services on one directory, as in several processes, and the id of the boot that they see."""

    def __init__(self, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uploads = uploads
        self._monkeypatch = monkeypatch
        self._services: list[UploadService] = []
        self.settings = from_arguments({"upload_dir": uploads})

    def boot(self, name: str) -> None:
        self._monkeypatch.setattr(clock, "_boot_id", lambda: name)

    async def start(self, hooks: object | None = None) -> UploadService:
        service = build_service(self.settings, EventBus(), hooks=build_hooks(self.settings, hooks))
        await open_service(service, self.settings)
        self._services.append(service)
        return service

    async def stop(self, service: UploadService) -> None:
        self._services.remove(service)
        assert await close_service(service)

    def forget(self, service: UploadService) -> None:
        self._services.remove(service)

    async def stop_all(self) -> None:
        for service in list(self._services):
            await self.stop(service)


@pytest.fixture
async def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hosts]:
    hosts = Hosts(tmp_path / "uploads", monkeypatch)
    hosts.boot("first")
    yield hosts
    await hosts.stop_all()


async def dies(hosts: Hosts, service: UploadService) -> None:
    """Stop a service without its farewell, as a power cut does."""

    async def leave(timeout: float) -> None: ...

    service.power_cuts.leave = leave  # type: ignore[method-assign]
    await hosts.stop(service)


async def test_every_unfinished_upload_goes_back_and_no_other(hosts: Hosts) -> None:
    service = await hosts.start()
    kept = {
        "synced": replace(UPLOAD, id="synced", synced=5),
        "complete": replace(UPLOAD, id="complete", offset=10, status=Status.COMPLETE, completed_at=1.0),
        "final": replace(
            UPLOAD,
            id="final",
            offset=10,
            status=Status.FINISHING,
            concatenation=UploadKind.FINAL,
            partial_ids=("complete",),
        ),
        "ended": replace(UPLOAD, id="ended", status=Status.TERMINATED),
    }
    back = {
        "unfinished": UPLOAD,
        "partly": replace(UPLOAD, id="partly", synced=3, expires_at=5e9),
        "finishing": replace(UPLOAD, id="finishing", offset=10, synced=2, status=Status.FINISHING),
        "of a newer token": replace(UPLOAD, id="newer", token=5_000_000),
    }
    for upload in (*kept.values(), *back.values()):
        await service.state.create(upload)
    await dies(hosts, service)
    hosts.boot("second")
    service = await hosts.start()
    for upload in kept.values():
        assert await service.state.get(upload.id) == upload
    for upload in back.values():
        found = await service.state.get(upload.id)
        assert found is not None
        assert (found.offset, found.synced, found.status) == (upload.synced, upload.synced, Status.ACTIVE)
        assert found.token >= upload.token
    partly = await service.state.get("partly")
    assert partly is not None
    assert partly.expires_at == 5e9
    assert boot_of(await service.state.read_metadata(BOOT)) == "second"


class AwayApplication:
    """An application that cannot be asked whether an upload may become complete."""

    async def pre_finish(self, call: HookCall) -> None:
        raise ConnectionError


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("with_creation", [False, True])
async def test_an_upload_that_waits_for_the_application_keeps_its_bytes(
    hosts: Hosts, is_small: bool, with_creation: bool
) -> None:
    service = await hosts.start(AwayApplication())
    request = AppendRequest(0, Body(b"0123456789", arrived=is_small, breaks_off=not is_small))
    new = NewUpload(10)
    with suppress(HookUnavailable, ClientDisconnected):
        if with_creation:
            await service.create_with(new, request)
        else:
            await service.append((await service.create(new)).id, request)
    (waiting,) = [upload async for upload in service.state.all()]
    assert waiting.status is Status.FINISHING
    await dies(hosts, service)
    hosts.boot("second")
    service = await hosts.start()
    after = await service.state.get(waiting.id)
    assert after is not None
    assert (after.status, after.offset) == (Status.FINISHING, 10)
    assert (await service.inspect(waiting.id)).is_complete


async def test_bytes_of_a_server_that_synced_nothing_are_not_trusted_after_a_power_cut(hosts: Hosts) -> None:
    """The stop before had proved all bytes of that time, and no later ones."""
    await hosts.stop(await hosts.start())
    usual, hosts.settings = hosts.settings, from_arguments({"upload_dir": hosts.uploads, "durability": "never"})
    service = await hosts.start()
    await service.state.create(UPLOAD)
    await dies(hosts, service)
    hosts.boot("second")
    service = await hosts.start()
    assert await service.state.get(UPLOAD.id) == UPLOAD  # it is left to the kernel
    await hosts.stop(service)
    hosts.settings = usual
    service = await hosts.start()
    found = await service.state.get(UPLOAD.id)
    assert found is not None
    assert found.offset == 0


async def test_a_note_that_found_no_room_is_written_by_a_sweep(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> bool:
        raise StateFull

    with monkeypatch.context() as full:
        full.setattr(SQLiteState, "write_metadata", refuse)
        service = await hosts.start()
        await Sweeper(service).sweep()
        assert read(hosts.uploads) is None
    await Sweeper(service).sweep()
    assert boot_of(read(hosts.uploads)) == "first"


def test_an_error_of_reading_the_id_of_the_boot_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock._read_boot_id.cache_clear()
    with monkeypatch.context() as failing:
        failing.setattr(clock, "BOOT_ID", tmp_path)
        assert clock.SystemClock().era() == ""
    assert clock.SystemClock().era() == ERA


async def test_the_last_server_that_stops_cleanly_proves_all_bytes(hosts: Hosts) -> None:
    first, second = await hosts.start(), await hosts.start()
    await first.state.create(UPLOAD)
    await hosts.stop(first)
    assert boot_of(await second.state.read_metadata(BOOT)) == "first"
    await hosts.stop(second)
    hosts.boot("second")
    service = await hosts.start()
    assert await service.state.get(UPLOAD.id) == UPLOAD


async def test_a_server_that_dies_first_is_covered_by_the_last_one(hosts: Hosts) -> None:
    first, second = await hosts.start(), await hosts.start()
    await dies(hosts, first)
    await hosts.stop(second)
    assert read(hosts.uploads) == SYNCED


@pytest.mark.parametrize(
    "reason", ["the sync fails", "the sync is not there", "it takes too long", "a mount below", "of no worth"]
)
async def test_a_stop_that_could_not_sync_proves_nothing(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, reason: str, request: pytest.FixtureRequest
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, os.strerror(5)) if reason == "the sync fails" else AttributeError("syncfs")

    service = await hosts.start()
    await service.state.create(UPLOAD)
    if reason in ("the sync fails", "the sync is not there"):
        monkeypatch.setattr(file_system_sync, "sync_file_system", fail)
    elif reason == "a mount below":
        monkeypatch.setattr(file_system_sync, "has_mount_below", lambda folder, mounts: True)
    elif reason == "of no worth":
        monkeypatch.setattr(file_system_sync, "file_system_type", lambda folder, mounts: "fuse.mergerfs")
    else:
        request.addfinalizer(stuck(monkeypatch))
        await service.power_cuts.leave(0.05)
    await hosts.stop(service)
    assert boot_of(read(hosts.uploads)) == "first"


def stuck(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have syncs of the file system wait until the returned function is called."""
    goes_on, ended = threading.Event(), threading.Event()

    def wait(descriptor: int) -> None:
        goes_on.wait(60)
        ended.set()

    def end() -> None:
        goes_on.set()
        ended.wait(60)

    monkeypatch.setattr(file_system_sync, "sync_file_system", wait)
    return end


@pytest.mark.parametrize(("before", "after", "is_back"), [("1", "2", True), ("1", "1", False), ("", "2", False)])
async def test_a_file_system_that_was_mounted_again_has_lost_what_was_not_synced(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, before: str, after: str, is_back: bool
) -> None:
    monkeypatch.setattr(file_system_sync.FileSystemSync, "mount_id", lambda self: before)
    service = await hosts.start()
    await service.state.create(UPLOAD)
    await dies(hosts, service)
    monkeypatch.setattr(file_system_sync.FileSystemSync, "mount_id", lambda self: "")
    await dies(hosts, await hosts.start())  # which cannot tell, and forgets nothing
    monkeypatch.setattr(file_system_sync.FileSystemSync, "mount_id", lambda self: after)
    service = await hosts.start()
    found = await service.state.get(UPLOAD.id)
    assert found is not None
    assert found.offset == (0 if is_back else UPLOAD.offset)


async def test_a_server_that_sees_another_boot_beside_a_running_one_takes_nothing_back(hosts: Hosts) -> None:
    """Containers may have boot ids of their own on one kernel."""
    first = await hosts.start()
    await first.state.create(UPLOAD)
    hosts.boot("second")
    await hosts.start()
    assert await first.state.get(UPLOAD.id) == UPLOAD


async def test_a_server_beside_others_goes_back_where_the_file_system_was_mounted_again(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locks of the others, on another file system, prove that the kernel has not gone down, and no more."""
    monkeypatch.setattr(file_system_sync.FileSystemSync, "mount_id", lambda self: "1")
    first = await hosts.start()
    await first.state.create(UPLOAD)
    hosts.boot("second")
    monkeypatch.setattr(file_system_sync.FileSystemSync, "mount_id", lambda self: "")
    await hosts.start()  # which cannot tell, and forgets nothing
    monkeypatch.setattr(file_system_sync.FileSystemSync, "mount_id", lambda self: "2")
    second = await hosts.start()
    found = await second.state.get(UPLOAD.id)
    assert found is not None
    assert found.offset == 0


async def test_a_stop_ends_although_the_records_hang(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await hosts.start()
    hang: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(service.state, "write_metadata", lambda *_, **__: hang)
    async with asyncio.timeout(30):
        await close_service(service, 0.1)
    hosts.forget(service)
    assert boot_of(read(hosts.uploads)) == "first"  # what the next boot has to find


async def test_a_note_of_a_stop_that_comes_too_late_does_not_count(hosts: Hosts) -> None:
    first = await hosts.start()
    note = read(hosts.uploads)
    await dies(hosts, first)
    second = await hosts.start()
    assert not await second.state.write_metadata(BOOT, SYNCED, before=note)


async def test_nothing_is_synced_at_the_end_if_everything_is(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(file_system_sync, "sync_file_system", refuse)
    service = await hosts.start()
    await service.state.create(replace(UPLOAD, synced=UPLOAD.offset))
    await hosts.stop(service)
    assert read(hosts.uploads) == SYNCED


async def test_a_server_that_syncs_nothing_proves_nothing_when_it_stops(hosts: Hosts) -> None:
    hosts.settings = from_arguments({"upload_dir": hosts.uploads, "durability": "never"})
    service = await hosts.start()
    await hosts.stop(service)
    assert boot_of(read(hosts.uploads)) == "first"


def test_the_sync_of_a_file_system_is_that_of_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = file_system_sync.sync_file_system, []

    def sync_file_system(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.path.samestat(os.fstat(descriptor), tmp_path.stat()))

    monkeypatch.setattr(file_system_sync, "sync_file_system", sync_file_system)
    sync = file_system_sync.FileSystemSync(tmp_path)
    sync.run()
    assert synced == [True]
    sync.close()
    sync.close()


def test_the_sync_of_an_earlier_mount_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(file_system_sync, "sync_file_system", synced.append)
    monkeypatch.setattr(file_system_sync, "obstacle_to_sync", lambda directory: "")
    sync = file_system_sync.FileSystemSync(tmp_path)
    sync._directory = Path("/proc")  # another device
    with pytest.raises(StorageUnavailable, match="mounted again"):
        sync.run()
    sync.close()
    assert synced == []


async def test_a_locker_counts_the_servers_that_have_not_left(tmp_path: Path) -> None:
    lockers = [LocalLocker(tmp_path / "locks") for _ in range(3)]
    for locker in lockers:
        await locker.open()
    assert [locker.leave() for locker in lockers] == [False, False, True]
    for locker in lockers:
        await locker.close()
