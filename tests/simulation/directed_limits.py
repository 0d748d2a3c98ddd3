"""Directed scenarios of limits of memory: of the parts of S3, and of a storage in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import record_of, refused
from tusd_py.backends.s3 import memory_limiter
from tusd_py.backends.s3.memory_limiter import MAX_SPILLS, CachedPart, ChunkPool, MemoryLimiter
from tusd_py.core.errors import PartBehind, ServerShutdown, StorageUnavailable
from tusd_py.uploads.service import UploadService

TOTAL = 1000  # bytes


class Filling:
    """An upload that fills a part, and stores its bytes as a tail when it is asked to."""

    def __init__(self, memory: MemoryLimiter, held: int, *, silent: bool = False, expected: int = 0) -> None:
        self._memory, self._held = memory, held
        self.silent, self.expected = silent, expected
        self.spilling: asyncio.Future[None] | None = None
        memory.register(self)

    @property
    def spillable(self) -> int:
        return 0 if self.spilling else self._held

    def spill(self) -> asyncio.Future[None]:
        self.spilling = asyncio.get_running_loop().create_future()
        return self.spilling

    def store(self) -> None:
        """Have S3 store the tail."""
        assert self.spilling is not None
        self._memory.release(self._held)
        self._held = 0
        self.spilling.set_result(None)
        self.spilling = None


@scenario("s3")
async def the_memory_of_parts_is_never_exceeded(world: DirectedWorld) -> None:
    async def lead(_: UploadService) -> None:
        memory = MemoryLimiter(TOTAL)
        try:
            await memory.reserve(TOTAL + 1)
        except StorageUnavailable as error:
            world.check("does not fit" in str(error), f"a part that never fits is refused with {error}")
        else:
            world.complain("a part is held that is larger than the memory")
        await _spill_silent(world, memory)
        await _spill_waiting(world)
        await _make_room(world)

    await world.on(world.host, lead)
    pool = ChunkPool(memory_limiter.CHUNK_SIZE)
    lent = [pool.acquire() for _ in range(3)]
    pool.release_all(lent)
    world.check(len(pool._free) == 1, f"{len(pool._free)} buffers are kept, where there is room for one")


async def _spill_silent(world: DirectedWorld, memory: MemoryLimiter) -> None:
    """Have more silent uploads than may spill at a time, and requests that wait for their bytes."""
    uploads = []
    for _ in range(MAX_SPILLS + 2):
        await memory.reserve(150)
        uploads.append(Filling(memory, 150, silent=True))
    waiting = [asyncio.ensure_future(memory.reserve(400)) for _ in range(2)]
    await asyncio.sleep(0.1)
    spilling = [upload for upload in uploads if upload.spilling]
    world.check(len(spilling) == MAX_SPILLS, f"{len(spilling)} uploads store tails at a time")
    for upload in spilling:
        upload.store()
        await asyncio.sleep(0.1)
        world.check(memory.used <= TOTAL, f"{memory.used} bytes are held")
    for upload in uploads:
        if upload.spilling:
            upload.store()
    await asyncio.wait(waiting, timeout=5.0)
    world.check(all(each.done() for each in waiting), "a reservation waits for nobody")
    world.check(memory.used <= TOTAL, f"{memory.used} bytes are held")


async def _spill_waiting(world: DirectedWorld) -> None:
    """Have uploads that wait for their turn store the little that each of them holds."""
    memory = MemoryLimiter(TOTAL)
    await memory.reserve(300)
    busy = Filling(memory, 0, expected=700)
    waiting = []
    for _ in range(3):
        await memory.reserve(100)
        waiting.append(Filling(memory, 100))
    with memory.releasing():
        turns = [asyncio.ensure_future(memory.admit(upload, 500)) for upload in waiting]
        await asyncio.sleep(0.5)
        spilling = [upload for upload in waiting if upload.spilling]
        world.check(len(spilling) == 3, f"{len(spilling)} of three uploads that wait store tails")
        turns[1].cancel()
        for upload in spilling:
            upload.store()
        await asyncio.sleep(0.5)
        world.check(not turns[0].done(), "a part is begun that has no room")
        busy.expected = 0
        memory.release(300)
        await asyncio.wait((turns[0], turns[2]), timeout=5.0)
    world.check(turns[0].done() and turns[2].done(), "an upload waits for its turn without a reason")
    world.check(memory.used == 0, f"{memory.used} bytes are held")


async def _make_room(world: DirectedWorld) -> None:
    """Have bytes that are cached for the next request give way."""
    memory = MemoryLimiter(TOTAL)
    await memory.reserve(400)
    memory.cache("a", CachedPart("layout", 0, [], 400))
    await memory.reserve(500)
    await asyncio.wait_for(memory.reserve(500), 5.0)
    world.check(memory.used == 1000, f"{memory.used} bytes are held beside cached ones")
    world.check(memory.take_cached("a", "layout", 400) is None, "cached bytes are there twice")


@scenario("memory")
async def a_storage_in_memory_joins_no_parts_that_are_short_or_after_its_end(world: DirectedWorld) -> None:
    parts = [await world.complete(size, "partial") for size in (300, 400)]
    storage: Any = world.service.storage
    records = [await record_of(world, part) for part in parts]
    held = storage._stored[parts[1].id]
    storage._stored[parts[1].id] = held[:-1]
    await refused(world, PartBehind, lambda service: storage.concatenate(records[0], records, sync=True))
    storage._stored[parts[1].id] = held
    storage.interrupt()
    await refused(world, ServerShutdown, lambda service: storage.concatenate(records[0], records, sync=True))
    storage._interrupted = False
    final = await world.client.join(parts)
    await world.client.download(final)
