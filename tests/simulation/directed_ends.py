"""Directed scenarios of ends: expiry, retention, records that are older than their bytes or cannot be read."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import (
    Sending,
    Silent,
    change_record,
    context_of,
    gone,
    record_of,
    refused,
    small,
    until,
)
from tests.simulation.directed_finals import cut, final_of, sweep
from tests.simulation.directed_identity import SharedWorld, clean
from tests.simulation.oracle import Expected
from tests.simulation.redis_store import Entry
from tests.support.services import Body
from tusd_py import UploadCreated
from tusd_py.contracts.locks import named_lock
from tusd_py.core.durability import BOOT
from tusd_py.core.errors import (
    BrokenRecord,
    LockTimeout,
    OffsetMismatch,
    StateUnavailable,
    UploadNotFound,
    UploadStopped,
    WrongStatus,
)
from tusd_py.core.queries import UploadQuery
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads import inspection, power_cuts
from tusd_py.uploads.admission import Admission
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest

EXPIRING = {"expires_after": 50.0, "sweep_interval": 0}


def ending(upload: Expected) -> None:
    """Let an upload be gone from now on."""
    upload.may_be_gone = upload.is_ending = True


# Expiry.


@scenario(settings=EXPIRING)
async def an_upload_expires_and_a_finished_one_does_not(world: DirectedWorld) -> None:
    upload, whole, part = await world.unfinished(), await world.complete(), await world.complete(300, "partial")
    await asyncio.sleep(60.0)
    due = await world.on(world.host, _expired)
    world.check(due == {upload.id, part.id}, f"the expired uploads are {due}")
    summary = await world.on(world.host, sweep)
    world.check(summary.removed == 2, f"a sweep has {summary}")
    for each in (upload, part):
        await gone(world, each)
    await world.client.download(whole)
    stale = Upload(upload.id, 0.0, length=3000)
    result = await world.on(world.host, lambda service: service.sweep(stale))
    world.check(result is None, f"the sweep of an upload that is gone has {result}")
    extended = await world.unfinished()
    await world.client.append(extended, 100)
    summary = await world.on(world.host, lambda service: service.sweep(Upload(extended.id, 0.0)))
    world.check(summary is None, f"the sweep of an upload that is used has {summary}")
    await world.client.look(extended)


async def _expired(service: UploadService) -> set[str]:
    return {upload.id async for upload in Sweeper(service).expired()}


@scenario(settings={"retention": 100.0, "sweep_interval": 0})
async def the_retention_of_finished_uploads_follows_the_setting(world: DirectedWorld) -> None:
    first = await world.complete(700)
    world.settings["retention"] = 500.0
    await world.restart(world.host)
    await asyncio.sleep(150.0)
    await world.on(world.host, sweep)
    await world.client.download(first)  # its record says that it is due
    record = await record_of(world, first)
    world.check((record.expires_at or 0) > world.machine.wall(), f"the record is due at {record.expires_at}")
    await asyncio.sleep(400.0)
    ending(first)
    await world.on(world.host, sweep)
    await gone(world, first)


@scenario(settings=EXPIRING)
async def a_record_that_is_older_than_a_finished_upload_is_replaced(world: DirectedWorld) -> None:
    host = world.host
    swept, looked, sent, loaded, ended = [await world.complete(700 + number) for number in range(5)]
    old = {"status": Status.ACTIVE, "offset": 100, "synced": 100, "completed_at": None}
    expired = world.machine.wall() - 1
    for upload in (swept, looked, sent, loaded, ended):
        await change_record(world, upload, **old, expires_at=expired if upload is swept else None)
    summary = await world.on(host, sweep)
    world.check(summary.completed == 1, f"a sweep has {summary}")
    await world.client.look(looked)
    request = AppendRequest(100, Body(bytes(10)))
    await refused(world, OffsetMismatch, lambda service: service.append(sent.id, request))
    await world.on(host, lambda service: service.get_completed(loaded.id))
    await refused(world, WrongStatus, lambda service: service.expire(ended.id))
    for upload in (swept, looked, sent, loaded, ended):
        await world.client.look(upload)
        await world.client.download(upload)


@scenario(settings=EXPIRING)
async def an_expired_record_with_fewer_bytes_than_its_storage_is_kept(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 3000)
    await world.on(world.host, lambda service: service.state.delete(upload.id, 1 << 40))
    files = world.machine.files
    kept = f"{files.top}/.tusd-py/finished/{upload.id[:2]}"
    folder: Any = files.find(kept)
    folder.change((f"{upload.id}.json", None))
    record = Upload(
        upload.id,
        world.machine.wall() - 100,
        length=3000,
        offset=1000,
        location=".",
        expires_at=world.machine.wall() - 1,
    )
    await world.on(world.host, lambda service: service.state.create(record))
    for _ in range(2):
        summary = await world.on(world.host, sweep)
        world.check(summary.total == 0, f"a sweep has {summary}")
    world.check(len(world.oracle.look(upload.id) or b"") == 3000, "its bytes are gone")
    upload.complete, upload.floor = False, 0
    ending(upload)
    await change_record(world, upload, expires_at=world.machine.wall() + 100)
    await refused(world, WrongStatus, lambda service: service.expire(upload.id))
    upload.given_up = True


@scenario(settings={"sweep_interval": 0})
async def an_administrator_ends_what_is_unfinished_and_nothing_else(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 1000)
    sending = Sending(world, upload, 8000)
    sending.push(100)
    await asyncio.sleep(0.5)
    ending(upload)
    await world.on(world.host, lambda service: service.expire(upload.id, context_of("root")))
    await sending.answer(404)
    await gone(world, upload)
    await refused(world, UploadNotFound, lambda service: service.expire(upload.id))
    whole = await world.complete()
    await refused(world, WrongStatus, lambda service: service.expire(whole.id))
    await refused(world, WrongStatus, lambda service: service.complete(whole.id))
    known = await world.unfinished()
    await refused(world, WrongStatus, lambda service: service.complete(known.id))
    await world.client.download(whole)


@scenario(settings={"gone_for": 1000.0})
async def what_has_ended_stays_ended_for_administrators(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    await world.client.remove(upload)
    record = await world.on(world.host, lambda service: service.find(upload.id))
    world.check(record.has_ended, f"the record is {record}")
    found = await world.on(world.host, lambda service: service.find_finished(upload.id))
    world.check(found is None, f"it counts as finished: {found}")
    whole = await world.complete()
    found = await world.on(world.host, lambda service: service.find_finished(whole.id))
    world.check(found is not None and found.id == whole.id, f"a finished upload is found as {found}")
    await refused(world, UploadNotFound, lambda service: service.get_completed("0" * 32))
    unfinished = await world.unfinished()
    await refused(world, UploadNotFound, lambda service: service.get_completed(unfinished.id))


@scenario()
async def a_subscriber_removes_the_upload_that_it_is_told_of(world: DirectedWorld) -> None:
    server = world.host.server
    assert server is not None
    removed: list[str] = []

    async def remove(event: UploadCreated) -> None:
        await server.uploads.terminate(event.upload.id)
        removed.append(event.upload.id)

    server.on(UploadCreated)(remove)
    began = world.loop.now
    upload = await world.client.create(900)
    world.check(removed == [upload.id], f"the subscriber has removed {removed}")
    world.check(world.loop.now - began < 5.0, "the subscriber waits for itself")
    await gone(world, upload)


@scenario()
async def an_id_that_is_used_again_is_not_that_of_an_earlier_request(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    before = Admission("", 1.0)
    await refused(world, UploadNotFound, lambda service: service.terminate(upload.id, None, before))
    request = AppendRequest(upload.last_offset, Body(bytes(10)), admission=before)
    await refused(world, UploadNotFound, lambda service: service.append(upload.id, request))
    expiry = await world.on(world.host, lambda service: service.expires_at(upload.id, before))
    world.check(expiry is None, f"the expiry of another upload is told: {expiry}")
    await world.client.look(upload)


# Records that cannot be read.


async def break_record(world: SharedWorld, upload: Expected) -> None:
    """Have the record of an upload say nonsense, as after a mistake of another program."""
    key = world.keys.record(upload.id).encode()
    values = dict(world.redis.store.entries[key].value)
    values[b"status"] = b"nonsense"
    world.redis.store.put(key, Entry(values))
    upload.may_be_gone = upload.given_up = True


@scenario("redis", settings={"sweep_interval": 0})
async def an_upload_whose_record_cannot_be_read_can_be_removed_and_nothing_else(world: SharedWorld) -> None:
    upload, part, other = await world.complete(), await world.complete(500, "partial"), await world.complete(900)
    for each in (upload, part):
        await break_record(world, each)
    await world.client.ask("HEAD", upload.path, status=423)  # no client is to begin again
    await refused(world, BrokenRecord, lambda service: service.get(upload.id))
    found = await world.on(world.host, lambda service: service.find_finished(upload.id))
    world.check(found is None, f"a record that cannot be read is {found}")
    removed = await world.on(world.host, clean)
    world.check(removed == 0, f"{removed} orphans are removed beside records that cannot be read")
    page = await _search(world, upload.id)
    world.check(page == [], f"a search for the id finds {page}")

    async def nobody(_: Upload) -> bool:
        return False

    await refused(world, BrokenRecord, lambda service: service.concatenate(final_of([part])))
    await refused(world, UploadNotFound, lambda service: service.concatenate(final_of([part], may_use=nobody)))
    stranger = Admission("ben")
    await refused(world, UploadNotFound, lambda service: service.terminate(upload.id, None, stranger))
    stopping = UploadStopped()
    await refused(
        world,
        BrokenRecord,
        lambda service: service._termination.stop(Upload(upload.id, 0.0), stopping, None),
    )
    for each in (upload, part):
        ending(each)
        await terminate(world, each.id)
        await world.client.look(each, status=404)
    await world.client.download(other)


async def terminate(world: DirectedWorld, upload_id: str) -> None:
    """Remove an upload as an application does."""
    await world.on(world.host, lambda service: service.terminate(upload_id))


async def _search(world: DirectedWorld, text: str) -> list[str]:
    server = world.host.server
    assert server is not None
    page = await world.on(world.host, lambda _: server.queries.find(UploadQuery(), text))
    return [upload.id for upload in page.uploads]


# Looks at uploads that others use.


@scenario(processes=2)
async def a_head_waits_for_no_holder_that_does_not_answer(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 3000)
    first, second = world.hosts
    sending = Sending(world, upload, 6000, host=first)
    sending.push(100)
    await asyncio.sleep(3.0)
    assert first.process is not None
    first.process.pause()
    assert second.process is not None
    answer = await world.on(second, lambda service: service.inspect(upload.id))
    world.check(answer.offset >= 3000, f"the offset is {answer.offset}")
    cut(world, upload, 1000)
    await refused(world, LockTimeout, lambda service: service.inspect(upload.id), second)
    first.process.go_on()
    sending.exchange.hang_up()
    await asyncio.sleep(5.0)
    await world.client.look(upload)
    world.check(upload.last_offset == 1000, f"the offset is {upload.last_offset}")


@scenario(processes=2)
async def a_head_finds_a_finished_upload_behind_an_old_record_and_an_old_lock(world: DirectedWorld) -> None:
    upload = await world.complete(2000)
    await change_record(world, upload, status=Status.ACTIVE, offset=100, synced=100, completed_at=None)
    first, second = world.hosts
    service = first.server.service  # type: ignore[union-attr]
    holder = await world.on(first, lambda service: service.locker.acquire(upload.id, Silent(), 0))
    asking = asyncio.ensure_future(refused(world, LockTimeout, lambda service: service.inspect(upload.id), second))
    await asking
    await world.on(first, lambda _: holder.release())
    await world.client.look(upload)
    await world.client.download(upload)
    assert service


@scenario(settings={"sweep_interval": 0})
async def completion_records_that_were_looked_for_are_remembered(world: DirectedWorld) -> None:
    with small(inspection, MAX_LOOKUPS=2):
        uploads = [await world.complete(300 + number) for number in range(4)]
        for _ in range(2):
            for upload in uploads:
                await world.client.look(upload)
    folder: Any = world.machine.files.find(f"{world.machine.files.top}/.tusd-py/finished/{uploads[0].id[:2]}")
    folder.change((f"{uploads[0].id}.json", None))
    service = world.service
    service._inspection._looked_up.clear()
    await world.client.look(uploads[0])
    await asyncio.sleep(1.0)
    saved = await world.on(world.host, lambda service: service._records.load_completion_record(uploads[0].id))
    world.check(saved is not None, "a completion record that is missing is not saved again")


# Power cuts.


@scenario()
async def bytes_that_were_not_synced_are_taken_back_after_a_power_cut(world: DirectedWorld) -> None:
    upload, whole = await world.unfinished(3000, 1000), await world.complete(900)
    files = world.machine.files
    world.power_cut(0.0)
    await until(world, lambda: world.host.is_up, "the start")
    await world.client.look(upload)
    record = await record_of(world, upload)
    world.check(record.offset <= record.synced, f"{record.offset} bytes are told, {record.synced} are synced")
    await world.client.download(whole)
    other = await world.unfinished(2000, 500)
    files.failed_syncs += 1  # the sync of everything fails at the end
    await world.restart(world.host)
    await world.client.look(other)
    world.check(other.last_offset == 500, f"without a power cut the offset is {other.last_offset}")


@scenario(settings={"durability": "complete"})
async def nothing_tells_of_power_cuts_where_the_system_has_no_id_of_its_boot(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 1000)
    await world.stop(world.host)
    real = type(world.machine).boot_id
    type(world.machine).boot_id = property(lambda self: "")  # type: ignore[method-assign, assignment]
    try:
        await world.host.start()
        await world.client.look(upload)
        await world.stop(world.host)
    finally:
        type(world.machine).boot_id = real  # type: ignore[method-assign]
    await world.host.start()
    await world.client.look(upload)


@scenario()
async def a_server_that_sets_uploads_back_is_waited_for(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 1000)
    service = world.service
    power = service.power_cuts
    with small(power_cuts, SETTLE_TIMEOUT=1.0):
        lock = await world.on(world.host, _boot_lock)
        await refused(world, StateUnavailable, lambda _: power.settle())
        await world.on(world.host, lambda _: lock.release())
        await world.on(world.host, lambda _: power.settle())  # as after a life without a stop
    await world.client.look(upload)


async def _boot_lock(service: UploadService) -> Any:
    return await service.locker.acquire(named_lock(BOOT), Silent(), 1.0, to_remove=True)
