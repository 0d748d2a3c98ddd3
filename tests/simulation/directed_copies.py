"""Directed scenarios of one storage in files: places, copies, and identities."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from types import ModuleType
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import small
from tests.simulation.directed_directory import UPLOAD, Directory, directory
from tests.simulation.directed_finals import final_of, join
from tests.simulation.filesystem import Folder, error
from tusd_py.backends.disk import claims, copying, files, identity
from tusd_py.core.errors import (
    PartBehind,
    PathTaken,
    ServerShutdown,
    StorageFull,
    StorageUnavailable,
    WrongStorage,
)
from tusd_py.core.storage_identity import PRIVATE_FOLDER
from tusd_py.core.upload import Status, Upload

OTHER = "f" * 32


def system_of(module: ModuleType) -> Any:
    """Return the simulated `os` of a module."""
    return vars(module)["os"]


def at(place: str, upload_id: str = "a" * 32) -> Upload:
    return replace(UPLOAD, id=upload_id, location=f"={place}")


# Places.


@directory()
async def a_claim_that_cannot_be_kept_is_given_up(disk: Directory) -> None:
    storage = disk.storage
    disk.files.failing_folder_syncs = 1
    await disk.refused(StorageUnavailable, storage.claim_place(at("film/one")))
    await storage.claim_place(at("film/one", OTHER))  # which is free
    await disk.refused(PathTaken, storage.claim_place(at("film/one")))
    await storage.give_up_place(UPLOAD)  # which has none
    await storage.give_up_place(at("film/one", OTHER))
    disk.check(not disk.names(), f"the files {disk.names()} are left")


@directory(lacks=("folder syncs",))
async def places_are_claimed_where_folders_cannot_be_synced(disk: Directory) -> None:
    await disk.storage.claim_place(at("film/one"))
    await disk.refused(PathTaken, disk.storage.claim_place(at("film", OTHER)))
    ended = replace(at("film/one"), status=Status.EXPIRED)
    await disk.storage.delete(ended)
    await disk.storage.claim_place(at("film/one", OTHER))
    disk.check(len(disk.storage.limitations) >= 1, "nothing tells that names may be lost")
    await disk.storage.delete(ended)  # whose place is another one's by now
    disk.check("film/one" in disk.names(), "the file of another upload was removed")
    await disk.storage.run(lambda: disk.storage._places.release(ended))
    await disk.refused(PathTaken, disk.storage.claim_place(at("film/one")))


@directory()
async def folders_of_claims_that_others_leave_are_entered_again(disk: Directory) -> None:
    system = system_of(files)
    real = system.symlink
    left = [3]

    def leave(text: str, path: Any, *, dir_fd: int | None = None) -> None:
        if left[0] and dir_fd is not None:
            left[0] -= 1
            raise error(errno.ENOENT, os.fspath(path))  # another upload has just removed the folder
        real(text, path, dir_fd=dir_fd)

    with small(system, symlink=leave):
        await disk.storage.claim_place(at("film/one"))
        disk.check(not left[0], "the folder was not entered")
        left[0] = 1000
        await disk.refused(StorageUnavailable, disk.storage.claim_place(at("book/one", OTHER)))
    await disk.storage.claim_place(at("book/one", OTHER))
    disk.check(claims.ATTEMPTS < 1000, "a folder is entered without a limit")


# Copies.


async def _partials(disk: Directory, *sizes: int) -> list[Upload]:
    """Return complete partial uploads of these sizes."""
    made = []
    for number, size in enumerate(sizes):
        disk.upload, disk.sent = replace(UPLOAD, id=f"part{number}", length=size), disk.sent
        before, disk.sent = disk.sent, b""
        await disk.append(size)
        disk.sent = before + disk.sent
        made.append(disk.upload)
    disk.upload = replace(UPLOAD, id="final", length=sum(sizes), offset=sum(sizes), synced=sum(sizes))
    return made


@directory()
async def a_copy_that_is_cancelled_ends_after_its_slice(disk: Directory) -> None:
    with small(copying, SLICE_SIZE=512):
        parts = await _partials(disk, 3000, 2000)
        joining = asyncio.ensure_future(disk.storage.concatenate(disk.upload, parts, sync=True))
        disk.files.hang_seconds = 5.0
        await asyncio.sleep(1.0)
        for _ in range(2):  # also while it ends
            joining.cancel()
            await asyncio.sleep(0.5)
        disk.check(not joining.done(), "a copy that is cancelled leaves its thread alone")
        await asyncio.wait((joining,))
        disk.check(joining.cancelled(), "a copy goes on after it was cancelled")
        disk.check(disk.names() == {"part0", "part1"}, f"a copy leaves {disk.names()}")
        await disk.storage.concatenate(disk.upload, parts, sync=True)
    disk.check_stored()


@directory()
async def a_copy_ends_with_the_storage(disk: Directory) -> None:
    with small(copying, SLICE_SIZE=512):
        parts = await _partials(disk, 3000, 2000)
        joining = asyncio.ensure_future(disk.storage.concatenate(disk.upload, parts, sync=True))
        disk.files.hang_seconds = 5.0
        await asyncio.sleep(1.0)
        disk.check(await disk.storage.close(60.0), "a copy keeps the storage from its end")
        error = (await asyncio.gather(joining, return_exceptions=True))[0]
        disk.check(isinstance(error, ServerShutdown), f"a copy ends with {error!r}")
        await disk.open()
        await disk.storage.concatenate(disk.upload, parts, sync=True)
    disk.check_stored()


@scenario(settings={"shutdown_grace": 1.0, "sweep_interval": 0})
async def a_copy_that_hangs_keeps_no_server_from_its_end(world: DirectedWorld) -> None:
    with small(copying, SLICE_SIZE=512):
        parts = [await world.complete(size, "partial") for size in (3000, 2000)]
        joining = asyncio.ensure_future(world.on(world.host, lambda service: service.concatenate(final_of(parts))))
        world.machine.files.hang_seconds = 60.0
        await asyncio.sleep(1.0)
        began = world.loop.now
        await world.stop(world.host)
        world.check(world.loop.now - began < 30.0, f"the shutdown takes {world.loop.now - began:.0f} s")
        joining.cancel()
        await world.host.start()
        final = await join(world, parts)
    await world.client.look(final)
    await world.client.download(final)


@directory()
async def nothing_is_copied_without_room_for_all_bytes(disk: Directory) -> None:
    parts = await _partials(disk, 3000, 2000)
    disk.files.is_full = True
    await disk.refused(StorageFull, disk.storage.concatenate(disk.upload, parts, sync=True))
    disk.files.is_full = False
    disk.check(disk.names() == {"part0", "part1"}, f"a copy without room leaves {disk.names()}")
    target = disk.storage.files.open(disk.top / "target", os.O_RDWR | os.O_CREAT)
    disk.files.room = 100  # once the copy is under way
    try:
        disk.storage.copy(target, disk.storage.path(parts[0]), 0, 3000)
    except OSError as full:
        disk.check(full.errno == errno.ENOSPC, f"a copy on a full disk ends with {full!r}")
    else:
        disk.check(False, "a copy on a full disk succeeds")
    disk.files.is_full = False
    for start, end, kind in ((0, 3001, PartBehind),):
        try:
            disk.storage.copy(target, disk.storage.path(parts[0]), start, end)
        except PartBehind as behind:
            disk.check(kind is PartBehind, f"a copy of missing bytes ends with {behind!r}")
        else:
            disk.check(False, "bytes that are missing are copied")
    system_of(files).close(target)
    disk.storage.files.unlink(disk.top / "target")
    await disk.storage.concatenate(disk.upload, parts, sync=True)
    disk.check_stored()


# Identities.


@directory()
async def an_identity_is_made_once(disk: Directory) -> None:
    storage = disk.storage
    await storage.create_identity("a" * 32)
    await storage.create_identity(OTHER)
    disk.check(await storage.read_identity() == "a" * 32, "an identity was replaced")
    await storage.create_identity(OTHER, replace=True)
    disk.check(await storage.read_identity() == OTHER, "an identity was not replaced")


@directory(lacks=("links",))
async def of_two_processes_that_make_an_identity_one_counts(disk: Directory) -> None:
    system = system_of(identity)
    real = system.link

    def refuse(*_: object) -> None:
        raise error(errno.EIO)

    with small(system, link=refuse):
        await disk.refused(StorageUnavailable, disk.storage.create_identity("a" * 32))
    disk.check(await disk.storage.read_identity() is None, "an identity was made in spite of an error")

    def late(old: Any, new: Any) -> None:
        folder, other = disk.files.find(f"{disk.top}/{PRIVATE_FOLDER}"), disk.files.new_file(0o600)
        assert isinstance(folder, Folder)
        other.write(0, f"{OTHER}\n".encode())
        folder.change(("identity", other))  # by another process, just now
        real(old, new)

    with small(system, link=late):
        await disk.storage.create_identity("a" * 32)
    found = await disk.storage.read_identity()
    disk.check(found == OTHER, f"the identity is {found}, where another process was first")
    left = [name for name in disk.files.names() if name.startswith(disk.name)]
    disk.check(left == [f"{disk.name}/uploads/{PRIVATE_FOLDER}/identity"], f"the files {left} are left")


@directory()
async def a_directory_that_is_mounted_again_is_another_one(disk: Directory) -> None:
    storage = disk.storage
    await storage.create_identity(OTHER)
    storage.expect_identity(OTHER)  # before it was read, so that the mount is not known yet
    await storage.prove_identity()
    await storage.prove_identity()
    system = system_of(identity)
    real = system.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        status = real(path, **options)
        return os.stat_result((*status[:2], 77, *status[3:10]), {"st_ctime_ns": status.st_ctime_ns})

    with small(system, stat=stat):
        await disk.refused(WrongStorage, storage.prove_identity())
        await disk.refused(WrongStorage, disk.append(10))
    await storage.prove_identity()
    await disk.append(3000)
    await disk.finish()
