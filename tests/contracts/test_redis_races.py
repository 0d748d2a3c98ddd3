"""Races of several hosts on one Redis and one directory: another host is in between, wakes up late, or loses data."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.parts import TIMEOUT, within
from tests.contracts.test_shared_disk import UPLOAD, append, content, storage  # noqa: F401 (fixtures)
from tests.support.redis_hosts import LEASE, LONG, Holder, Host
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.services import Body, running_service
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import THREADS, DiskStorage
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.lease_keeper import RedisLock
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import Script
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.errors import LockLost, LockTimeout, StorageBehind, StorageUnavailable, UploadError
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.core.upload_codec import encode_upload
from tusd_py.migration.state_copy import migrate_records
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

DATA = b"0123456789"  # what every upload is to hold in the end
MOST = 1000  # uploads


def serving(folder: Path, url: str, prefix: str, **settings: Any) -> AbstractAsyncContextManager[UploadService]:
    """Run the work of one host, but for HTTP."""
    return running_service({"upload_dir": folder / "uploads", "redis_url": url, "redis_prefix": prefix, **settings})


@pytest.fixture
async def service(tmp_path: Path, prefix: str) -> AsyncIterator[UploadService]:
    async with serving(tmp_path, shared_redis_url(), prefix) as one:
        yield one


@pytest.fixture
async def other_service(tmp_path: Path, prefix: str) -> AsyncIterator[UploadService]:
    async with serving(tmp_path, shared_redis_url(), prefix) as one:
        yield one


def disk_of(service: UploadService) -> SharedDiskStorage:
    assert isinstance(service.storage, SharedDiskStorage)
    return service.storage


def body(start: int, end: int = len(DATA)) -> AppendRequest:
    return AppendRequest(start, Body(DATA[start:end]))


@contextlib.asynccontextmanager
async def locked(host: Host) -> AsyncIterator[tuple[RedisLock, Upload]]:
    """The lock of the upload, and the record that came with it."""
    lock = await host.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
    try:
        assert lock.upload is not None
        yield lock, lock.upload
    finally:
        await lock.release()


async def add(host: Host, storage: SharedDiskStorage, end: int) -> Upload:
    """Append up to this offset under a lock that is handed over, and commit."""
    async with locked(host) as (lock, record):
        data = DATA[record.offset : end]
        after = await append(
            storage, record, data, lock.token, unreleased_predecessors=bool(lock.unreleased_predecessors)
        )
        return await host.state.update(record, after, lock.token)


async def in_segments(storage: SharedDiskStorage) -> Upload:
    """Store all bytes of the upload in the files of three writers: `upload`, `upload.2` and `upload.3`."""
    upload = UPLOAD
    for token, data in ((1, DATA[:3]), (2, DATA[3:6]), (3, DATA[6:])):
        upload = await append(storage, upload, data, token, unreleased_predecessors=token > 1)
    return upload


class PausedCopy:
    """The first thread that is about to copy the file of this name stops until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._name = name
        self._reached, self._may_go_on = threading.Event(), threading.Event()
        copy = DiskStorage.copy

        def paused(
            storage: DiskStorage, target: int, source: Path, start: int, end: int, *, in_kernel: bool = True
        ) -> None:
            if source.name == self._name and not self._reached.is_set():
                self._reached.set()
                assert self._may_go_on.wait(TIMEOUT)
            copy(storage, target, source, start, end, in_kernel=in_kernel)

        monkeypatch.setattr(DiskStorage, "copy", paused)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, TIMEOUT)

    def go_on(self) -> None:
        self._may_go_on.set()


# The index of what is due is written before the record; meanwhile another host looks at it.


def just_before(monkeypatch: pytest.MonkeyPatch, script: str, action: Callable[[], Awaitable[object]]) -> None:
    """Run an action once, when this script is about to be sent."""
    run = RedisConnection.run
    actions = [action]

    async def delayed(connection: RedisConnection, sent: Script, *arguments: Any) -> Any:
        if sent.name == script and actions:
            await actions.pop()()
        return await run(connection, sent, *arguments)

    monkeypatch.setattr(RedisConnection, "run", delayed)


async def due(state: RedisState) -> list[str]:
    return [upload.id for upload in await state.due(time.time(), MOST)]


async def test_a_new_upload_that_is_due_is_found(host: Host, other: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    just_before(monkeypatch, "create", lambda: due(other.state))
    await host.state.create(replace(UPLOAD, status=Status.FINISHING))
    assert await due(other.state) == [UPLOAD.id]


async def test_an_upload_that_becomes_due_is_found(host: Host, other: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    active = replace(UPLOAD, expires_at=time.time() + 3600)
    await host.state.create(active)
    just_before(monkeypatch, "update", lambda: due(other.state))
    await host.state.update(active, replace(active, offset=10, status=Status.FINISHING), 5)
    assert await due(other.state) == [UPLOAD.id]


async def test_a_final_upload_that_waits_is_made_after_its_last_part(
    tmp_path: Path, prefix: str, other: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, shared_redis_url(), prefix, concatenation_unfinished=True) as service:
        part = await service.create(NewUpload(len(DATA), None, UploadKind.PARTIAL, "partial"))
        just_before(monkeypatch, "create", lambda: due(other.state))
        final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;part", (part.id,)))
        await service.append(part.id, body(0))
        await Sweeper(service).sweep()
        complete = await service.get_completed(final.id)
        assert await content(disk_of(service), complete) == DATA


# Completion, while others complete, ask, or have removed what it is made of.


async def test_a_cancelled_completion_holds_the_lock_until_its_thread_is_done(
    service: UploadService, other_service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next one would find the segments removed under its hands."""
    upload = replace(await in_segments(disk_of(service)), status=Status.FINISHING)
    await service.state.create(upload)
    copy = PausedCopy(monkeypatch, "upload.3")
    sweeping = asyncio.create_task(service.sweep(upload))
    await copy.reached()
    sweeping.cancel()
    with pytest.raises(LockTimeout):
        await other_service.inspect(UPLOAD.id)
    copy.go_on()
    await within(asyncio.wait((sweeping,)))
    assert sweeping.cancelled()
    found = await other_service.inspect(UPLOAD.id)
    assert found.is_complete
    assert await content(disk_of(other_service), found) == DATA


async def test_the_slower_one_of_two_who_complete_does_no_harm(
    storage: SharedDiskStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it take the upload for one that does not exist."""
    faster = SharedDiskStorage(tmp_path / "uploads", tmp_path / "notes")
    await faster.open()
    upload = await in_segments(storage)
    copy = PausedCopy(monkeypatch, "upload.2")
    completing = asyncio.create_task(storage.finish(upload, sync=True))
    await copy.reached()
    await faster.finish(upload, sync=True)
    await faster.discard_superseded(upload)
    copy.go_on()
    with contextlib.suppress(StorageUnavailable, StorageBehind):
        await within(completing)
    assert storage.path(upload).read_bytes() == DATA
    await faster.close()


async def test_a_long_first_file_does_not_stand_for_a_lost_segment(storage: SharedDiskStorage) -> None:
    first = storage.writer(UPLOAD, 1)
    await first.flush([DATA[:5]], sync=False)
    at5 = UPLOAD.at(5)
    await first.flush([b"xxxxx"], sync=False)  # never committed
    await first.close()
    upload = await append(storage, at5, DATA[5:], 2, unreleased_predecessors=True)
    storage.path(upload).with_name("upload.2").unlink()
    with pytest.raises(StorageBehind) as behind:
        await storage.finish(upload, sync=False)
    assert behind.value.stored == 5


async def test_a_cancelled_concatenation_writes_nothing_after_its_end(tmp_path: Path) -> None:
    one, two = DiskStorage(tmp_path / "uploads"), DiskStorage(tmp_path / "uploads")
    await one.open()
    await two.open()
    partial = replace(UPLOAD, id="part", offset=len(DATA), status=Status.COMPLETE)
    final = UPLOAD.at(len(DATA))
    one.path(partial).write_bytes(DATA)
    others_end = threading.Event()
    for _ in range(THREADS):
        one.run(lambda: others_end.wait(TIMEOUT))
    concatenating = asyncio.create_task(one.concatenate(final, [partial], sync=False))
    await asyncio.sleep(0.1)  # it waits for a thread
    concatenating.cancel()
    await asyncio.wait((concatenating,), timeout=0.5)  # a chance to end before it had one
    if not concatenating.done():
        others_end.set()
        await within(asyncio.wait((concatenating,)))
    await two.concatenate(final, [partial], sync=False)
    await two.delete(partial)
    others_end.set()
    await one.close()  # every thread is done
    assert two.path(final).read_bytes() == DATA
    await two.close()


async def test_a_final_upload_survives_redis_going_back_after_its_parts_are_removed(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path / "earlier"
    async with serving(tmp_path, redis.url, "t:", lock_ttl=LEASE) as service:
        disk = disk_of(service)
        for upload_id, data in (("a", DATA[:5]), ("b", DATA[5:])):
            partial = replace(UPLOAD, id=upload_id, length=5, concatenation=UploadKind.PARTIAL)
            await service.state.create(partial)
            after = await append(disk, partial, data, 1, unreleased_predecessors=False)
            await service.state.update(partial, replace(after, status=Status.COMPLETE), 1)
        concatenate = disk.concatenate

        async def kept_before(*arguments: Any, **options: Any) -> str:
            await asyncio.to_thread(redis.save_snapshot, earlier)
            return await concatenate(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "concatenate", kept_before)
            final = await service.concatenate(NewUpload(None, None, UploadKind.FINAL, "final;a b", ("a", "b")))
        assert await content(disk, final) == DATA
        await service.terminate("a")
        await service.terminate("b")
        await asyncio.to_thread(redis.restore_snapshot, earlier)
        lock = await service.locker.acquire(final.id, Holder(), TIMEOUT)  # the lease of who made it has ended
        await lock.release()
        gone_back = await service.state.get(final.id)
        assert gone_back is not None
        assert gone_back.status is Status.FINISHING
        with contextlib.suppress(UploadError):
            await service.sweep(gone_back)
        assert await content(disk, await service.get_completed(final.id)) == DATA


async def test_a_finished_upload_is_not_asked_for_again_after_redis_went_back_to_the_lease_of_its_append(
    service: UploadService, host: Host, prefix: str
) -> None:
    """The holder of that lease has long released it: nobody answers for the record."""
    created = await service.create(NewUpload(len(DATA), None))
    complete = await service.append(created.id, body(0))
    assert complete.is_complete
    keys = Keys(prefix)
    await host.connection.command("DEL", keys.record(created.id))
    await host.state.create(created)
    await host.connection.command("SET", keys.lock(created.id), "abc:1:0", "PX", 60_000)

    with pytest.raises(LockTimeout):
        await service.inspect(created.id)

    await host.connection.command("DEL", keys.lock(created.id))
    assert (await service.inspect(created.id)).is_complete


# Writers that may wake up.


async def test_unreleased_holder_counts_again_after_the_offset_moved_back(
    prefix: str, host: Host, storage: SharedDiskStorage
) -> None:
    await host.state.create(UPLOAD)
    async with Host(shared_redis_url(), prefix) as freezing:  # its lease ends without having been released
        lock = await freezing.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
        assert lock.upload is not None
        frozen = storage.writer(lock.upload, lock.token, unreleased_predecessors=lock.unreleased_predecessors)
        await frozen.flush([DATA[:4]], sync=False)
        await freezing.state.update(lock.upload, lock.upload.at(4), lock.token)
    at8 = await add(host, storage, 8)
    storage.path(at8).with_name(f"upload.{at8.token}").unlink()  # as after a power cut
    async with locked(host) as (lock, record):
        assert await storage.stored_size(record) == 4
        await host.state.update(record, record.at(4), lock.token)
    done = await add(host, storage, 10)
    await frozen.flush([b"xxxxxx"], sync=False)
    await frozen.close()
    await storage.finish(done, sync=False)
    assert await content(storage, done) == DATA


@pytest.mark.parametrize("locked_before", [False, True], ids=["never locked before", "locked before"])
async def test_a_writer_whose_lock_redis_forgot_overwrites_nothing_of_the_next_one(
    tmp_path: Path, prefix: str, redis: RedisServer, storage: SharedDiskStorage, locked_before: bool
) -> None:
    """Both have opened the same file at the same length, the first one before Redis went back."""
    earlier = tmp_path / "earlier"
    async with Host(redis.url, prefix, LONG) as one, Host(redis.url, prefix, LONG) as other:
        await one.state.create(UPLOAD)
        if locked_before:
            await add(one, storage, 2)
        await asyncio.to_thread(redis.save_snapshot, earlier)
        async with locked(one) as (lock, record):
            writer = storage.writer(record, lock.token, unreleased_predecessors=lock.unreleased_predecessors)
            await storage.run(writer._open)
            await asyncio.to_thread(redis.restore_snapshot, earlier)
            done = await add(other, storage, 10)
            await writer.flush([b"xxx"], sync=False)
            await writer.close()
    await storage.finish(done, sync=False)
    assert await content(storage, done) == DATA


async def test_a_writer_whose_lock_redis_forgot_is_suspected(
    tmp_path: Path, prefix: str, redis: RedisServer, storage: SharedDiskStorage
) -> None:
    """Redis may let it change the record: there is a lock no more, but nobody else has had one."""
    earlier = tmp_path / "earlier"
    async with Host(redis.url, prefix, LONG) as one, Host(redis.url, prefix, LONG) as other:
        await one.state.create(UPLOAD)
        async with locked(one) as (lock, record):
            await one.state.update(record, replace(record, commit_requests_served=1), lock.token)
        await asyncio.to_thread(redis.save_snapshot, earlier)
        async with locked(one) as (lock, record):
            writer = storage.writer(record, lock.token, unreleased_predecessors=lock.unreleased_predecessors)
            await asyncio.to_thread(redis.restore_snapshot, earlier)
            await writer.flush([DATA[:4]], sync=False)
            with contextlib.suppress(LockLost):
                await one.state.update(record, record.at(4), lock.token)
            done = await add(other, storage, 10)
            await writer.flush([b"xxx"], sync=False)
            await writer.close()
        await storage.finish(done, sync=False)
        assert await content(storage, done) == DATA


# Answers for an upload.


async def test_a_migration_to_other_records_leaves_an_upload_usable(service: UploadService, tmp_path: Path) -> None:
    """A holder that gives up goes on with Redis, although the files were put together."""
    await service.state.create(UPLOAD)
    upload = await append(disk_of(service), UPLOAD, DATA[:8], 7, unreleased_predecessors=True)
    assert upload.storage_state == "0:7"  # the writer before left nothing
    await service.state.update(UPLOAD, upload, 7)
    target = SQLiteState(tmp_path / "records.sqlite3")
    await target.open()
    assert (await migrate_records(service.state, target, merge_storage=service.storage)).copied == 1
    await target.close()
    assert (await service.inspect(UPLOAD.id)).offset == 8


async def test_completed_upload_is_restored_from_its_completion_record_after_record_loss(
    service: UploadService,
) -> None:
    """Although who completed it was killed before its note was written."""
    await service.state.create(UPLOAD)
    upload = await append(disk_of(service), UPLOAD, DATA, 7, unreleased_predecessors=False)
    complete = replace(upload, status=Status.COMPLETE, completed_at=time.time())
    await service.state.update(UPLOAD, complete, 7)
    assert (await service.inspect(UPLOAD.id)).is_complete
    await service.state.delete(UPLOAD.id, 1 << 53)  # beyond every token
    assert (await service.inspect(UPLOAD.id)).is_complete


def note_in(folder: Path) -> Path:
    (note,) = folder.rglob(f"{UPLOAD.id}.json")
    return note


NOTE = json.dumps(encode_upload(replace(UPLOAD, offset=len(DATA), status=Status.COMPLETE))).encode()


@pytest.mark.parametrize(
    ("note", "held"),
    [(NOTE, 8), (b"", len(DATA)), (NOTE[:20], len(DATA))],
    ids=["of bytes that are lost", "empty", "cut off"],
)
async def test_a_note_that_does_not_hold_keeps_nobody_from_going_on(
    service: UploadService, tmp_path: Path, note: bytes, held: int
) -> None:
    """The record went back in time, too: the bytes of a finished upload, or most of them, are there already."""
    disk = disk_of(service)
    await service.state.create(UPLOAD)
    disk.path(UPLOAD).write_bytes(DATA[:held])
    await disk.save_completion_record(replace(UPLOAD, offset=len(DATA), status=Status.COMPLETE))
    note_in(tmp_path).write_bytes(note)
    await service.state.update(UPLOAD, UPLOAD.at(4), 1)
    for _ in range(3):  # as a client does
        offset = (await service.inspect(UPLOAD.id)).offset
        with contextlib.suppress(UploadError):
            await service.append(UPLOAD.id, body(offset))
    found = await service.inspect(UPLOAD.id)
    assert found.is_complete
    assert await content(disk, found) == DATA


def cache_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `stat` repeat its first answer, as NFS does for some seconds; open files have their true attributes."""
    stat = Path.stat
    seen: dict[Path, os.stat_result | FileNotFoundError] = {}

    def cached(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path not in seen:
            try:
                seen[path] = stat(path, follow_symlinks=follow_symlinks)
            except FileNotFoundError as error:
                seen[path] = error
        known = seen[path]
        if isinstance(known, FileNotFoundError):
            raise known
        return known

    monkeypatch.setattr(Path, "stat", cached)


@pytest.mark.parametrize("before", [0, 3])
async def test_an_offset_that_one_host_acknowledged_is_that_of_every_host(
    service: UploadService, other_service: UploadService, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Even where a host remembers for a while how long a file was."""
    await service.state.create(UPLOAD)
    if before:
        await service.append(UPLOAD.id, body(0, before))
    cache_attributes(monkeypatch)
    assert (await other_service.inspect(UPLOAD.id)).offset == before
    assert (await service.append(UPLOAD.id, body(before, 8))).offset == 8
    assert (await other_service.inspect(UPLOAD.id)).offset == 8


# Calls of many tasks over one connection.


async def test_a_command_that_cannot_be_sent_keeps_no_answer_from_who_asked() -> None:
    connection = RedisConnection(shared_redis_url())
    await connection.open()
    assert await connection.command("ECHO", "before") == "before"
    with pytest.raises(UnicodeEncodeError):
        await connection.command("ECHO", "\ud800")
    answers = await asyncio.gather(*(connection.command("ECHO", str(number)) for number in range(5)))
    assert answers == ["0", "1", "2", "3", "4"]
    assert await connection.command("ECHO", "after") == "after"
    await connection.close()
