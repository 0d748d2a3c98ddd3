"""Directed scenarios of reservations: ids that one new upload takes, and none after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import append, create, refused, until
from tests.simulation.directed_decisions import NO, Hooks, choose, have, new
from tests.simulation.oracle import Expected
from tests.support.services import Body
from tusd_py.contracts.hooks import HookCall
from tusd_py.core.errors import ClientDisconnected, HookRejected, HookUnavailable, UploadExists, UploadNotFound
from tusd_py.core.upload import Status
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload, Reservation


def reservation(world: DirectedWorld, upload_id: str = "reserved", seconds: float = 100.0) -> Reservation:
    """Return a reservation of an id for so many seconds."""
    return Reservation(upload_id, world.machine.wall() + seconds)


@scenario(settings={"sweep_interval": 0})
async def a_reserved_id_is_taken_once_also_by_an_upload_that_has_ended(world: DirectedWorld) -> None:
    place = reservation(world)
    upload = await create(world, 900, reservation=place)
    world.check(upload.id == "reserved", f"the id is {upload.id}")
    await refused(world, UploadExists, new(reservation=place))
    await world.client.remove(upload)
    await refused(world, UploadExists, new(reservation=place))
    await world.on(world.host, lambda service: Sweeper(service).sweep())
    await refused(world, UploadExists, new(reservation=place))
    await asyncio.sleep(110.0)
    await world.on(world.host, lambda service: Sweeper(service).sweep())
    world.client.uploads.remove(upload)
    world.oracle.uploads.remove(upload)
    again = await create(world, 500, reservation=reservation(world))
    await append(world, again, 500)


@scenario(settings={"sweep_interval": 0})
async def a_reservation_is_free_again_after_a_creation_that_was_refused(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=NO))
    place = reservation(world)
    await refused(world, HookRejected, new(0, reservation=place))
    hooks.answers["finish"] = RuntimeError("away")
    error = await refused(world, HookUnavailable, new(0, reservation=place))  # the upload exists, and waits
    world.check(getattr(error, "created", None) == "reserved", f"{error!r} names no upload")
    await refused(world, UploadExists, new(0, reservation=place))
    hooks.answers["finish"] = None
    record = await world.on(world.host, lambda service: service.inspect("reserved"))
    world.check(record.is_complete, f"the upload is {record.status}")


@scenario(settings={"sweep_interval": 0})
async def a_reservation_of_an_upload_with_another_id_is_taken_by_a_record(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=choose(id="chosen"), finish=NO))
    place = reservation(world)
    await refused(world, HookRejected, new(0, reservation=place))
    hooks.answers["finish"] = None
    upload = await create(world, 800, reservation=place)
    world.check(upload.id == "chosen", f"the id is {upload.id}")
    hooks.answers["create"] = choose(id="second")
    await refused(world, UploadExists, new(reservation=place))
    taken = await world.on(world.host, lambda service: service.state.get("reserved"))
    world.check(taken is not None and taken.status is Status.TERMINATED, f"the reservation is taken by {taken}")
    hooks.answers["create"] = choose(id="chosen")
    other = reservation(world, "other")
    await refused(world, UploadExists, new(reservation=other))
    found = await world.on(world.host, lambda service: service.state.get("other"))
    world.check(found is None, f"a creation that failed has left {found}")
    await refused(world, ClientDisconnected, lambda service: broken_off(service, choose_id(hooks, "third"), other))
    kept = await world.on(world.host, lambda service: service.state.get("other"))
    world.check(kept is not None, "the reservation is free, and its upload exists")
    await append(world, upload, 800)
    third = Expected(world.next_upload(), 10, id="third")
    world.client.uploads.append(third)
    world.oracle.uploads.append(third)
    await world.client.look(third)


def choose_id(hooks: Hooks, name: str) -> int:
    """Have the next upload get this id; return a length."""
    hooks.answers["create"] = choose(id=name)
    return 10


async def broken_off(service: UploadService, length: int, place: Reservation) -> object:
    """Create an upload with first bytes, after which the client is gone."""
    request = AppendRequest(0, Body(b"", breaks_off=True))
    return await service.create_with(NewUpload(length, reservation=place), request)


@scenario(settings={"sweep_interval": 0})
async def a_reservation_of_an_upload_that_somebody_else_removes_stays_taken(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=2.0))
    place = reservation(world)
    creating = asyncio.ensure_future(refused(world, UploadNotFound, rejected_late(hooks, place)))
    await until(world, lambda: bool(hooks.calls), "the question")
    await creating
    found = await world.on(world.host, lambda service: service.state.get("reserved"))
    world.check(found is None or found.has_ended, f"the upload is {found}")


def rejected_late(hooks: Hooks, place: Reservation) -> Callable[[UploadService], Any]:
    """Return a creation whose first bytes find no upload, since it was removed meanwhile."""

    async def make(service: UploadService) -> object:
        new_upload = NewUpload(10, reservation=place)
        real = service.append

        async def after_a_removal(upload_id: str, request: AppendRequest) -> Any:
            await service.terminate(upload_id)
            return await real(upload_id, request)

        service.append = after_a_removal  # type: ignore[method-assign, assignment]
        try:
            return await service.create_with(new_upload, AppendRequest(0, Body(bytes(5))))
        finally:
            service.append = real  # type: ignore[method-assign]
            hooks.calls.append(HookCall("pre-finish", None))  # type: ignore[arg-type]

    return make
