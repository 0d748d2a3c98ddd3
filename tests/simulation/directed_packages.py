"""Directed scenarios of components of other packages, which have the methods of the contracts and no other ability."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import append, context_of, create, record_of, refused, send
from tests.simulation.directed_contents import digest
from tests.simulation.directed_finals import final_of, join, sweep
from tests.simulation.memory_world import MemoryWorld
from tusd_py.backends.memory.state import MemoryState
from tusd_py.backends.memory.storage import MemoryStorage
from tusd_py.core.errors import StateUnavailable, StorageUnavailable
from tusd_py.core.queries import UploadQuery
from tusd_py.core.upload import Upload
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import NewUpload

STATE = (
    *("clock", "ping", "refresh_clock", "open", "close", "create", "get", "update", "parts", "delete", "due", "list"),
    *("add_waiting", "waiting_for", "remove_waiting", "read_metadata", "write_metadata", "all", "broken"),
)
STORAGE = ("open", "close", "writer", "locate", "stored_size", "finish", "discard_superseded", "delete")


class Plain:
    """A component with some of the methods of another one."""

    def __init__(self, whole: Any, names: Sequence[str]) -> None:
        self._whole = whole
        self._names = frozenset(names)
        for name in names:  # Python looks for methods of a protocol in the class and the instance, from 3.12 on
            if callable(method := getattr(whole, name, None)) and not hasattr(type(self), name):
                setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)
        return getattr(self._whole, name)


class Pieces:
    """The pieces of a file, as an iterator that is no generator."""

    def __init__(self, pieces: AsyncIterator[Any]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._pieces)


class PlainStorage(Plain):
    """A storage with the methods of the contract, some of which may fail."""

    error: Exception | None = None

    def read(self, *arguments: Any) -> Pieces:
        return Pieces(self._whole.read(*arguments))

    async def stored_size(self, upload: Upload) -> int:
        if self.error is not None:
            raise self.error
        size: int = await self._whole.stored_size(upload)
        return size


class EmbeddedWorld(DirectedWorld, MemoryWorld):
    """The directed world of a process that embeds the server."""


async def have(world: EmbeddedWorld, *, concatenates: bool = True) -> PlainStorage:
    """Start the server again with plain components; return the storage."""
    names = (*STORAGE, *(("concatenate", "interrupt") if concatenates else ()))
    storage = PlainStorage(MemoryStorage(world._bytes), names)
    world.given |= {"storage": storage, "state": Plain(MemoryState(world._records), STATE)}
    await world.restart(world.host)
    return storage


@scenario("memory", settings={"sweep_interval": 0, "partial_retention": 100.0})
async def components_without_other_abilities_serve_uploads(world: EmbeddedWorld) -> None:
    await have(world)
    upload = await world.unfinished(3000, 1000)
    await world.restart(world.host)
    await world.client.look(upload)
    await world.client.append(upload, 2000)
    await world.client.download(upload)
    parts = [await world.complete(300 + number, "partial") for number in range(2)]
    final = await join(world, parts)
    await world.client.download(final)
    ends = [(await record_of(world, part)).expires_at for part in parts]
    world.check(all(end and end <= world.machine.wall() + 100.0 for end in ends), f"the parts expire at {ends}")
    removed = await world.unfinished(900, 100)
    await world.client.remove(removed)
    await world.on(world.host, sweep)
    await refused(world, StateUnavailable, lambda service: service.create(NewUpload(10, quota_bytes=100)))
    await refused(world, StateUnavailable, lambda s: s.concatenate(final_of(parts, quota_bytes=100, metadata="a")))


@scenario("memory")
async def administrators_are_told_what_plain_records_know(world: EmbeddedWorld) -> None:
    await have(world)
    server = world.host.server
    assert server is not None
    uploads = [await create(world, 100 + number, context=context_of("ann")) for number in range(3)]
    for upload in uploads:
        await append(world, upload, upload.length)
    server.history.add("completed", await record_of(world, uploads[0]))
    page = await world.on(world.host, lambda _: server.queries.find(UploadQuery(limit=2)))
    world.check(len(page.uploads) == 2 and page.next is not None, f"a page has {len(page.uploads)} uploads")
    totals = await world.on(world.host, lambda _: server.queries.totals())
    shares = totals.totals.by_owner.values()
    world.check(sum(share.bytes for share in shares) == 303, f"the totals are {totals}")
    told = await world.on(world.host, lambda _: server.locks.all())
    world.check((told.processes, list(told.locks)) == (1, []), f"the locks are {told}")


@scenario("memory")
async def a_digest_is_computed_of_the_pieces_of_any_storage(world: EmbeddedWorld) -> None:
    await have(world)
    content = world.client.rng.randbytes(3000)
    upload = await world.client.create(3000, headers=digest(content))
    await send(world, upload, content[:1000])
    await world.restart(world.host)
    await send(world, upload, content[1000:])
    await world.client.download(upload)


@scenario("memory")
async def a_mistake_of_a_storage_is_an_error_and_loses_nothing(world: EmbeddedWorld) -> None:
    storage = await have(world)
    upload = await world.unfinished(3000, 1000)

    async def look(service: UploadService) -> object:
        try:
            return await service._recovery.resume_now(upload.id)
        except ValueError as error:
            return error

    storage.error = ValueError("a mistake")
    result = await world.on(world.host, look)
    world.check(isinstance(result, ValueError), f"the mistake ends as {result!r}")
    storage.error = StorageUnavailable()
    await refused(world, StorageUnavailable, lambda service: service._recovery.resume_now(upload.id))
    storage.error = None
    await world.client.look(upload)
    await world.client.append(upload, 2000)
    await world.client.download(upload)
