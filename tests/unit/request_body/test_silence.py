from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Message

from tests.support.request_bodies import TIMEOUT, Arrived, Clock, Make, Wire, next_of, others_run, waiting
from tusd_py.core.errors import ReadTimeout, UploadInterrupted
from tusd_py.http.body import RATE_WINDOW, RequestBody

# Silence.


async def test_a_silent_client_is_given_up(make: Make) -> None:
    body = make(idle_timeout=0.05)
    with pytest.raises(ReadTimeout):
        await next_of(body)
    with pytest.raises(ReadTimeout):
        await next_of(body)


async def test_a_client_that_falls_silent_is_given_up(wire: Wire, make: Make) -> None:
    body = make(idle_timeout=0.05)
    for _ in range(3):
        wire.send(b"one")
        assert await next_of(body) == b"one"
    with pytest.raises(ReadTimeout):
        await next_of(body)


async def looked_at(clock: Clock, times: int) -> None:
    """Wait until the timer has fired `times` more."""
    for _ in range(times):
        clock.look.clear()
        await asyncio.wait_for(clock.look.wait(), TIMEOUT)


async def test_silence_is_measured_from_the_start_of_the_wait(wire: Wire, make: Make, clock: Clock) -> None:
    body = make(idle_timeout=0.05)
    wire.send(b"one")
    assert await next_of(body) == b"one"
    clock.now += 100  # the server is busy with it
    task = await waiting(body)
    await looked_at(clock, 3)
    assert not task.done()
    assert body.silent_for() == 0
    clock.now += 0.04
    await looked_at(clock, 3)
    assert not task.done()
    clock.now += 0.02
    with pytest.raises(ReadTimeout):
        await asyncio.wait_for(task, TIMEOUT)


async def test_without_an_idle_timeout_silence_may_last(wire: Wire, make: Make, clock: Clock) -> None:
    body = make(idle_timeout=0)
    task = await waiting(body)
    clock.now += 1e9
    await others_run()
    assert not task.done()
    assert body.silent_for() == 1e9
    wire.send(b"at last")
    assert await asyncio.wait_for(task, TIMEOUT) == b"at last"


async def test_nobody_is_silent_while_nobody_waits(wire: Wire, make: Make, clock: Clock) -> None:
    body = make()
    clock.now += 10
    assert body.silent_for() == 0
    wire.send(b"one")
    await next_of(body)
    clock.now += 10
    assert body.silent_for() == 0
    task = await waiting(body)
    clock.now += 10
    assert body.silent_for() == 10
    body.interrupt(UploadInterrupted())
    await asyncio.wait([task])
    assert isinstance(task.exception(), UploadInterrupted)


async def test_waking_does_not_break_the_silence(make: Make, clock: Clock) -> None:
    """A client that asks for the offset again and again must not keep a dead connection alive."""
    body = make(idle_timeout=0.25)
    task = await waiting(body)
    for _ in range(3):
        clock.now += 0.0625
        body.wake()
        assert await asyncio.wait_for(task, TIMEOUT) == b""
        task = await waiting(body)
    assert body.silent_for() == 0.1875
    clock.now += 0.0625
    with pytest.raises(ReadTimeout):
        await asyncio.wait_for(task, TIMEOUT)


async def test_bytes_that_arrive_without_being_read_break_the_silence(make: Make, clock: Clock) -> None:
    """A large block fills slowly, and only a full one is handed over."""
    arrived = Arrived()
    body = make(extension=arrived, idle_timeout=0.125)
    task = await waiting(body)
    for _ in range(3):
        clock.now += 0.0625
        arrived.last_arrival = clock.now
        clock.now += 0.03125
        await looked_at(clock, 3)
        assert body.silent_for() == 0.03125
    assert not task.done()
    clock.now += 0.125
    with pytest.raises(ReadTimeout):
        await asyncio.wait_for(task, TIMEOUT)


# The minimum rate.


def pacing(clock: Clock, size: int, seconds: float) -> Callable[[], object]:
    """Return the `receive` of a client that sends `size` bytes every `seconds`, without end."""

    async def receive() -> Message:
        clock.now += seconds
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    return receive


async def read_for(body: RequestBody, clock: Clock, seconds: float) -> None:
    until = clock.now + seconds
    while clock.now < until:
        assert await next_of(body)


async def test_a_client_below_the_min_rate_is_given_up(make: Make, clock: Clock) -> None:
    body = make(receive=pacing(clock, 999, 1), idle_timeout=0, min_rate=1000)
    started = clock.now
    with pytest.raises(ReadTimeout):
        await read_for(body, clock, 10 * RATE_WINDOW)
    assert RATE_WINDOW <= clock.now - started <= RATE_WINDOW + 1


@pytest.mark.parametrize(("size", "rate"), [(1000, 1000), (1001, 1000), (1, 0)])
async def test_a_client_at_the_min_rate_may_go_on(make: Make, clock: Clock, size: int, rate: int) -> None:
    body = make(receive=pacing(clock, size, 1), idle_timeout=0, min_rate=rate)
    await read_for(body, clock, 10 * RATE_WINDOW)


async def test_the_time_that_the_server_takes_does_not_count(make: Make, clock: Clock) -> None:
    body = make(receive=pacing(clock, 1000, 1), idle_timeout=0, min_rate=1000)
    for _ in range(200):
        assert await next_of(body)
        clock.now += 100


async def test_a_client_that_gets_slow_is_given_up(make: Make, clock: Clock) -> None:
    wire = {"size": 1 << 20}

    async def receive() -> Message:
        clock.now += 1
        return {"type": "http.request", "body": b"x" * wire["size"], "more_body": True}

    body = make(receive=receive, idle_timeout=0, min_rate=1000)
    await read_for(body, clock, 3 * RATE_WINDOW)
    wire["size"] = 10
    with pytest.raises(ReadTimeout):
        await read_for(body, clock, 3 * RATE_WINDOW)


async def test_the_end_of_a_slow_body_is_still_taken(make: Make, clock: Clock) -> None:
    async def receive() -> Message:
        clock.now += 2 * RATE_WINDOW
        return {"type": "http.request", "body": b"x", "more_body": False}

    body = make(receive=receive, idle_timeout=0, min_rate=1000)
    assert await next_of(body) == b"x"
    assert await next_of(body) is None


async def test_wake_does_not_reset_the_minimum_rate(wire: Wire, make: Make, clock: Clock) -> None:
    """A byte every two seconds, and somebody who asks for the offset in between."""
    body = make(idle_timeout=0, min_rate=1000)

    async def two_seconds() -> None:
        task = await waiting(body)
        clock.now += 1.5
        body.wake()
        assert await asyncio.wait_for(task, TIMEOUT) == b""
        task = await waiting(body)
        clock.now += 0.5
        wire.send(b"x")
        assert await asyncio.wait_for(task, TIMEOUT) == b"x"

    for _ in range(29):
        await two_seconds()
    await two_seconds()  # the minute is over
    with pytest.raises(ReadTimeout):
        await next_of(body)
