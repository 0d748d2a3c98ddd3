"""Directed scenarios of the indexes in Redis: entries that are lost, pages of records, corrections, and feeds."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulation.directed import scenario
from tests.simulation.directed_calls import create, small, until
from tests.simulation.directed_identity import SharedWorld
from tests.simulation.followers import Follower
from tests.simulation.oracle import Expected
from tusd_py.backends.redis import created_index, due_index, feed, id_index, lock_channel
from tusd_py.core.upload import Upload
from tusd_py.uploads.service import UploadService


async def _repair(service: UploadService) -> int:
    state: Any = service.state
    count: int = await state._due_index.repair(0)
    return count


def entries(world: SharedWorld, key: str) -> set[bytes]:
    """Return the members of an index."""
    return set(world.redis.store.value(key.encode(), {}))


async def _administrate(world: SharedWorld) -> None:
    """Start the servers again as ones that are prepared for queries."""
    for host in world.hosts:
        host.is_administrated = lambda: True
        await world.restart(host)


@scenario("redis", processes=2, settings={"expires_after": 3000.0, "sweep_interval": 0})
async def indexes_that_redis_has_lost_are_restored_page_by_page(world: SharedWorld) -> None:
    await _administrate(world)
    uploads = [await world.unfinished(3000, 1000) for _ in range(7)]
    whole = await world.complete(500)
    keys = world.keys
    ids = {upload.id.encode() for upload in uploads}
    with small(due_index, PAGE_SIZE=3), small(id_index, PAGE_SIZE=3), small(created_index, PAGE_SIZE=3):
        for key in (keys.due, keys.ids, keys.unfinished):
            world.redis.store.put(key.encode(), None)
        added = await world.on(world.host, _repair)
        world.check(added >= len(uploads), f"{added} of {len(uploads)} entries are restored")
        for key in (keys.due, keys.ids, keys.unfinished):
            world.check(ids <= entries(world, key), f"the index {key} has {len(entries(world, key))} entries")
        world.check(whole.id.encode() not in entries(world, keys.unfinished), "a complete upload counts as unfinished")
        world.check(await world.on(world.host, _repair) == 0, "entries are restored twice")
        for key in (keys.created, keys.unfinished, keys.ids):
            world.redis.store.put(key.encode(), None)
        await _administrate(world)  # which finds that nothing is prepared
        found = entries(world, keys.created)
        world.check({*ids, whole.id.encode()} <= found, f"the index of creations has {len(found)} entries")
    for upload in uploads:
        await world.client.append(upload, 2000)
        await world.client.download(upload)
    await asyncio.sleep(1.0)
    left = entries(world, keys.unfinished)
    world.check(not ids & left, f"{len(ids & left)} complete uploads count as unfinished")


@scenario("redis", settings={"sweep_interval": 0})
async def uploads_that_end_together_are_taken_out_of_the_unfinished_ones(world: SharedWorld) -> None:
    await _administrate(world)
    uploads = [await world.unfinished(500, 100) for _ in range(5)]
    with small(created_index, MAX_COMPLETED=2):
        for upload in uploads:
            await world.client.append(upload, 400)
        again = uploads.pop()
        await world.client.remove(again)
    state: Any = world.service.state
    world.redis.stalled_until = world.loop.now + 2.0

    async def correct(_: UploadService) -> None:
        state._created_index.correct(world.keys.unfinished, [again.id])
        await state._created_index.forget(again.id)
        ended = [sending.done() for sending, ids in state._created_index._sending.items() if again.id in ids]
        world.check(all(ended), "a correction outlasts what it concerns")
        state._created_index.correct(world.keys.unfinished, [upload.id for upload in uploads])
        await state._created_index.close()
        ended = [sending.done() for sending in state._created_index._sending]
        world.check(all(ended), "a correction outlasts the index")
        await state._created_index.add([])

    await world.on(world.host, correct)
    left = entries(world, world.keys.unfinished)
    world.check(not {upload.id.encode() for upload in uploads} & left, f"{left} count as unfinished")
    for upload in uploads:
        await world.client.download(upload)


@scenario("redis", settings={"sweep_interval": 0})
async def an_entry_of_a_record_that_cannot_be_read_is_passed_over(world: SharedWorld) -> None:
    await _administrate(world)
    upload = await world.unfinished(500, 100)
    state: Any = world.service.state
    record = world.keys.record(upload.id).encode()
    entry = world.redis.store.entries[record]
    entry.value[b"created_at"], before = b"yesterday", entry.value[b"created_at"]
    await world.on(world.host, lambda _: state._created_index.add([upload.id, "f" * 32]))
    entry.value[b"created_at"] = before
    world.check(b"f" * 32 not in entries(world, world.keys.created), "an upload without a record has an entry")
    await world.client.append(upload, 400)


# The feed.


def feed_of(world: SharedWorld, number: int) -> Any:
    server = world.hosts[number].server
    assert server is not None
    return server._feed


async def listening(world: SharedWorld, upload: Expected) -> asyncio.Task[bool]:
    """Return a listener of the second process to an upload, once the first one knows of it."""
    listener = Follower(world, world.client.rng).start(world.hosts[1], upload, 3600.0)
    await until(world, lambda: bool(feed_of(world, 0).is_wanted), "the interest of another process", 10.0)
    return listener


async def told(world: SharedWorld, listener: asyncio.Task[bool], what: str) -> None:
    await until(world, listener.done, what, 20.0)
    world.check(listener.done() and listener.result(), f"a listener is not told of {what}")


def subscriptions(world: SharedWorld) -> set[tuple[str, bytes]]:
    """Return the processes, with the channels that they hear."""
    alive = [connection for connection in world.redis.connections if not connection.hangs]
    return {(connection.process.name, channel) for connection in alive for channel in connection.channels}


@scenario("redis", processes=2, settings={"sweep_interval": 0})
async def a_feed_outlives_silence_and_forgets_those_that_have_died(world: SharedWorld) -> None:
    with small(feed, LISTEN_TIMEOUT=1.0), small(lock_channel, LISTEN_TIMEOUT=1.0):
        upload, other = await world.unfinished(), await world.unfinished()
        listener = await listening(world, upload)
        await asyncio.sleep(5.0)  # each silence is ended by a ping
        await world.client.append(other, 2000)  # which nobody listens to
        await world.client.append(upload, 500)
        before = subscriptions(world)
        for connection in world.redis.connections:
            connection.hangs = True  # of which nobody is told: no ping is answered
        await asyncio.sleep(15.0)
        world.check(subscriptions(world) == before, f"of {before} only {subscriptions(world)} are heard again")
        await world.client.append(upload, 1500)
        await told(world, listener, "the end after a silence")
        third = await world.unfinished()
        listener = await listening(world, third)
        world.hosts[1].kill()
        listener.cancel()
        await until(world, lambda: not feed_of(world, 0).is_wanted, "the end of the interest of a process that died")
        await world.client.append(third, 2000)
        await world.hosts[1].start()


@scenario("redis", processes=2, settings={"sweep_interval": 0})
async def a_process_sends_so_many_changes_at_a_time_and_no_more(world: SharedWorld) -> None:
    upload = await world.unfinished()
    listener = await listening(world, upload)
    with small(feed, MAX_SENDING=0):
        await world.client.append(upload, 500)
        await world.client.append(upload, 1500)
    await told(world, listener, "an end that no message has told")
    other = await world.unfinished()
    listener = await listening(world, other)
    await world.stop(world.hosts[1])  # while somebody listens there
    listener.cancel()
    await until(world, lambda: not feed_of(world, 0).is_wanted, "the end of the interest of a process that ended")
    await world.client.append(other, 2000)
    await world.hosts[1].start()


@scenario("redis", settings={"sweep_interval": 0})
async def records_are_read_once_however_often_a_scan_tells_them(world: SharedWorld) -> None:
    uploads = [await create(world, 100 + number) for number in range(5)]

    async def read(service: UploadService) -> list[Upload]:
        return [record async for record in service.state.all()]

    state: Any = world.service.state
    real = state._records._redis.keys

    async def twice(pattern: str) -> Any:
        async for key in real(pattern):
            yield key
            yield key
        yield world.keys.record("f" * 32)  # of an upload that was removed since

    with small(state._records._redis, keys=twice):
        found = await world.on(world.host, read)
    world.check(
        sorted(record.id for record in found) == sorted(upload.id for upload in uploads), f"{len(found)} records"
    )
    for upload in uploads:
        await world.client.append(upload, upload.length)
