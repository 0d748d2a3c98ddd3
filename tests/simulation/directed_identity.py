"""Directed scenarios of the identity that joins a storage with its records."""

from __future__ import annotations

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import refused, start_error
from tests.simulation.filesystem import Folder
from tests.simulation.hosts_world import HostsWorld
from tests.simulation.redis_store import Entry
from tusd_py.backends.memory.state import MemoryState
from tusd_py.core.errors import StateUnavailable, StorageUnavailable, WrongStorage
from tusd_py.uploads.identity import IDENTITY, YOUNGER, IdentityCheck, hand_on_identity
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import OrphanCleaner, Sweeper

OTHER = "f" * 32  # the identity of another storage
FILE = ".tusd-py/identity"


class SharedWorld(DirectedWorld, HostsWorld):
    """The directed world of several hosts."""


def remove_identity(world: DirectedWorld) -> None:
    """Remove the file with the identity of the directory."""
    folder = world.machine.files.find(f"{world.machine.files.top}/.tusd-py")
    assert isinstance(folder, Folder)
    folder.change(("identity", None))
    folder.sync()


def write_identity(world: DirectedWorld, text: str) -> None:
    """Replace the identity of the directory, as another directory has another one."""
    files = world.machine.files
    folder = files.find(f"{files.top}/.tusd-py")
    assert isinstance(folder, Folder)
    file = files.new_file(0o600)
    file.write(0, f"{text}\n".encode())
    file.sync()
    folder.change(("identity", file))
    folder.sync()


def forget(world: SharedWorld, *names: str) -> None:
    """Have Redis lose some of the texts that are kept beside the records; all of them if none is named."""
    key = world.keys.metadata.encode()
    kept = dict(world.redis.store.value(key, {})) if names else {}
    for name in names:
        kept.pop(name.encode(), None)
    world.redis.store.put(key, Entry(kept) if kept else None)


def metadata(world: SharedWorld, name: str) -> bytes | None:
    """Return one of the texts beside the records."""
    found: bytes | None = world.redis.store.value(world.keys.metadata.encode(), {}).get(name.encode())
    return found


async def clean(service: UploadService) -> int:
    """Remove orphans of any age; return their number."""
    return len(await OrphanCleaner(service).clean(older_than=0))


async def sweep(service: UploadService) -> object:
    """Sweep once."""
    return await Sweeper(service).sweep()


@scenario()
async def the_identity_beside_the_records_is_made_again(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    before = world.machine.files.read(f"{world.machine.files.top}/{FILE}")
    await world.stop(world.host)
    remove_identity(world)
    await world.host.start()

    after = world.machine.files.read(f"{world.machine.files.top}/{FILE}")
    world.check(before and after == before, f"the identity was {before!r}, and is {after!r}")
    await world.client.look(upload)


@scenario()
async def another_directory_is_not_ready_and_tells_nothing_of_missing_bytes(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 1000)
    whole = await world.complete(500)
    known = (world.machine.files.read(f"{world.machine.files.top}/{FILE}") or b"").decode().strip()
    write_identity(world, OTHER)
    await refused(world, StorageUnavailable, lambda service: service.check())
    await refused(world, WrongStorage, lambda service: IdentityCheck(service.state, service.storage).prove_orphans())
    write_identity(world, known)

    await world.on(world.host, lambda service: service.check())
    await world.client.look(upload)
    await world.client.download(whole)


@scenario()
async def a_directory_of_another_identity_does_not_serve_until_it_is_adopted(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    await world.stop(world.host)
    write_identity(world, OTHER)
    error = await start_error(world.host)
    text = "" if error is None else error.message
    world.check("the identity of another storage" in text, f"the start ends with {error!r}")
    remove_identity(world)
    await world.host.start()
    write_identity(world, OTHER)

    adopted = await world.on(world.host, lambda service: IdentityCheck(service.state, service.storage).adopt())
    world.check(adopted == OTHER, f"the storage {adopted} was adopted")
    await world.restart(world.host)
    await world.client.look(upload)


@scenario()
async def a_storage_without_an_identity_gets_one_when_it_is_adopted(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    remove_identity(world)
    adopted = await world.on(world.host, lambda service: IdentityCheck(service.state, service.storage).adopt())
    found = (world.machine.files.read(f"{world.machine.files.top}/{FILE}") or b"").decode().strip()
    world.check(found == adopted, f"the storage {adopted} was adopted, and {found!r} is in its file")
    await world.restart(world.host)
    await world.client.look(upload)


@scenario("redis")
async def a_directory_without_the_identity_of_its_records_does_not_serve(world: SharedWorld) -> None:
    upload = await world.unfinished()
    known = (world.machine.files.read(f"{world.machine.files.top}/{FILE}") or b"").decode().strip()
    await world.stop(world.host)
    for text in ("", OTHER):
        if text:
            write_identity(world, text)
        else:
            remove_identity(world)
        error = await start_error(world.host)
        world.check(isinstance(error, StorageUnavailable), f"the start with the identity {text!r} ends with {error!r}")
    write_identity(world, known)
    await world.host.start()
    await world.client.look(upload)


@scenario("redis")
async def nothing_is_an_orphan_in_a_storage_that_is_older_than_its_records(world: SharedWorld) -> None:
    whole = await world.complete()
    await world.stop(world.host)
    for key in [key for key in world.redis.store.entries if b":events" not in key]:
        world.redis.store.put(key, None)  # everything, as an empty Redis in the place of the right one
    await world.host.start()
    world.check(metadata(world, YOUNGER) == b"yes", "the records do not know that the storage is older")
    other = await world.complete(700)
    removed = await world.on(world.host, clean)
    world.check(removed == 0, f"{removed} orphans are removed from a storage that is older than its records")
    await world.client.download(whole)  # by its completion record
    await world.client.download(other)

    await world.on(world.host, lambda service: IdentityCheck(service.state, service.storage).adopt())
    world.check(metadata(world, YOUNGER) == b"no", "the records were joined with the storage, which stays older")


@scenario("redis")
async def the_identity_is_written_again_where_the_records_have_lost_it(world: SharedWorld) -> None:
    upload = await world.unfinished()
    known = metadata(world, IDENTITY)
    forget(world, IDENTITY, YOUNGER)
    await world.on(world.host, sweep)

    world.check(metadata(world, IDENTITY) == known, f"the identity is {metadata(world, IDENTITY)!r}, not {known!r}")
    world.check(metadata(world, YOUNGER) == b"yes", "what is not named by the records counts as an orphan")
    await world.client.look(upload)


@scenario("redis")
async def records_without_an_identity_are_joined_with_the_storage_that_has_their_bytes(world: SharedWorld) -> None:
    await world.client.create(900)
    upload = await world.unfinished()
    removed = await world.unfinished(800, 100)
    await world.client.remove(removed)
    await world.stop(world.host)
    forget(world)
    await world.host.start()

    world.check(metadata(world, IDENTITY) is not None, "the records name no storage")
    world.check(metadata(world, YOUNGER) is None, f"the storage counts as older: {metadata(world, YOUNGER)!r}")
    await world.client.look(upload)


@scenario("redis")
async def records_without_an_identity_are_not_joined_with_a_storage_without_their_bytes(world: SharedWorld) -> None:
    uploads = [await world.unfinished(800, 100 + number) for number in range(4)]
    await world.stop(world.host)
    forget(world)
    files = world.machine.files
    right, files.mounted = files.mounted, files.new_folder()
    files.inodes.append(files.mounted)
    error = await start_error(world.host)
    text = "" if error is None else error.message
    world.check("none of the uploads" in text, f"the start in an empty directory ends with {error!r}")
    files.mounted = right
    await world.host.start()
    for upload in uploads:
        await world.client.look(upload)


@scenario("redis")
async def a_storage_without_room_has_its_identity_later(world: SharedWorld) -> None:
    files = world.machine.files
    await world.stop(world.host)
    remove_identity(world)
    forget(world)
    files.is_full = True
    error = await start_error(world.host)
    world.check(error is None, f"the start on a full disk ends with {error!r}")
    world.check(metadata(world, IDENTITY) is None, "the records name a storage without an identity")
    files.is_full = False
    await world.restart(world.host)

    found = files.read(f"{files.top}/{FILE}") or b""
    world.check(found.strip() == metadata(world, IDENTITY) != b"", f"the identity is {found!r}")
    await world.complete()


@scenario("memory")
async def a_storage_that_cannot_have_an_identity_needs_none(world: DirectedWorld) -> None:
    upload = await world.complete()
    await refused(world, StorageUnavailable, lambda service: IdentityCheck(service.state, service.storage).adopt())
    proves = await world.on(world.host, lambda service: IdentityCheck(service.state, service.storage).prove_orphans())
    world.check(proves, "missing bytes in memory prove nothing")
    await world.on(world.host, sweep)
    await world.on(world.host, lambda service: service.check())
    await world.client.download(upload)


@scenario()
async def copies_of_records_name_the_same_storage(world: DirectedWorld) -> None:
    await world.unfinished()

    async def hand_on(service: UploadService, target: MemoryState) -> None:
        await hand_on_identity(service.state, target)

    target, other = MemoryState(), MemoryState()
    for _ in range(2):  # the second time as after a crash in between
        await world.on(world.host, lambda service: hand_on(service, target))
    source = await world.on(world.host, lambda service: service.state.read_metadata(IDENTITY))
    copied = await target.read_metadata(IDENTITY)
    world.check(copied == source is not None, f"the copies name {copied}, the records {source}")
    world.check(await target.read_metadata(YOUNGER) == "no", "the copies do not know how old the storage is")
    await other.write_metadata(IDENTITY, OTHER, before=None)
    await refused(world, StateUnavailable, lambda service: hand_on(service, other))
    world.check(await other.read_metadata(IDENTITY) == OTHER, "the records of another storage are overwritten")
    await hand_on_identity(MemoryState(), target)  # from records of a storage without one
    world.check(await target.read_metadata(IDENTITY) == source, "the copies name no storage any more")
