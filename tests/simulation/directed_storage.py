"""Directed scenarios of one storage in files: reads, writes of threads, and file systems that lack things."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from dataclasses import replace
from typing import Any

from tests.simulation.directed_calls import small
from tests.simulation.directed_copies import system_of
from tests.simulation.directed_directory import UPLOAD, Directory, directory
from tests.simulation.filesystem import Folder, error
from tusd_py.backends.disk import files, sync_health
from tusd_py.backends.disk.files import Modes
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.core.errors import (
    StorageAhead,
    StorageBehind,
    StorageUnavailable,
    StoredElsewhere,
    UploadNotFound,
)
from tusd_py.core.upload import Status

# Reads.


@directory()
async def reads_end_where_the_bytes_end(disk: Directory) -> None:
    storage = disk.storage
    await disk.append(3000)
    await disk.finish()
    content = b"".join([bytes(piece) async for piece in storage.read(disk.upload, 0, 3000)])
    disk.check(content == disk.sent, f"{len(content)} other bytes are read")

    async def read() -> bytes:
        return b"".join([bytes(piece) async for piece in storage.read(disk.upload, 0, 3001)])

    await disk.refused(StorageUnavailable, read())
    longer = replace(disk.upload, offset=3001)
    await disk.refused(StorageUnavailable, storage.open_file(longer))
    await disk.refused(StorageUnavailable, storage.whole_file(longer))
    missing = replace(disk.upload, id="missing")
    for upload in (disk.upload, missing):  # a thread opens the file all the same, and closes it
        disk.files.stalled_until = disk.world.loop.now + 3.0
        opening = asyncio.ensure_future(storage.open_file(upload))
        await asyncio.sleep(0.5)
        opening.cancel()
        await asyncio.wait((opening,))
        disk.check(opening.cancelled(), "a cancelled request is answered")
        await asyncio.sleep(5.0)
    await disk.refused(UploadNotFound, storage.open_file(missing))
    (await storage.open_file(disk.upload)).close()


@directory()
async def bytes_are_looked_for_again_once_the_directory_is_mounted(disk: Directory) -> None:
    storage: Any = disk.storage
    await disk.append(1000)
    real = storage.check_identity

    def mount() -> None:
        disk.files.is_away = False
        real()

    with small(storage, check_identity=mount):
        disk.files.is_away = True
        stored = await storage.stored_size(disk.upload)
        disk.check(stored == 1000, f"{stored} of 1000 bytes are found")
    disk.file().cut(900)
    disk.file().sync()
    disk.check(await storage.stored_size(disk.upload) == 900, "bytes count that are missing")
    disk.go_back(900)
    await disk.append(2100)
    await disk.finish()


@directory()
async def records_without_a_location_have_the_likelier_one(disk: Directory) -> None:
    storage = disk.storage
    await disk.append(1000)
    for upload in (replace(disk.upload, location="2023/11/14"), replace(disk.upload, storage_state="{}")):
        disk.check(await storage.located(upload) is upload, "a record with a location gets another one")
    disk.check((await storage.located(disk.upload)).location == ".", "a file in the directory is not found")
    nowhere = replace(UPLOAD, id="nowhere")
    disk.check((await storage.located(nowhere)).location == ".", "an upload without a file is elsewhere")
    disk.upload = replace(disk.upload, location="")
    await disk.append(2000)
    await disk.finish()


@directory(SharedDiskStorage)
async def a_shared_directory_has_no_chosen_places_and_perhaps_no_completion_records(disk: Directory) -> None:
    try:
        disk.storage.place("film/one")
    except ValueError as refusal:
        disk.check("one host" in str(refusal), f"a place is refused with {refusal}")
    else:
        disk.check(False, "a place on a shared directory is taken")
    await disk.append(3000)
    await disk.finish()
    await disk.storage.save_completion_record(replace(disk.upload, status=Status.COMPLETE))
    found = await disk.storage.load_completion_record(disk.upload.id)
    disk.check(found is not None and found.offset == 3000, f"the completion record is {found}")
    disk.check(await disk.storage.load_completion_record("../x") is None, "a strange id has a record")
    without = SharedDiskStorage(disk.top)
    await without.open()
    await without.save_completion_record(disk.upload)
    disk.check(await without.load_completion_record(disk.upload.id) is None, "a storage without records has one")
    await without.close()


# File systems that lack things.


@directory(functools.partial(DiskStorage, modes=Modes(0o600, 0o700, exact=True)))
async def exact_permissions_are_set_whatever_the_umask(disk: Directory) -> None:
    system = system_of(files)
    set_modes: list[int] = []

    def note(_: Any, mode: int, **options: Any) -> None:
        set_modes.append(mode)

    with small(system, chmod=note, fchmod=note):
        await disk.append(1000)
    disk.check(0o600 in set_modes, f"the permissions {set_modes} are set")
    try:
        disk.storage.files.open("/elsewhere/file", os.O_RDONLY)
    except ValueError as refusal:
        disk.check("not below" in str(refusal), f"a path outside is refused with {refusal}")
    else:
        disk.check(False, "a file outside the directory is opened")
    await disk.append(2000)
    await disk.finish()


@directory()
async def an_object_that_is_no_file_is_no_upload(disk: Directory) -> None:
    top = disk.files.find(str(disk.top))
    assert isinstance(top, Folder)
    disk.files.make_folder(top, "upload")
    await disk.refused(StorageUnavailable, disk.storage.stored_size(disk.upload))
    await disk.refused(StorageUnavailable, disk.append(10))
    top.change(("upload", None))
    await disk.append(3000)
    await disk.finish()


@directory()
async def a_file_system_that_cannot_sync_is_not_used(disk: Directory) -> None:
    health = disk.storage.syncs.health
    health.check()
    system = system_of(sync_health)
    real = system.fsync

    def refuse(_: int) -> None:
        raise error(errno.EINVAL)

    with small(system, fsync=refuse):
        other = DiskStorage(disk.top / "other")
        refusal = await disk.refused(StorageUnavailable, other.open())
        disk.check("cannot sync" in str(refusal), f"the start ends with {refusal}")
        await other.close()
    disk.check(system.fsync == real, "files are not synced any more")
    for fault in ("failing_syncs", "failing_folder_syncs"):
        setattr(disk.files, fault, 1)
        other = DiskStorage(disk.top / "other")
        await disk.refused(StorageUnavailable, other.open())
        await other.close()
    await disk.append(1000, sync=False)
    writer = disk.storage.writer(disk.upload, 2)
    await disk.flush(writer, 500, sync=False)
    disk.files.failing_folder_syncs = 1
    behind = await disk.refused(StorageBehind, writer.flush([], sync=True))
    await writer.close()
    disk.check(behind is not None and behind.stored == 0, f"{behind!r}, where no name was synced")
    await disk.refused(StorageUnavailable, disk.storage.check())
    disk.go_back(0)
    await disk.append(3000)
    await disk.finish()


@directory()
async def a_close_that_fails_takes_what_was_not_synced(disk: Directory) -> None:
    await disk.append(1000)
    for sync, kept in ((True, 1500), (False, 1500)):
        writer = disk.storage.writer(disk.upload, 2)
        await disk.flush(writer, 500, sync=sync)
        disk.files.failing_closes = 1
        behind = await disk.refused(StorageBehind, writer.close())
        disk.check(behind is not None and behind.stored == kept, f"{behind!r}, where {kept} bytes were synced")
        disk.go_back(kept)
    await disk.append(1500)
    await disk.finish()


@directory()
async def a_cut_that_fails_in_every_step_is_made_again(disk: Directory) -> None:
    await disk.append(1000)
    writer = disk.storage.writer(disk.upload, 2)
    await disk.flush(writer, 500, sync=False)
    system = system_of(files)
    real = system.ftruncate
    calls: list[int] = []

    def truncate(descriptor: int, size: int) -> None:
        calls.append(size)
        if len(calls) > 1:
            raise error(errno.EIO)
        real(descriptor, size)

    disk.files.failing_syncs = 2
    with small(system, ftruncate=truncate):
        behind = await disk.refused(StorageBehind, writer.flush([], sync=True))
    await writer.close()
    disk.check(behind is not None and behind.stored == 1000, f"{behind!r}, where 1000 bytes were synced")
    disk.check(calls == [1000, 1001], f"the file is cut at {calls}")
    disk.go_back(1000)
    disk.check(await disk.storage.stored_size(disk.upload) == 1000, "a file that is cut off has other bytes")
    await disk.append(2000)
    await disk.finish()


@directory()
async def a_storage_waits_for_steps_in_threads_of_others(disk: Directory) -> None:
    storage = disk.storage
    writer = storage.writer(disk.upload, 1)
    content = disk.random(1000)
    threads = DiskStorage(disk.top / "other")  # of another component
    await threads.open()
    disk.files.hang_seconds = 5.0
    finishing = asyncio.ensure_future(writer.finish_by([content], threads.run, sync=True))
    await asyncio.sleep(1.0)
    disk.check(not await storage.close(1.0), "a storage is closed while a step of it runs")
    disk.check(await storage.close(60.0), "a storage is not closed after its last step")
    disk.check(finishing.done() or not disk.file().pending, "a step goes on after the end of the storage")
    await finishing
    disk.commit(writer, content)
    await threads.close()
    await disk.open()
    await disk.append(2000)
    await disk.finish()


@directory()
async def bytes_behind_a_record_that_is_older_are_kept(disk: Directory) -> None:
    await disk.append(1000)
    old = disk.upload
    await disk.append(2000)
    await disk.finish()
    await disk.storage.save_completion_record(replace(disk.upload, status=Status.COMPLETE))
    behind = disk.storage.writer(old, 3)
    await disk.refused(StorageAhead, behind.flush([b"x"], sync=True))
    await behind.close()
    disk.check_stored()
    await disk.refused(StoredElsewhere, disk.storage.stored_size(replace(disk.upload, storage_state="{}")))


class Arriving:
    """The next bytes of a body in two pieces, which a thread takes while it stores them."""

    def __init__(self, content: bytes) -> None:
        self.in_use, self.splices, self.waited = False, True, 0.0
        self._pieces = [content[: len(content) // 2], content[len(content) // 2 :]]

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def receive(self) -> bool:
        return bool(self._pieces)

    def store(self, file: int, position: int) -> int:
        piece = self._pieces.pop(0)
        written: int = system_of(files).pwrite(file, piece, position)
        if written < len(piece):
            self._pieces.insert(0, piece[written:])
        return written


@directory()
async def a_thread_receives_what_it_stores(disk: Directory) -> None:
    for observer in (None, lambda _: None):
        writer = disk.storage.writer(disk.upload, 1, observer)
        first, rest = disk.random(300), disk.random(700)
        arriving = Arriving(b"" if observer else rest)
        await writer.receive([first], arriving)
        if observer is not None:  # somebody has to see all bytes, so that the buffers alone are written
            await writer.write([rest])
        await writer.flush([], sync=True)
        disk.check(not arriving.in_use, "the connection stays with the thread")
        disk.commit(writer, first + rest)
        await writer.close()
    await disk.append(1000)
    await disk.finish()
