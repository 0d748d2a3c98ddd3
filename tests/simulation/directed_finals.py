"""Directed scenarios of final uploads: refusals, what they wait for, and parts that lose their bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import (
    append,
    change_record,
    context_of,
    create,
    gone,
    record_of,
    refused,
    send,
    until,
)
from tests.simulation.directed_decisions import Hooks, choose, have
from tests.simulation.filesystem import File
from tests.simulation.oracle import Expected
from tusd_py.core.errors import (
    InvalidConcatenation,
    PartialLost,
    PartialUnfinished,
    QuotaExceeded,
    StorageFull,
    UploadExists,
    UploadNotFound,
)
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import NewUpload

UNFINISHED = {"concatenation_unfinished": True, "sweep_interval": 0}


def final_of(parts: Sequence[Expected], **choices: Any) -> NewUpload:
    """Return a request for a final upload of these parts."""
    ids = tuple(part.id for part in parts)
    header = "final;" + " ".join(part.path for part in parts)
    return NewUpload(None, concatenation=UploadKind.FINAL, concat_header=header, partial_ids=ids, **choices)


async def join(world: DirectedWorld, parts: Sequence[Expected], **choices: Any) -> Expected:
    """Have the service make a final upload; return it."""
    record: Upload = await world.on(world.host, lambda service: service.concatenate(final_of(parts, **choices)))
    return expect(world, parts, record)


def expect(world: DirectedWorld, parts: Sequence[Expected], record: Upload) -> Expected:
    """Return a final upload that was made, or waits."""
    final = Expected(world.next_upload(), sum(part.length for part in parts), kind="final", parts=tuple(parts))
    final.id = record.id
    world.client.uploads.append(final)
    world.oracle.uploads.append(final)
    final.join_parts()
    return final


async def sweep(service: UploadService) -> Any:
    """Sweep once."""
    return await Sweeper(service).sweep()


def cut(world: DirectedWorld, upload: Expected, size: int) -> None:
    """Have the storage lose the last bytes of an upload, as a disk does that breaks."""
    found = world.machine.files.find(f"{world.machine.files.top}/{upload.id}")
    assert isinstance(found, File)
    found.cut(size)
    found.sync()
    upload.floor, upload.complete = min(upload.floor, size), False
    del upload.known[size:]


async def due(world: DirectedWorld, upload: Expected) -> None:
    """Have the time of the next attempt for a waiting upload come."""
    await asyncio.sleep(120.0)
    record = await record_of(world, upload)
    world.check(record.expires_at is None or record.expires_at <= world.machine.wall(), f"{record} is not due")


# Refusals.


@scenario(settings={"concatenation_parts": 2, "concatenation_repeats": 1})
async def final_uploads_of_wrong_parts_are_refused(world: DirectedWorld) -> None:
    parts = [await world.complete(size, "partial") for size in (300, 400)]
    whole, unfinished = await world.complete(200), await world.unfinished(900, 100, "partial")
    cases: Sequence[tuple[type[Any], Sequence[Expected]]] = (
        (InvalidConcatenation, [*parts, parts[0]]),
        (InvalidConcatenation, [parts[0], parts[0]]),
        (InvalidConcatenation, [whole]),
        (PartialUnfinished, [parts[0], unfinished]),
        (UploadNotFound, [parts[0], Expected(0, 0, id="unknown")]),
    )
    for kind, named in cases:
        await refused(world, kind, lambda service, named=named: service.concatenate(final_of(named)))  # type: ignore[misc]
    final = await join(world, parts)
    await world.client.look(final)
    await send(world, final, b"", status=403)
    await world.client.download(final)
    again = await world.on(world.host, lambda service: service.concatenate(final_of(parts)))
    world.check(again.id == final.id, f"a repeated request makes {again.id}")


@scenario()
async def parts_of_another_owner_are_as_those_that_do_not_exist(world: DirectedWorld) -> None:
    part = await create(world, 300, concatenation=UploadKind.PARTIAL, context=context_of("ann"))
    await append(world, part, 300)

    async def is_of_ben(upload: Upload) -> bool:
        return upload.owner == "ben"

    await refused(world, UploadNotFound, lambda service: service.concatenate(final_of([part], may_use=is_of_ben)))
    final = await join(world, [part])
    await refused(world, UploadNotFound, lambda service: service.concatenate(final_of([part], may_use=is_of_ben)))
    await world.client.download(final)


@scenario(settings={"gone_for": 1000.0})
async def a_final_upload_that_was_removed_is_made_again(world: DirectedWorld) -> None:
    parts = [await world.complete(size, "partial") for size in (300, 400)]
    final = await join(world, parts)
    await world.client.remove(final)
    await gone(world, final, 410)
    world.client.uploads.remove(final)
    world.oracle.uploads.remove(final)
    again = await join(world, parts)
    world.check(again.id == final.id, f"the final upload of the same parts is {again.id}")
    await world.client.download(again)


@scenario()
async def an_application_gives_the_id_of_a_final_upload_once(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks())
    parts = [await world.complete(size, "partial") for size in (300, 400)]
    hooks.answers["create"] = choose(id="final")
    final = await join(world, parts)
    await refused(world, UploadExists, lambda service: service.concatenate(final_of(parts[:1])))
    hooks.answers["create"] = None
    world.check(final.id == "final", f"the id is {final.id}")
    await world.client.download(final)


# Waiting.


@scenario(settings=UNFINISHED)
async def a_final_upload_waits_for_its_parts_and_ends_with_them(world: DirectedWorld) -> None:
    parts = [await world.complete(300, "partial"), await world.unfinished(400, 100, "partial")]
    final = await join(world, parts)
    await world.client.ask("GET", final.path, status=404)
    await world.client.append(parts[1], 300)
    final.join_parts()
    await world.client.look(final)
    await world.client.download(final)

    part = await world.unfinished(500, 100, "partial")
    lost = await join(world, [parts[0], part])
    await world.client.remove(part)
    await gone(world, lost)


@scenario(settings=UNFINISHED)
async def a_final_upload_whose_part_ends_in_a_shutdown_is_made_by_the_sweeper(world: DirectedWorld) -> None:
    part = await world.unfinished(500, 100, "partial")
    finals = [await join(world, [part]), await join(world, [part], metadata="other")]
    service = world.service
    real = service._recovery.resume_now

    async def resume(final_id: str) -> object:
        service._work.drain()
        return await real(final_id)

    service._recovery.resume_now = resume  # type: ignore[method-assign, assignment]
    await world.client.append(part, 400)
    await world.restart(world.host)
    for final in finals:
        final.join_parts()
    await due(world, finals[1])
    await world.on(world.host, sweep)
    for final in finals:
        await world.client.look(final)
        await world.client.download(final)


@scenario(settings=UNFINISHED)
async def a_waiting_final_upload_waits_on_if_a_part_has_lost_bytes(world: DirectedWorld) -> None:
    parts = [await world.complete(2000, "partial"), await world.unfinished(400, 100, "partial")]
    final = await join(world, parts)
    cut(world, parts[0], 1500)
    await world.client.append(parts[1], 300)
    final.complete = False
    record = await record_of(world, final)
    world.check(record.status is Status.FINISHING, f"the final upload is {record.status}")
    await world.client.look(parts[0])
    world.check(parts[0].last_offset == 1500, f"the part that has lost bytes is at {parts[0].last_offset}")
    await world.client.append(parts[0], 500)
    final.join_parts()
    await world.client.look(final)
    await world.client.download(final)


@scenario(settings={"sweep_interval": 0})
async def a_final_upload_of_a_part_without_its_bytes_is_not_made(world: DirectedWorld) -> None:
    parts = [await world.complete(2000, "partial"), await world.complete(400, "partial")]
    cut(world, parts[0], 1500)
    await refused(world, PartialLost, lambda service: service.concatenate(final_of(parts)))
    await world.client.look(parts[0])
    await world.client.append(parts[0], 500)
    await world.client.download(await join(world, parts))


@scenario(settings=UNFINISHED)
async def a_final_upload_waits_for_room(world: DirectedWorld) -> None:
    parts = [await world.complete(3000, "partial"), await world.unfinished(400, 100, "partial")]
    final = await join(world, parts)
    await world.client.append(parts[1], 200)
    storage: Any = world.service.storage
    real = storage.concatenate
    failures: list[Exception] = [StorageFull()]

    async def without_room(*arguments: Any, **options: Any) -> str:
        if failures:
            raise failures.pop()
        text: str = await real(*arguments, **options)
        return text

    storage.concatenate = without_room
    await world.client.append(parts[1], 100)
    await until(world, lambda: not failures, "the attempt")
    record = await record_of(world, final)
    world.check(record.status is Status.FINISHING, f"the final upload is {record.status}")
    await due(world, final)
    await world.on(world.host, sweep)
    final.join_parts()
    await world.client.look(final)
    await world.client.download(final)


@scenario(settings=UNFINISHED)
async def a_part_of_another_owner_who_has_its_id_now_is_not_used(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=choose(id="part")))
    part = await create(world, 300, concatenation=UploadKind.PARTIAL, context=context_of("ann"))
    hooks.answers["create"] = None
    final = await join(world, [part], context=context_of("ann"))
    await append(world, part, 299)
    now = world.machine.wall() + 5.0
    await change_record(world, part, owner="ben", length=299, status=Status.COMPLETE, created_at=now)
    part.length = part.wanted_length = 299
    part.abandoned = True
    await refused(world, UploadNotFound, lambda service: service._recovery.resume_now(final.id))
    await gone(world, final)


# Quotas.


@scenario(settings={"quota_bytes": 5000, "sweep_interval": 0})
async def a_final_upload_needs_room_beyond_that_of_its_parts(world: DirectedWorld) -> None:
    parts = [await create(world, size, concatenation=UploadKind.PARTIAL) for size in (1000, 2000)]
    for part in parts:
        await append(world, part, part.length)
    twice = [parts[1], parts[1], parts[1]]
    await refused(world, QuotaExceeded, lambda service: service.concatenate(final_of(twice)))
    final = await join(world, parts)
    await world.client.download(final)


@scenario(settings={**UNFINISHED, "quota_bytes": 5000})
async def a_waiting_final_upload_waits_for_room_of_its_owner(world: DirectedWorld) -> None:
    part = await create(world, None, planned=2000, concatenation=UploadKind.PARTIAL)
    final = await join(world, [part, part])
    other = await create(world, 2000)
    await append(world, part, 2000, length=2000)
    record = await record_of(world, final)
    world.check(record.status is Status.FINISHING, f"the final upload is {record.status}")
    await world.client.remove(other)
    final.length = final.wanted_length = 4000
    await due(world, final)
    await world.on(world.host, sweep)
    final.join_parts()
    await world.client.look(final)
    await world.client.download(final)
