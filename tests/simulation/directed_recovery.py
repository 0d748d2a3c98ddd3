"""Directed scenarios of completions that are interrupted, and of records that have gone back behind their objects."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import append, change_record, create, gone, record_of, refused, send, small
from tests.simulation.directed_decisions import Hooks, have
from tests.simulation.directed_finals import UNFINISHED, cut, final_of, join, sweep
from tests.simulation.oracle import Expected
from tests.simulation.s3_world import S3World
from tests.support.services import Body
from tusd_py.core.errors import CompletionDelayed, HookUnavailable, LockTimeout, OffsetMismatch
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.uploads import identity
from tusd_py.uploads.identity import IdentityCheck
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest


class ObjectsWorld(DirectedWorld, S3World):
    """The directed world with S3 and SQLite."""


async def waiting(world: DirectedWorld, size: int) -> Expected:
    """Return an upload with all its bytes, whose completion waits for the application."""
    upload = await world.client.create(size)
    content = world.client.rng.randbytes(size)
    await send(world, upload, content, status=503)
    upload.known, upload.last_offset, upload.floor = bytearray(content), size, size
    return upload


AWAY = RuntimeError("away")


@scenario(settings={"sweep_interval": 0})
async def a_completion_goes_back_to_the_bytes_that_are_left(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=AWAY))
    upload, other = await waiting(world, 3000), await waiting(world, 2000)
    cut(world, upload, 1200)
    told: list[str] = []
    await world.on(world.host, lambda service: Sweeper(service).sweep(told.append))
    world.check(len(told) == 2, f"a sweep tells of {told}")
    hooks.answers["finish"] = None
    await world.client.look(upload)
    world.check(upload.last_offset == 1200, f"the offset is {upload.last_offset}")
    await world.client.append(upload, 1800)
    await world.client.download(upload)
    world.machine.files.failing_syncs = 1
    error = await refused(world, CompletionDelayed, lambda service: service.inspect(other.id))
    world.check(error is not None, "a sync that fails is not told")
    await world.client.look(other)
    await world.client.download(other)


@scenario(settings={"sweep_interval": 0})
async def a_completion_is_waited_for_a_limited_time(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=AWAY))
    upload = await waiting(world, 500)
    hooks.answers["finish"] = 10.0
    late = world.loop.now + 100.0
    began = world.loop.now
    await refused(world, LockTimeout, lambda service: service.inspect(upload.id, late))
    world.check(world.loop.now - began < 5.0, f"the wait takes {world.loop.now - began:.1f} s")
    await asyncio.sleep(12.0)
    await world.client.look(upload)
    await world.client.download(upload)


@scenario(settings={"sweep_interval": 0})
async def what_an_application_has_accepted_is_not_decided_again(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks())
    upload = await world.complete(900)
    parts = [await world.complete(300 + number, "partial") for number in range(2)]
    final = await join(world, parts)
    await world.client.look(final)
    for each in (upload, final):
        await change_record(world, each, status=Status.FINISHING, completed_at=None)
    hooks.answers["finish"] = AWAY
    for each in (upload, final):
        await world.client.look(each)
        await world.client.download(each)


@scenario(settings={**UNFINISHED, "quota_bytes": 5000})
async def a_final_upload_without_room_is_not_made_by_the_sweeper(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks())
    part = await create(world, 1000, concatenation=UploadKind.PARTIAL)
    await append(world, part, 1000)
    hooks.answers["finish"] = AWAY
    await refused(world, HookUnavailable, lambda service: service.concatenate(final_of([part, part])))
    final_id = next(upload.id for upload in await _records(world) if upload.is_final)
    hooks.answers["finish"] = None
    other = await create(world, 3500)
    await append(world, other, 3500)
    told: list[str] = []
    await world.on(world.host, lambda service: Sweeper(service).sweep(told.append))
    world.check(any(final_id in text for text in told), f"a sweep tells of {told}")
    found = await world.on(world.host, lambda service: service.state.get(final_id))
    world.check(found is None, f"the final upload is {found}")
    await world.client.download(other)


async def _records(world: DirectedWorld) -> list[Upload]:
    async def read(service: UploadService) -> list[Upload]:
        return [upload async for upload in service.state.all()]

    found: list[Upload] = await world.on(world.host, read)
    return found


# Uploads whose records were made by an earlier version.


@scenario(settings={"date_folders": True})
async def uploads_without_a_location_are_found(world: DirectedWorld) -> None:
    upload, whole = await world.unfinished(), await world.complete(800)
    await change_record(world, upload, location="")
    await change_record(world, whole, location="", length=None)
    await world.client.look(upload)
    await world.client.look(whole)
    await world.client.download(whole)
    with small(identity, SAMPLE_SIZE=1):
        await world.on(world.host, lambda service: IdentityCheck(service.state, service.storage).adopt())
        found = await world.on(world.host, lambda s: IdentityCheck(s.state, s.storage)._has_some_uploads())
    world.check(found, "the storage counts as one without the uploads")
    await world.client.append(upload, 2000)
    await world.client.download(upload)


# Objects that are newer than their records.


async def go_back(world: ObjectsWorld, upload: Expected, old: Upload) -> None:
    """Have the records tell of an upload what they told earlier, as after a failover that has lost changes."""
    names = ("offset", "status", "length", "storage_state", "completed_at", "expires_at", "synced")
    changes: dict[str, Any] = {name: getattr(old, name) for name in names}
    await change_record(world, upload, **changes)


@scenario("s3", settings={"sweep_interval": 0})
async def a_finished_object_is_recognised_behind_an_older_record(world: ObjectsWorld) -> None:
    uploads, old = [], []
    for number in range(3):
        upload = await world.unfinished(20_000 + number, 9000)
        old.append(await record_of(world, upload))
        await world.client.append(upload, 11_000 + number)
        uploads.append(upload)
    for upload, record in zip(uploads, old, strict=True):
        await go_back(world, upload, record)
    looked, sent, loaded = uploads
    await world.client.look(looked)
    request = AppendRequest(old[1].offset, Body(bytes(sent.known[old[1].offset :])))
    await refused(world, OffsetMismatch, lambda service: service.append(sent.id, request))
    await world.on(world.host, lambda service: service.get_completed(loaded.id))
    for upload in uploads:
        await world.client.look(upload)
        await world.client.download(upload)


@scenario("s3", settings={"sweep_interval": 0})
async def a_finished_part_is_recognised_when_it_is_put_together(world: ObjectsWorld) -> None:
    parts, old = [], []
    for number in range(2):
        part = await world.unfinished(12_000 + number, 6000, "partial")
        old.append(await record_of(world, part))
        await world.client.append(part, 6000 + number)
        parts.append(part)
    await go_back(world, parts[1], old[1])
    final = await world.client.join(parts)
    await world.client.download(final)


@scenario("s3", settings=UNFINISHED)
async def a_waiting_final_upload_recognises_its_finished_part(world: ObjectsWorld) -> None:
    parts = [await world.complete(12_000, "partial"), await world.unfinished(9000, 6000, "partial")]
    old = await record_of(world, parts[1])
    await world.client.append(parts[1], 3000)
    await go_back(world, parts[1], old)
    final = await join(world, parts)
    await world.client.look(final)
    await world.client.download(final)
    record = await record_of(world, final)
    for part in parts:
        await world.client.remove(part)
    finishing = {"status": Status.FINISHING, "completed_at": None, "storage_state": "", "offset": 0}
    await change_record(world, final, **finishing)
    world.check(record.is_complete, f"the final upload is {record.status}")
    await world.client.look(final)
    await world.client.download(final)


@scenario("s3", settings={"sweep_interval": 0, "expires_after": 50.0})
async def a_completion_whose_parts_were_removed_ends_when_it_expires(world: ObjectsWorld) -> None:
    hooks = await have(world, Hooks(finish=AWAY))
    upload = await world.client.create(20_000)
    await world.client.append(upload, 12_000)
    record = await record_of(world, upload)
    world.bucket.expire_all()
    upload.may_be_gone = upload.is_ending = upload.given_up = True
    await change_record(world, upload, status=Status.FINISHING, offset=12_000, length=12_000)
    hooks.answers["finish"] = None
    told: list[str] = []
    await world.on(world.host, lambda service: Sweeper(service).sweep(told.append))
    world.check(len(told) == 1 and record.expires_at is not None, f"a sweep tells of {told}")
    await asyncio.sleep(60.0)
    summary = await world.on(world.host, sweep)
    world.check(summary.removed == 1, f"a sweep has {summary}")
    await gone(world, upload)
