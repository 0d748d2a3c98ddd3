"""Directed scenarios of the memory of appends: budgets that are used up, small buffers, senders with a rate."""

from __future__ import annotations

import asyncio

import tusd_py.composition
import tusd_py.transfer.budget
from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_appends import finish
from tests.simulation.directed_calls import Sending, append, small
from tusd_py.transfer.budget import ByteBudget


@scenario("redis")
async def small_uploads_to_a_shared_directory_wait_for_memory(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 100)
    budget = world.service.budget
    taken = budget.total - budget.used
    budget.try_reserve(taken)  # by other appends
    appending = asyncio.ensure_future(append(world, upload, 200))
    await asyncio.sleep(1.0)
    world.check(not appending.done(), "an append takes memory that is not there")
    budget.release(taken)
    await appending
    world.machine.files.failing_writes = 1
    await append(world, upload, 100)
    await finish(world, upload)


@scenario()
async def appends_wait_for_memory_and_go_on(world: DirectedWorld) -> None:
    service = world.service
    taken = service.budget.total - service.budget.used - 3000
    service.budget.try_reserve(taken)  # by other appends
    uploads = [await world.client.create(20_000) for _ in range(3)]
    sending = [Sending(world, upload, 20_000) for upload in uploads]
    world.machine.files.stalled_until = world.loop.now + 5.0
    for each in sending:
        for _ in range(10):
            each.push(2000)
    await asyncio.sleep(10.0)
    service.budget.release(taken)
    for each in sending:
        await each.answer(204)
    for upload in uploads:
        await world.client.download(upload)


@scenario(settings={"buffer_size": "1MiB"})
async def buffers_become_small_when_many_clients_send(world: DirectedWorld) -> None:
    uploads = [await world.client.create(40_000) for _ in range(8)]
    total = world.service.budget.total
    world.service.budget.total = 4096
    sending = [Sending(world, upload, 40_000) for upload in uploads]
    for size in (700, 1500, 3000, 6000, 12_000, 16_800):
        for each in sending:
            each.push(size)
        await asyncio.sleep(0.2)
    for each in sending:
        await each.answer(204)
    world.service.budget.total = total
    for upload in uploads:
        await world.client.download(upload)


@scenario(settings={"rate_bytes": 20_000})
async def a_sender_with_a_rate_sends_no_more(world: DirectedWorld) -> None:
    upload = await world.client.create(90_000)
    began = world.loop.now
    sending = Sending(world, upload, 90_000)
    for _ in range(9):
        sending.push(10_000)
        await asyncio.sleep(0.01)
    await sending.answer(204)
    world.check(world.loop.now - began > 2.0, f"90,000 bytes are taken in {world.loop.now - began:.1f} s")
    await world.client.download(upload)


def _little_memory(_: int) -> ByteBudget:
    return ByteBudget(6000)


@scenario()
async def silent_clients_hold_buffers_and_others_get_small_ones(world: DirectedWorld) -> None:
    with small(tusd_py.composition, ByteBudget=_little_memory):
        await world.restart(world.host)
    uploads = [await world.client.create(9000) for _ in range(4)]
    first = Sending(world, uploads[0], 9000)
    first.push(1000)
    await asyncio.sleep(0.1)
    first.push(8000)
    await first.answer(204)
    pool = first.exchange.pool
    assert pool is not None
    held = [pool.acquire() for _ in range(4)]  # as connections do whose clients send nothing
    sizes = [len(buffer) for buffer in held]
    world.check(sizes[0] > sizes[-1] >= tusd_py.transfer.budget.MIN_BATCH_SIZE, f"the buffers have {sizes} bytes")
    sending = [Sending(world, upload, 9000) for upload in uploads[1:]]
    for size in (2000, 3000, 4000):
        for each in sending:
            each.push(size)
        await asyncio.sleep(0.1)
    for each in sending:
        await each.answer(204)
    for buffer in held:
        pool.detach(buffer)
        pool.release(buffer)
    for upload in uploads:
        await world.client.download(upload)
