from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from starlette.types import Message

from tests.support.timing import scaled
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import ClientDisconnected, ReadTimeout, ServerShutdown, UploadInterrupted
from tusd_py.http.body import RATE_WINDOW, RequestBody
from tusd_py.transfer.budget import BufferPool, ByteBudget

TIMEOUT = scaled(30.0)  # seconds for anything that has to happen


class Wire:
    """The messages of a request that have arrived, as a server hands it over."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()

    def send(self, data: bytes, *, more: bool = True) -> None:
        self._messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def disconnect(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self._messages.get()


class Arrived:
    """The body extension of the own server (`BodyExtension`)."""

    def __init__(self, data: bytes = b"", trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.last_arrival = 0.0
        self.trailers = list(trailers)
        self.pools: list[BufferPool] = []
        self.whole = None
        self._data = data

    def read_buffered(self) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None: ...

    def use_buffer_pool(self, pool: BufferPool) -> None:
        self.pools.append(pool)


class Clock:
    """A replacement for the module `time`, whose time passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.look = asyncio.Event()  # set when the code under test has read the time

    def monotonic(self) -> float:
        self.look.set()
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tusd_py.http.body.time", clock)
    return clock


@pytest.fixture
def wire() -> Wire:
    return Wire()


Make = Callable[..., RequestBody]


@pytest.fixture
async def make(wire: Wire) -> AsyncIterator[Make]:
    made: list[RequestBody] = []

    def make(*, receive: Callable[..., object] = wire.receive, **options: object) -> RequestBody:
        made.append(RequestBody(receive, None, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for body in made:
        body.close()


async def next_of(body: RequestBody) -> Buffer | None:
    async with asyncio.timeout(TIMEOUT):
        return await body.read()


async def waiting(body: RequestBody) -> asyncio.Task[Buffer | None]:
    """Return a task that waits for the next bytes."""
    task = asyncio.create_task(body.read())
    await others_run()
    assert not task.done()
    return task


async def others_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# Bytes and the end of them.


async def test_bytes_in_order_and_then_the_end(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"one ")
    wire.send(b"")
    wire.send(b"two")
    wire.send(b"", more=False)
    assert [await next_of(body) for _ in range(4)] == [b"one ", b"", b"two", b""]
    assert body.ended
    assert body.bytes_received == 7
    assert [await next_of(body) for _ in range(3)] == [None, None, None]


async def test_a_body_in_one_message(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"all of it", more=False)
    assert await next_of(body) == b"all of it"
    assert await next_of(body) is None


async def test_messages_that_leave_out_what_is_the_default(make: Make) -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    body = make(receive=receive)
    assert await next_of(body) == b""
    assert await next_of(body) is None


async def test_a_disconnect_is_told_after_the_bytes_before_it(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"half")
    wire.disconnect()
    assert await next_of(body) == b"half"
    with pytest.raises(ClientDisconnected):
        await next_of(body)
    assert body.bytes_received == 4


async def test_waiting_for_the_disconnect(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"ignored", more=False)
    gone = asyncio.create_task(body.wait_for_disconnect())
    await others_run()
    assert not gone.done()
    wire.disconnect()
    await asyncio.wait_for(gone, TIMEOUT)


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


# Discarding.


async def test_discarding_reads_to_the_end(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"not kept")
    wire.send(b"either", more=False)
    await asyncio.wait_for(body.discard(TIMEOUT), TIMEOUT)
    assert body.ended


async def test_discarding_ends_with_the_connection(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"not kept")
    wire.disconnect()
    await asyncio.wait_for(body.discard(TIMEOUT), TIMEOUT)


async def test_discarding_takes_its_time_and_no_more(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"not kept")
    await asyncio.wait_for(body.discard(0.05), TIMEOUT)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_discarding_after_an_interruption(wire: Wire, make: Make) -> None:
    body = make()
    body.interrupt(UploadInterrupted())
    wire.send(b"not kept", more=False)
    await asyncio.wait_for(body.discard(TIMEOUT), TIMEOUT)
    assert body.ended


async def test_a_cancelled_discard_is_cancelled(make: Make) -> None:
    task = asyncio.create_task(make().discard(TIMEOUT))
    await others_run()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Blocks and trailers.


async def test_blocks_are_used_from_the_first_read_on(wire: Wire, make: Make) -> None:
    arrived, pool = Arrived(), BufferPool(ByteBudget(32 << 20))
    body = make(extension=arrived, pool=pool)
    started = [body.started]
    assert arrived.pools == []  # nothing is set aside for a request that is refused
    for data in (b"one", b"two"):
        wire.send(data)
        assert await next_of(body) == data
        started.append(body.started)
    assert started == [False, True, True]
    assert arrived.pools == [pool]


async def test_only_blocks_are_recycled(make: Make) -> None:
    pool = BufferPool(ByteBudget(8 << 20))
    body = make(pool=pool)
    block = pool.acquire()
    pool.detach(block)
    body.release([b"bytes", bytearray(b"of the parser"), memoryview(b"not a block"), memoryview(block)[:10]])
    assert pool.acquire() is block
    make().release([memoryview(block)])


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [
        ([(b"upload-checksum", b" sha1 abc=\t")], "sha1 abc="),
        ([(b"other", b"x"), (b"upload-checksum", b"\xff")], "\xff"),
        ([(b"upload-checksum", b"a"), (b"upload-checksum", b"b")], None),
        ([(b"other", b"x")], None),
        ([], None),
    ],
)
async def test_a_field_after_the_body(make: Make, trailers: list[tuple[bytes, bytes]], expected: str | None) -> None:
    body = make(extension=Arrived(trailers=trailers))
    assert body.has_trailers
    assert body.trailer("upload-checksum") == expected


async def test_servers_without_trailers(make: Make) -> None:
    body = make()
    assert not body.has_trailers
    assert body.trailer("upload-checksum") is None
