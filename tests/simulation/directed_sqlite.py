"""Directed scenarios of the records in SQLite."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import apsw

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import refused, start_error
from tests.simulation.directed_client import UNKNOWN
from tests.simulation.disk_world import RECORDS
from tests.simulation.sqlite import NAME, _on_behalf_of
from tusd_py.backends.sqlite.read_thread import ReadTooLong
from tusd_py.backends.sqlite.schema import ADD_COLUMNS
from tusd_py.core.errors import StateUnavailable, StorageUnavailable
from tusd_py.uploads.service import UploadService


@scenario()
async def removals_need_no_room_on_a_full_disk(world: DirectedWorld) -> None:
    """The first one takes the reserved room, the others that of those before; appends find room, or change nothing."""
    uploads = [await world.unfinished() for _ in range(6)]
    kept, *removed = uploads
    world.machine.files.is_full = True
    await world.client.ask("POST", "/files", {"Upload-Length": "10"}, status=(201, 507))
    world.machine.files.is_full = True  # also of the log of the records, whose room another program has taken
    for upload in removed:
        await world.client.append(kept, 50, status=(204, 507))
        await world.client.remove(upload)
        await world.client.look(kept)
    world.machine.files.is_full = False
    await world.client.append(kept, kept.length - kept.last_offset)


@scenario(lacks=("removal when full",))
async def a_file_that_a_full_disk_does_not_let_be_removed_is_emptied_first(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    world.machine.files.is_full = True
    await world.client.remove(upload)
    world.machine.files.is_full = False


# Files of other versions.


def change_file(world: DirectedWorld, *statements: str) -> None:
    """Change the file of the records, which no process has open, as another program does."""
    with _on_behalf_of(world.machine):
        connection = apsw.Connection(RECORDS, vfs=NAME)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        for statement in statements:
            connection.execute(statement)
        connection.close()


@scenario(settings={"date_folders": True})
async def records_of_earlier_versions_gain_their_columns_and_keep_their_bytes(world: DirectedWorld) -> None:
    """An upload of those versions has no location: its file is looked for where earlier settings put it."""
    dated, recording = await world.unfinished(), await world.client.create(UNKNOWN)
    recording.length = recording.wanted_length = 1000
    await world.client.append(recording, 700)
    await world.stop(world.host)
    world.settings["date_folders"] = False
    await world.host.start()
    plain = await world.unfinished()
    await world.stop(world.host)
    change_file(
        world,
        *(f"ALTER TABLE uploads DROP COLUMN {column}" for column in ADD_COLUMNS if column != "layout"),
        "PRAGMA user_version = 0",
    )
    await world.host.start()
    for upload in (dated, plain, recording):
        await world.client.look(upload)
    await world.client.append(dated, 2000)
    await world.client.append(plain, 2000)
    await world.client.end(recording, 300)
    for upload in (dated, plain, recording):
        await world.client.download(upload)


@scenario()
async def a_file_of_a_newer_version_is_left_alone(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    await world.stop(world.host)
    change_file(world, "PRAGMA user_version = 99")
    error = await start_error(world.host)
    world.check("newer version" in str(error), f"the start with a newer file ends with {error!r}")
    change_file(world, "PRAGMA user_version = 1")
    await world.host.start()
    await world.client.append(upload, 2000)


@scenario()
async def records_that_cannot_be_read_are_listed_and_can_be_removed(world: DirectedWorld) -> None:
    broken, whole = await world.unfinished(), await world.unfinished()
    await world.stop(world.host)
    change_file(world, f"UPDATE uploads SET offset = 'x' WHERE id = '{broken.id}'")
    await world.host.start()
    await world.client.ask("HEAD", broken.path, status=(423, 500, 503))
    found = await world.on(world.host, _broken_ids)
    world.check(found == [broken.id], f"the broken records are {found}")
    await world.client.append(whole, 2000)
    await world.client.remove(broken)


async def _broken_ids(service: UploadService) -> list[str]:
    return [error.upload_id async for error in service.state.broken()]


@scenario(settings={"durability": "always"})
async def a_disk_whose_sync_has_failed_counts_as_broken_for_a_while(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    for kind in ("failing_syncs", "failing_record_syncs"):
        setattr(world.machine.files, kind, 1)
        await world.client.append(upload, 100, status=(204, 409, 500, 503))
        await world.client.look(upload)
        await refused(world, StorageUnavailable if kind == "failing_syncs" else StateUnavailable, _check)
        await asyncio.sleep(61.0)
        if kind == "failing_syncs":
            world.machine.files.failing_syncs = 1  # of the probe
            await refused(world, StorageUnavailable, _check)
        await world.on(world.host, _check)
    await world.client.append(upload, upload.length - upload.last_offset)


async def _check(service: UploadService) -> None:
    storage, state = cast(Any, service.storage), cast(Any, service.state)
    await storage.check()
    await state.check()


# Answers of SQLite that another process causes, which the model of one connection does not give.

BUSY, BROKEN, INTERRUPTED = apsw.SQLITE_BUSY, apsw.SQLITE_IOERR_READ, apsw.SQLITE_INTERRUPT


@scenario()
async def processes_that_start_together_wait_for_each_other(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    await world.stop(world.host)
    world.machine.record_answers = [("PRAGMA journal_mode", BUSY), ("COMMIT", BUSY), ("PRAGMA journal_mode", BUSY)]
    change_file(world, "PRAGMA user_version = 0")
    error = await start_error(world.host)
    world.check(error is None and not world.machine.record_answers, f"a start beside another one ends with {error!r}")
    await world.stop(world.host)
    world.machine.record_answers = [("PRAGMA journal_mode", BUSY)] * 1000
    error = await start_error(world.host)
    world.check(isinstance(error, StateUnavailable), f"a start beside a file in use ends with {error!r}")
    world.machine.record_answers = []
    await world.host.start()
    await world.client.append(upload, 2000)


@scenario()
async def a_log_that_another_process_uses_is_waited_for(world: DirectedWorld) -> None:
    """No change counts as durable before what was there at the start is, so that a server does not start without."""
    upload = await world.unfinished()
    await world.stop(world.host)
    checkpoint = ("PRAGMA wal_checkpoint", (1, 0, 0))
    world.machine.record_answers = [checkpoint] * 3
    error = await start_error(world.host)
    world.check(error is None and not world.machine.record_answers, f"a start beside a reader ends with {error!r}")
    await world.stop(world.host)
    world.machine.record_answers = [checkpoint] * 10_000
    error = await start_error(world.host)
    world.check(isinstance(error, StateUnavailable), f"a start beside a log in use ends with {error!r}")
    world.machine.record_answers = []
    await world.host.start()
    await world.client.append(upload, 2000)


@scenario()
async def reads_of_administrators_that_fail_or_take_too_long_are_told(world: DirectedWorld) -> None:
    upload = await world.complete(300)

    async def history(service: UploadService) -> Any:
        return await cast(Any, service.state).history(upload.id)

    for code, kind in ((INTERRUPTED, ReadTooLong), (BROKEN, StateUnavailable)):
        world.machine.record_answers = [("SELECT entry FROM history", code)]
        await refused(world, kind, history)
        world.check(not world.machine.record_answers, f"the error {code} was not met")
        await world.on(world.host, history)
