"""Directed scenarios of places that an application chooses, and of programs beside the servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import refused, start_error
from tests.simulation.machine import Process
from tests.simulation.world import TOP
from tusd_py.backends.disk import storage as disk_storage
from tusd_py.backends.local_locks import byte_ranges, locker
from tusd_py.backends.local_locks.locker import EARLIER_LOCKS, servers_excluded
from tusd_py.core.errors import PathTaken, StateUnavailable, StoredElsewhere, UploadNotFound
from tusd_py.core.upload import Upload
from tusd_py.uploads.service import UploadService

LOCKS = Path(TOP, ".tusd-py", "locks")


def at(name: str, place: str) -> Upload:
    return Upload(name * 32, 1.0, 100, location=f"={place}")


def storage_of(service: UploadService) -> Any:
    return service.storage


async def claim(service: UploadService, upload: Upload) -> None:
    await storage_of(service).claim_place(upload)


async def give_up(service: UploadService, upload: Upload) -> None:
    await storage_of(service).give_up_place(upload)


async def _is_occupied(service: UploadService, upload: Upload) -> bool:
    return bool(await storage_of(service).is_occupied(upload))


def names(world: DirectedWorld) -> set[str]:
    return {name for name in world.machine.files.names() if not name.startswith(".")}


@scenario()
async def a_place_belongs_to_one_upload_with_all_below_and_above(world: DirectedWorld) -> None:
    first = at("a", "film/cut/one")
    await world.on(world.host, lambda service: claim(service, first))
    world.check(names(world) == {"film/cut/one"}, f"a claim makes {names(world)}")
    for place in ("film/cut/one", "film/cut/one/two", "film/cut", "film"):
        await refused(world, PathTaken, partial(claim, upload=at("b", place)))
    world.check(names(world) == {"film/cut/one"}, f"refused claims have made {names(world)}")
    await world.on(world.host, lambda service: claim(service, at("c", "film/cut/two")))
    for upload in (at("b", "film/cut/one"), at("c", "film/cut/two")):  # the place of another one, and its own
        await world.on(world.host, partial(give_up, upload=upload))
    world.check(names(world) == {"film/cut/one"}, f"after a place was given up there are {names(world)}")
    _fill(world, "film/cut/one", b"bytes")
    await world.on(world.host, partial(give_up, upload=first))
    world.check(names(world) == {"film/cut/one"}, "a place with bytes was given up")
    _fill(world, "film/cut/one", b"")
    await world.on(world.host, partial(give_up, upload=first))
    world.check(not names(world), f"after all places were given up there are {names(world)}")


def _fill(world: DirectedWorld, name: str, content: bytes) -> None:
    found: Any = world.machine.files.find(f"{TOP}/{name}")
    found.cut(0)
    found.write(0, content)


@scenario()
async def files_of_other_programs_are_in_the_way_of_places(world: DirectedWorld) -> None:
    files = world.machine.files
    files.mounted.change(("notes", files.new_file(0o644)))
    for place in ("notes", "notes/one"):
        await refused(world, PathTaken, partial(claim, upload=at("a", place)))
        await world.on(world.host, partial(_is_occupied, upload=at("a", place)))
    world.check(names(world) == {"notes"}, f"refused claims have made {names(world)}")
    files.mounted.change(("notes", None))


@scenario()
async def places_that_lead_out_of_the_directory_are_refused(world: DirectedWorld) -> None:
    storage = await world.on(world.host, _storage)
    for text in ("../secret", "a/../b", ".hidden", "a//b", "", "a\nb", "x" * 201, "y/" * 600 + "y"):
        world.check(_raises(ValueError, partial(storage.place, text)), f"the place {text[:20]!r} is taken")
    world.check(_raises(PathTaken, lambda: storage.place("f" * 32)), "the name of an upload is taken as a place")
    world.check(storage.place(f"{TOP}/film/cut") == "=film/cut", "a whole path is no place")
    strange = Upload("a" * 32, 1.0, 10, location="/etc")
    world.check(_raises(StoredElsewhere, lambda: storage.path(strange)), "a strange location has a path")
    world.check(storage.describe(strange) == {}, "a strange location is described")
    other = Upload("a" * 32, 1.0, 10, storage_state="{}")
    world.check(_raises(StoredElsewhere, lambda: storage.path(other)), "an upload of another storage has a path")
    for name in ("", "../records", ".probe"):
        world.check(_raises(UploadNotFound, partial(storage.path, Upload(name, 1.0))), f"{name!r} has a path")


async def _storage(service: UploadService) -> Any:
    return service.storage


def _raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


# Programs beside the servers.


@scenario()
async def no_server_starts_while_records_are_copied_and_none_are_copied_while_one_runs(world: DirectedWorld) -> None:
    program = Process(world.machine, 0)

    def exclude() -> Any:
        excluded = servers_excluded(LOCKS)
        excluded.__enter__()
        return excluded

    world.check(_raises(StateUnavailable, lambda: program.context.run(exclude)), "records are copied under a server")
    await world.stop(world.host)
    excluded = program.context.run(exclude)
    error = await start_error(world.host)
    world.check("copied" in str(error), f"the start while records are copied ends with {error!r}")
    program.context.run(excluded.__exit__, None, None, None)
    nowhere = servers_excluded(Path(TOP, "nothing", "locks"))
    program.context.run(nowhere.__enter__)
    program.context.run(nowhere.__exit__, None, None, None)
    await world.host.start()
    await world.complete(300)


@scenario()
async def a_server_of_an_earlier_version_keeps_this_one_from_its_start(world: DirectedWorld) -> None:
    await world.stop(world.host)
    earlier = Process(world.machine, 0)
    system: Any = vars(locker)["os"]
    descriptor = earlier.context.run(system.open, LOCKS, os.O_RDWR)
    world.check(earlier.context.run(byte_ranges.try_lock, descriptor, EARLIER_LOCKS + 77), "a lock is not granted")
    error = await start_error(world.host)
    world.check("earlier version" in str(error), f"the start beside an earlier server ends with {error!r}")
    earlier.end()
    await world.host.start()
    await world.complete(300)


@scenario()
async def a_directory_that_may_not_be_written_to_is_told(world: DirectedWorld) -> None:
    await world.stop(world.host)
    system: Any = vars(disk_storage)["os"]
    system.is_denied = True
    error = await start_error(world.host)
    system.is_denied = False
    world.check(error is not None, "a server starts on a directory that it may not write to")
    await world.host.start()
    await world.complete(300)
