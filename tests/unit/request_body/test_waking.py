from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Message

from tests.support.request_bodies import TIMEOUT, Arrived, Make, Wire, next_of, others_run, waiting
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import ReadTimeout, ServerShutdown, UploadInterrupted
from tusd_py.http.body import RequestBody

# Interrupting and waking.


async def test_an_interruption_ends_the_wait(make: Make) -> None:
    body = make()
    task = await waiting(body)
    body.interrupt(UploadInterrupted())
    with pytest.raises(UploadInterrupted):
        await asyncio.wait_for(task, TIMEOUT)
    with pytest.raises(UploadInterrupted):
        await next_of(body)


async def test_an_interruption_between_two_reads(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"one")
    assert await next_of(body) == b"one"
    body.interrupt(UploadInterrupted())
    with pytest.raises(UploadInterrupted):
        await next_of(body)


async def test_the_first_reason_counts(make: Make) -> None:
    body = make()
    task = await waiting(body)
    body.interrupt(UploadInterrupted())
    body.interrupt(ServerShutdown())
    with pytest.raises(UploadInterrupted):
        await asyncio.wait_for(task, TIMEOUT)
    body.interrupt(ReadTimeout())
    with pytest.raises(UploadInterrupted):
        await next_of(body)


async def test_arrived_bytes_are_read_before_the_interruption(wire: Wire, make: Make) -> None:
    arrived = Arrived(b"rest")
    body = make(extension=arrived)
    wire.send(b"start ")
    assert await next_of(body) == b"start "
    task = await waiting(body)
    body.interrupt(UploadInterrupted())
    assert await asyncio.wait_for(task, TIMEOUT) == b"rest"
    with pytest.raises(UploadInterrupted):
        await next_of(body)
    assert body.bytes_received == 10


async def test_arrived_bytes_are_read_on_waking(make: Make) -> None:
    arrived = Arrived(b"half a block")
    body = make(extension=arrived)
    task = await waiting(body)
    body.wake()
    assert await asyncio.wait_for(task, TIMEOUT) == b"half a block"
    body.wake()
    assert await next_of(body) == b""
    assert body.bytes_received == 12


async def test_nothing_is_taken_after_the_end(wire: Wire, make: Make) -> None:
    body = make(extension=Arrived(b"of the next request"))
    wire.send(b"all", more=False)
    assert await next_of(body) == b"all"
    body.wake()
    assert await next_of(body) is None
    body.interrupt(UploadInterrupted())
    assert await next_of(body) is None
    assert body.bytes_received == 3


async def test_waking_ends_one_wait(wire: Wire, make: Make) -> None:
    body = make()
    task = await waiting(body)
    body.wake()
    body.wake()
    assert await asyncio.wait_for(task, TIMEOUT) == b""
    task = await waiting(body)
    wire.send(b"more")
    assert await asyncio.wait_for(task, TIMEOUT) == b"more"


async def test_waking_where_nobody_waits_is_remembered_once(wire: Wire, make: Make) -> None:
    body = make()
    body.wake()
    body.wake()
    wire.send(b"one")
    assert await next_of(body) == b""
    assert await next_of(body) == b"one"


async def test_waking_after_the_end_changes_nothing(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"all", more=False)
    assert await next_of(body) == b"all"
    body.wake()
    assert await next_of(body) is None


@pytest.mark.parametrize("bytes_first", [False, True])
async def test_no_bytes_are_lost_when_waking_and_arriving_meet(wire: Wire, make: Make, bytes_first: bool) -> None:
    body = make()
    for number in range(50):
        task = await waiting(body)
        if bytes_first:
            wire.send(b"%d" % number)
        body.wake()
        if not bytes_first:
            wire.send(b"%d" % number)
        pieces = [await asyncio.wait_for(task, TIMEOUT), await next_of(body)]
        assert sorted(bytes(piece or b"") for piece in pieces) == [b"", b"%d" % number]


@pytest.mark.parametrize("waked", [False, True])
async def test_a_server_that_swallows_the_cancellation(make: Make, waked: bool) -> None:
    async def receive() -> Message:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return {"type": "http.request", "body": b"just arrived", "more_body": True}

    body = make(receive=receive)
    cancellations: list[int] = []

    async def read() -> Buffer | None:
        data = await body.read()
        task = asyncio.current_task()
        assert task is not None
        cancellations.append(task.cancelling())
        return data

    task = asyncio.create_task(read())
    await others_run()
    if waked:
        body.wake()
    else:
        body.interrupt(UploadInterrupted())
    assert await asyncio.wait_for(task, TIMEOUT) == b"just arrived"
    assert cancellations == [0]
    if not waked:
        with pytest.raises(UploadInterrupted):
            await next_of(body)


# Real cancellation.


async def test_a_cancellation_passes_through(make: Make) -> None:
    body = make()
    task = await waiting(body)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("cancelled_first", [False, True])
@pytest.mark.parametrize("disturb", [RequestBody.wake, lambda body: body.interrupt(UploadInterrupted())])
async def test_a_cancellation_wins_over_what_comes_with_it(
    make: Make, cancelled_first: bool, disturb: Callable[[RequestBody], None]
) -> None:
    body = make()
    task = await waiting(body)
    if cancelled_first:
        task.cancel()
    disturb(body)
    if not cancelled_first:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("waked", [False, True])
async def test_a_timeout_around_it_works_before_and_after_waking(wire: Wire, make: Make, waked: bool) -> None:
    body = make()

    async def read() -> int:
        if waked:
            assert await body.read() == b""
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await body.read()
        return task.cancelling()

    task = asyncio.create_task(read())
    if waked:
        await others_run()
        body.wake()
    assert await asyncio.wait_for(task, TIMEOUT) == 0
    wire.send(b"still there")
    assert await next_of(body) == b"still there"
