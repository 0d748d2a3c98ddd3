"""Directed scenarios of locks that are lost or kept by the dead, and of what administrators are told."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_appends import finish, refuse
from tests.simulation.directed_calls import (
    Sending,
    append,
    change_record,
    create,
    hold,
    record_of,
    refused,
    release,
    small,
    start_error,
    until,
)
from tests.simulation.directed_finals import cut
from tests.simulation.directed_identity import SharedWorld
from tests.support.services import Body
from tusd_py.backends.sqlite.read_thread import ReadTooLong
from tusd_py.core.durability import BOOT
from tusd_py.core.errors import FinalUploadModified, LockLost, LockTimeout, StateUnavailable, StorageFull
from tusd_py.core.listing import EVERYTHING
from tusd_py.core.queries import QueryPage, UploadQuery
from tusd_py.core.upload import Upload
from tusd_py.progress.listener import Listener
from tusd_py.uploads import power_cuts, queries
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload


def lose_lock(world: SharedWorld, upload_id: str) -> None:
    """Have Redis lose the lease of an upload."""
    world.redis.store.put(world.keys.lock(upload_id).encode(), None)


@scenario("redis", processes=2)
async def an_append_that_has_lost_its_lock_changes_nothing(world: SharedWorld) -> None:
    files = world.machine.files
    for fails in (False, True):
        upload = await world.unfinished(3000, 100)
        appending = asyncio.ensure_future(_append_in_vain(world, upload, hangs=8.0, fails=fails))
        await asyncio.sleep(1.0)
        lose_lock(world, upload.id)
        second = world.hosts[1]
        lock = await hold(world, upload.id, second)
        await appending
        await release(world, lock, second)
        files.hang_seconds = 0.0
        files.stop_failing()
        await world.client.look(upload)
        world.check(upload.last_offset == 100, f"the offset is {upload.last_offset}")
        await finish(world, upload)


async def _append_in_vain(world: SharedWorld, upload: Any, *, hangs: float, fails: bool) -> None:
    files = world.machine.files
    files.hang_seconds = hangs
    if fails:
        files.failing_writes = 1
    await refuse(world, LockLost, upload, 200, arrived=True)


@scenario(processes=2)
async def a_request_at_an_offset_of_lost_bytes_waits_for_the_lock(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 3000)
    first, second = world.hosts
    lock = await hold(world, upload.id, first)
    cut(world, upload, 1000)
    request = AppendRequest(1000, Body(bytes(10)))
    began = world.loop.now
    await refused(world, LockTimeout, lambda service: service.append(upload.id, request), second)
    world.check(world.loop.now - began > 2.0, "the holder of the lock was not waited for")
    await release(world, lock, first)
    await finish(world, upload)


@scenario(settings={"concatenation_unfinished": True})
async def a_final_upload_takes_no_bytes_while_it_is_locked(world: DirectedWorld) -> None:
    part = await world.unfinished(500, 100, "partial")
    final = await world.client.join([part])
    lock = await hold(world, final.id)
    await refuse(world, FinalUploadModified, final, 10)
    await release(world, lock)
    await world.client.append(part, 400)
    final.join_parts()
    await world.client.look(final)


@scenario()
async def an_upload_that_somebody_watches_is_committed_more_often(world: DirectedWorld) -> None:
    server = world.host.server
    assert server is not None
    upload = await world.client.create(30_000)
    sending = Sending(world, upload, 30_000)
    sending.push(1000)
    await asyncio.sleep(0.05)
    listener = Listener((upload.id,))

    async def watch(service: UploadService) -> bool:
        server.hub.add(listener, "sse", 100.0)
        return await server.hub.watch(listener, upload.id, lambda: service.get(upload.id), None)

    world.check(await world.on(world.host, watch), "the upload has ended")
    for _ in range(4):
        sending.push(500)
        await asyncio.sleep(0.7)
        record = await record_of(world, upload)
        sent = 30_000 - len(sending.rest)
        world.check(record.offset == sent, f"after 0.7 s the offset is {record.offset} of {sent}")
    await asyncio.sleep(5.0)  # without a byte
    sending.push(30_000)
    await sending.answer(204)
    await world.on(world.host, lambda _: _removed(server, listener))
    await world.client.download(upload)


async def _removed(server: Any, listener: Listener) -> None:
    server.hub.remove(listener)


# Administrators.


@scenario("redis", processes=3)
async def the_locks_of_all_processes_are_told(world: SharedWorld) -> None:
    first, second, third = world.hosts
    upload = await world.unfinished(9000, 1000)
    sending = Sending(world, upload, 8000, host=first)
    sending.push(100)
    await asyncio.sleep(2.0)
    lock = await hold(world, "x" * 32, second)
    assert second.server is not None
    assert third.server is not None
    server = second.server
    told = await world.on(second, lambda _: server.locks.all())
    world.check([held.upload_id for held in told.locks] == [upload.id], f"the locks are {told}")
    world.check((told.processes, told.silent) == (3, 0), f"{told.processes} processes answer, {told.silent} do not")
    world.check(told.locks[0].method == "PATCH", f"the lock is held by {told.locks[0]}")

    feed: Any = third.server._feed
    feed.answer_with(lambda: "nonsense")
    both = await world.on(second, lambda _: _both(server))
    world.check(both[0] is both[1], "two who ask at the same time are told differently")
    world.check((both[0].processes, both[0].silent) == (2, 1), f"the answer is {both[0]}")
    assert first.process is not None
    first.process.pause()
    told = await world.on(second, lambda _: server.locks.all())
    world.check(told.silent == 2 and not told.locks, f"of processes that do not answer {told} is told")
    first.process.go_on()
    await release(world, lock, second)
    sending.push(8000)
    await sending.answer(204)
    world.redis.silent_until = world.loop.now + 30.0
    await refused(world, StateUnavailable, lambda _: server.locks.all(), second)
    await asyncio.sleep(40.0)
    await world.client.download(upload)


async def _both(server: Any) -> list[Any]:
    return list(await asyncio.gather(server.locks.all(), server.locks.all()))


async def _page(world: DirectedWorld, query: UploadQuery, text: str) -> QueryPage:
    server = world.host.server
    assert server is not None
    page: QueryPage = await world.on(world.host, lambda _: server.queries.find(query, text))
    return page


async def _found(world: DirectedWorld, text: str, **choices: Any) -> list[str]:
    """Return the ids that all pages of a search have."""
    found: list[str] = []
    query = UploadQuery(EVERYTHING, **choices)
    while True:
        try:
            page = await _page(world, query, text)
        except ReadTooLong:  # as some reads of the model are
            continue
        world.check(len(page.uploads) <= query.limit, f"a page of {query.limit} has {len(page.uploads)} uploads")
        found += [upload.id for upload in page.uploads]
        if page.next is None:
            return found
        query = UploadQuery(EVERYTHING, query.order, query.descending, query.limit, page.next)


@scenario()
async def searches_page_through_all_uploads(world: DirectedWorld) -> None:
    notes = ["eHl6" if number % 3 == 0 else "YWJj" for number in range(9)]
    uploads = [await create(world, 100 + number, metadata=f"note {note}") for number, note in enumerate(notes)]
    wanted = sorted(upload.id for number, upload in enumerate(uploads) if number % 3)
    with small(queries, SLICE=2, MAX_LOOKED_AT=3):
        for order in ("created_at", "id", "updated_at", "client", "filename"):
            for limit in (1, 2, 100):
                for text, ids in (("abc", wanted), ("", sorted(upload.id for upload in uploads))):
                    found = await _found(world, text, order=order, limit=limit)
                    world.check(sorted(found) == ids, f"a search by {order} for {text!r} finds {len(found)} uploads")
    server = world.host.server
    assert server is not None
    first = await world.on(world.host, lambda _: server.queries.totals())
    again = await world.on(world.host, lambda _: server.queries.totals())
    world.check(first.totals == again.totals, f"the totals are {first}, then {again}")
    for upload in uploads:
        await append(world, upload, upload.length)


# Room.


@scenario(settings={"reserve_disk": 4096})
async def nothing_is_created_below_the_reserve_and_all_else_goes_on(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    files = world.machine.files
    statvfs = files.is_full
    files.is_full = True
    await asyncio.sleep(3.0)
    await refused(world, StorageFull, lambda service: service.create(NewUpload(10)))
    await world.client.ask("POST", "/files", {"Upload-Length": "10"}, status=507)
    await world.client.look(upload)
    files.is_full = statvfs
    await asyncio.sleep(3.0)
    await world.complete(700)
    await finish(world, upload)


def fill_before_settling(world: DirectedWorld) -> Any:
    """Return the step of a start that notes the boot, made on a disk that is full just then."""
    real = power_cuts.PowerCuts.settle

    async def settle(self: Any, *, syncs: bool = True) -> None:
        world.machine.files.room = -(1 << 30)  # another program takes all that comes free
        await real(self, syncs=syncs)

    return settle


async def _note(service: UploadService) -> str | None:
    return await service.state.read_metadata(BOOT)


@scenario(settings={"sweep_interval": 0})
async def a_full_disk_keeps_no_server_from_its_start(world: DirectedWorld) -> None:
    files = world.machine.files
    upload = await world.unfinished(3000, 1000)
    await world.stop(world.host)
    with small(power_cuts.PowerCuts, settle=fill_before_settling(world)):
        error = await start_error(world.host)
    world.check(error is None, f"the start on a full disk ends with {error!r}")
    await world.on(world.host, lambda service: Sweeper(service).sweep())
    note = await world.on(world.host, _note)
    world.check(note == power_cuts.SYNCED, f"on a full disk the boot is noted as {note!r}")
    files.is_full = False
    await world.on(world.host, lambda service: Sweeper(service).sweep())
    note = await world.on(world.host, _note)
    world.check(note not in (None, power_cuts.SYNCED), f"the note of the boot is {note!r}")
    await world.client.look(upload)


@scenario()
async def a_server_that_cannot_note_what_a_power_cut_took_does_not_start(world: DirectedWorld) -> None:
    files = world.machine.files
    upload = await world.unfinished(3000, 1000)
    record = await record_of(world, upload)
    host = world.host
    host.kill()
    for database in list(world.machine.databases.values()):
        database.abandon()
    world.machine.boots += 1
    world.oracle.lost_unsynced(records=True)
    with small(power_cuts.PowerCuts, settle=fill_before_settling(world)):
        error = await start_error(host)
    world.check(isinstance(error, StateUnavailable), f"the start ends with {error!r}")
    files.is_full = False
    await host.start()
    found = await record_of(world, upload)
    world.check(found.offset == record.synced, f"the offset is {found.offset}, of which {record.synced} are synced")
    await finish(world, upload)


@scenario()
async def uploads_with_many_tokens_go_back_after_a_power_cut_too(world: DirectedWorld) -> None:
    upload = await create(world, 9000)
    for _ in range(12):
        await append(world, upload, 100)
    await change_record(world, upload, token=1000)
    world.settings["durability"] = "never"
    world.power_cut(0.0)
    await until(world, lambda: world.host.is_up, "the start")
    found = await record_of(world, upload)
    world.check(isinstance(found, Upload), "the record is gone")
    world.settings["durability"] = "complete"
    await world.restart(world.host)
    record = await record_of(world, upload)
    world.check(record.offset <= max(record.synced, 0), f"{record.offset} bytes are told, {record.synced} are synced")
    await finish(world, upload)
