"""Directed scenarios of live progress, and of lengths that are told once and for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import Sending, small
from tests.simulation.directed_client import UNKNOWN
from tests.simulation.directed_identity import SharedWorld
from tests.simulation.followers import PATIENCE, Follower
from tests.simulation.oracle import Expected
from tests.simulation.redis_store import Entry, Store
from tests.simulation.servers import Host


def dies_after_the_change(world: SharedWorld, upload: Expected, host: Host) -> Callable[..., None]:
    """Return a step of Redis after which a process dies once a record is complete, before it tells of that."""
    real, key = Store.put, world.keys.record(upload.id).encode()

    def put(self: Store, changed: bytes, entry: Entry | None) -> None:
        real(self, changed, entry)
        if changed == key and entry is not None and entry.value.get(b"status") == b"complete":
            world.loop.call_next(host.kill)

    return put


@scenario("redis", processes=2)
async def a_listener_is_told_of_an_end_of_which_no_message_came(world: SharedWorld) -> None:
    first, second = world.hosts
    upload = await world.unfinished(3000, 1000)
    listening = Follower(world, Random(0)).start(second, upload, 300.0)
    await asyncio.sleep(3.0)
    with small(Store, put=dies_after_the_change(world, upload, first)):
        sending = Sending(world, upload, 2000, host=first)
        sending.push(2000)
        await asyncio.sleep(2.0)
    world.check(first.process is not None and not first.process.alive, "the process lives")
    await asyncio.sleep(PATIENCE)
    world.check(listening.done() and listening.result(), "a listener is not told that its upload has ended")
    listening.cancel()


@scenario()
async def a_length_that_was_declared_stays_declared(world: DirectedWorld) -> None:
    upload = await world.client.create(UNKNOWN)
    upload.length = upload.wanted_length = 3000
    answer = await world.client.look(upload)
    world.check("upload-length" not in answer.headers, f"the length is told: {answer.headers}")
    await world.client.append(upload, 1000, headers={"Upload-Length": "3000"})
    for _ in range(2):
        answer = await world.client.look(upload)
        world.check(answer.headers.get("upload-length") == "3000", f"the declared length is told as {answer.headers}")
        await world.client.append(upload, 0)
        await world.restart(world.host)
    await world.client.append(upload, 100, headers={"Upload-Length": "3001"}, status=400)
    await world.client.append(upload, 2000)
    await world.client.download(upload)
