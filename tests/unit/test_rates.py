"""Rates of creations and of bytes, counted in one process and in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.contracts.parts import redis as connection
from tests.support.timing import TIMEOUT
from tusd_py.asyncutil import shared_rates
from tusd_py.asyncutil.local_rates import LocalRates
from tusd_py.asyncutil.shared_rates import SharedRates, rates_of_host
from tusd_py.backends.redis.state import RedisState
from tusd_py.contracts.rates import CountsRates
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StateUnavailable, UploadError, UploadInterrupted
from tusd_py.core.option_types import check_rate, parse_rate
from tusd_py.http.body import RequestBody
from tusd_py.http.rates import ByteRate, sender_of
from tusd_py.http.request import Request
from tusd_py.http.shaped_body import ShapedBody
from tusd_py.testing import MemoryState
from tusd_py.transfer.budget import MIN_BATCH_SIZE, BufferPool, ByteBudget, SmallBuffers

LONG = 3600.0  # seconds in which no share of a test comes back


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["local", "file", "redis"])
async def rates(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[CountsRates]:
    if request.param == "local":
        yield LocalRates()
        return
    if request.param == "file":
        shared_rates.create(tmp_path / "rates")
        yield SharedRates(tmp_path / "rates")
        return
    state = RedisState(connection(), f"{tmp_path.name}:")
    await state.open()
    yield state
    await state.close()


async def test_as_many_as_the_burst_are_taken_at_once_and_no_more(rates: CountsRates) -> None:
    for _ in range(5):
        assert await rates.take_rate("a", LONG, 5 * LONG, refuse=True) == 0
    for _ in range(3):
        assert LONG - TIMEOUT < await rates.take_rate("a", LONG, 5 * LONG, refuse=True) <= LONG
    assert await rates.take_rate("b", LONG, 5 * LONG, refuse=True) == 0


async def test_what_is_not_refused_runs_up(rates: CountsRates) -> None:
    waits = [await rates.take_rate("a", LONG, LONG, refuse=False) for _ in range(4)]
    assert waits == pytest.approx([0, LONG, 2 * LONG, 3 * LONG], abs=TIMEOUT)
    assert await rates.take_rate("a", 0, LONG, refuse=False) == pytest.approx(3 * LONG, abs=TIMEOUT)


@pytest.mark.parametrize("count", [1, 3, 6, 7, 10, 97, 600])
async def test_a_whole_burst_is_taken_whatever_its_shares_are(rates: CountsRates, count: int) -> None:
    period = 3600.0
    waits = [await rates.take_rate("a", period / count, period, refuse=True) for _ in range(count)]
    assert waits == [0] * count


async def test_looking_takes_nothing(rates: CountsRates) -> None:
    for _ in range(3):
        assert await rates.take_rate("a", 0, 0, refuse=False) == 0
    assert await rates.take_rate("a", LONG, LONG, refuse=True) == 0


async def test_shares_come_back_with_time(rates: CountsRates) -> None:
    share = 0.05
    assert await rates.take_rate("a", share, share, refuse=True) == 0
    async with asyncio.timeout(TIMEOUT):
        while wait := await rates.take_rate("a", share, share, refuse=True):  # noqa: ASYNC110
            await asyncio.sleep(wait)


@pytest.mark.parametrize("name", ["", "é" * 10_000, "}{", "a\nb", "\udcff"])
async def test_any_text_is_a_name(rates: CountsRates, name: str) -> None:
    assert await rates.take_rate(name, LONG, LONG, refuse=True) == 0
    assert await rates.take_rate(name, LONG, LONG, refuse=True) > 0


async def test_processes_with_one_file_count_together(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    shared_rates.create(path)
    script = (
        "import asyncio, sys; from pathlib import Path; from tusd_py.asyncutil.shared_rates import SharedRates;"
        f"rates = SharedRates(Path({str(path)!r}));"
        f"takes = lambda: [asyncio.run(rates.take_rate('a', {LONG}, 10 * {LONG}, refuse=True)) for _ in range(4)];"
        "print(takes().count(0))"
    )
    taken = []
    for _ in range(4):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        taken.append(int(output))
    assert taken == [4, 4, 2, 0]


async def test_file_of_rates_forgets_those_that_are_used_up_first(tmp_path: Path) -> None:
    shared_rates.create(tmp_path / "rates")
    clock = Clock()
    rates = SharedRates(tmp_path / "rates", clock)
    assert await rates.take_rate("slow", LONG, 2 * LONG, refuse=True) == 0
    for number in range(20_000):
        await rates.take_rate(f"address {number}", 1.0, 5.0, refuse=True)
    assert await rates.take_rate("slow", LONG, LONG, refuse=True) > 0
    assert (tmp_path / "rates").stat().st_size < 300_000


def test_processes_without_a_supervisor_count_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shared_rates.VARIABLE, raising=False)
    assert isinstance(rates_of_host(), LocalRates)
    monkeypatch.setenv(shared_rates.VARIABLE, str(tmp_path / "gone"))
    assert isinstance(rates_of_host(), LocalRates)
    shared_rates.create(tmp_path / "rates")
    monkeypatch.setenv(shared_rates.VARIABLE, str(tmp_path / "rates"))
    assert isinstance(rates_of_host(), SharedRates)


async def test_processes_with_one_redis_count_together(tmp_path: Any) -> None:
    hosts = [RedisState(connection(), f"{tmp_path.name}:") for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts:
            await host.open()
            stack.push_async_callback(host.close)
        takes = [host.take_rate("a", LONG, 10 * LONG, refuse=True) for host in hosts for _ in range(10)]
        assert (await asyncio.gather(*takes)).count(0) == 10


async def test_a_share_below_the_resolution_of_redis_counts(tmp_path: Any) -> None:
    count, period = parse_rate("999999999/s")
    state = RedisState(connection(), f"{tmp_path.name}:")
    await state.open()
    assert await state.take_rate("a", period / count, 0, refuse=False) > 0
    assert await state.take_rate("b", 0, 0, refuse=False) == 0
    await state.close()


async def test_rates_in_redis_expire(tmp_path: Any) -> None:
    state = RedisState(connection(), f"{tmp_path.name}:")
    await state.open()
    await state.take_rate("a", 0.01, 0.01, refuse=True)
    key = state._keys.rate("a")
    async with asyncio.timeout(TIMEOUT):
        while await state._redis.command("EXISTS", key):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await state.close()


async def test_rate_in_redis_that_a_clock_left_in_the_future_refuses_for_no_longer_than_its_burst(
    tmp_path: Any,
) -> None:
    state = RedisState(connection(), f"{tmp_path.name}:")
    await state.open()
    await state._redis.command("SET", state._keys.rate("a"), str(int((time.time() + 1e8) * 1e6)), "PX", "100000")
    assert 0 < await state.take_rate("a", 1.0, 10.0, refuse=True) <= 1.0
    await state.close()


async def test_local_rates_are_bounded_and_forget_the_oldest() -> None:
    clock = Clock()
    rates = LocalRates(2, clock)
    for name in ("a", "b", "c"):
        await rates.take_rate(name, 10, 10, refuse=True)
    assert len(rates._used_up) == 2
    assert await rates.take_rate("c", 10, 10, refuse=True) == 10
    clock.now += 10
    assert await rates.take_rate("c", 10, 10, refuse=True) == 0


# The senders.


def request_of(client: str, owner: str | None = None, body: object = None) -> Request:
    principal = None if owner is None else SimpleNamespace(owner=owner)
    return cast(Request, SimpleNamespace(principal=principal, client=client, body=body))


def test_senders_without_a_principal_are_told_apart_by_address() -> None:
    senders = [
        request_of("192.0.2.1"),
        request_of("192.0.2.2"),
        request_of("2001:db8::1"),
        request_of("2001:db8:0:1::1"),
        request_of(""),
        request_of("192.0.2.1", "ann"),
        request_of("192.0.2.1", "192.0.2.1"),
        request_of("192.0.2.1", "address 192.0.2.1"),
    ]
    assert len({sender_of(sender) for sender in senders}) == len(senders)
    assert sender_of(request_of("2001:db8::1")) == sender_of(request_of("2001:db8::ffff:1"))
    assert sender_of(request_of("192.0.2.1", "ann")) == sender_of(request_of("192.0.2.2", "ann"))


@pytest.mark.parametrize(("text", "expected"), [("10/s", (10, 1.0)), ("100 / m", (100, 60.0)), ("1/h", (1, 3600.0))])
def test_rate_is_parsed(text: str, expected: tuple[int, float]) -> None:
    assert parse_rate(text) == expected
    assert parse_rate(check_rate(text)) == expected


@pytest.mark.parametrize("text", ["10", "0/s", "-1/s", "1.5/s", "10/y", "/s", "10/ms", "10/s/s", "x"])
def test_malformed_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="10/s"):
        check_rate(text)


def test_store_that_hosts_do_not_share_counts_no_rates() -> None:
    assert not isinstance(MemoryState(), CountsRates)
    assert isinstance(LocalRates(), CountsRates)


# Bytes.


class FarRates(LocalRates):
    """A store that hosts share, and that may be away; counts its calls."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(clock=self.clock)
        self.calls = 0
        self.is_away = False

    async def take_rate(self, name: str, seconds: float, burst: float, *, refuse: bool) -> float:
        self.calls += 1
        if self.is_away:
            raise StateUnavailable
        return await super().take_rate(name, seconds, burst, refuse=refuse)


class SlowRates(FarRates):
    """A store whose answers take a while."""

    async def take_rate(self, name: str, seconds: float, burst: float, *, refuse: bool) -> float:
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().take_rate(name, seconds, burst, refuse=refuse)


def far_rate(rates: FarRates, bytes_per_second: int) -> ByteRate:
    return ByteRate(rates, LocalRates(clock=Clock()), bytes_per_second, lambda: False)


async def test_bytes_of_a_burst_are_free_and_the_next_ones_are_waited_for() -> None:
    rates = LocalRates(clock=Clock())
    rate = ByteRate(rates, rates, 1000, lambda: False)
    assert await rate.take("a", 1000) == 0
    assert await rate.take("a", 3000) == pytest.approx(3.0)
    assert await rate.take("a", 0) == pytest.approx(3.0)
    assert await rate.take("b", 1000) == 0


async def test_few_buffers_need_a_call_of_a_far_store() -> None:
    rates = FarRates()
    rate = far_rate(rates, 8000)
    for _ in range(100):
        assert await rate.take("a", 10) == 0
    assert rates.calls == 1
    assert await rate.take("a", 8000) > 0
    assert len(rate._shares) <= 1


@pytest.mark.parametrize("buffers", [10, 1000])
async def test_requests_of_one_sender_take_from_one_share(buffers: int) -> None:
    """Each of them taking a share of its own would make all of them wait for bytes that nobody sends."""
    rates = SlowRates()
    rate = far_rate(rates, 80_000)
    waits = await asyncio.gather(*(rate.take("a", 10) for _ in range(buffers)))
    assert waits == [0] * buffers
    assert rates.calls == 1


async def test_requests_of_one_sender_together_keep_to_its_rate() -> None:
    rates = SlowRates()
    rate = far_rate(rates, 1000)
    waits = await asyncio.gather(*(rate.take("a", 100) for _ in range(30)))
    assert waits[:10] == [0] * 10
    assert waits[-1] == pytest.approx(2.0, abs=0.5)


async def test_bytes_keep_to_the_rate_while_the_far_store_is_away() -> None:
    rates = FarRates()
    rate = far_rate(rates, 1000)
    rates.is_away = True
    assert await rate.take("a", 1000) == 0
    assert await rate.take("a", 2000) == pytest.approx(2.0)


async def test_requests_of_one_sender_wait_for_one_failure_of_the_far_store() -> None:
    rates = SlowRates()
    rates.is_away = True
    rate = far_rate(rates, 1000)
    waits = await asyncio.gather(*(rate.take("a", 100) for _ in range(30)))
    assert waits[:10] == [0] * 10
    assert rates.calls == 1


async def test_far_store_that_was_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tusd_py.http.rates.AWAY_TIME", 0.0)
    rates = FarRates()
    rate = far_rate(rates, 1000)
    rates.is_away = True
    await rate.take("a", 1000)
    rates.is_away = False
    await rate.take("a", 1000)
    assert rates.calls == 2


class Source:
    """A body of many pieces that are all there, noting what is done to it."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.declared_size = sum(map(len, pieces))
        self.pieces = list(pieces)
        self.reasons: list[UploadError] = []
        self.wakes = self.forgotten = 0

    async def read(self) -> Buffer | None:
        if self.reasons:
            raise self.reasons[0]
        return self.pieces.pop(0) if self.pieces else None

    def interrupt(self, reason: UploadError) -> None:
        self.reasons.append(reason)

    def wake(self) -> None:
        self.wakes += 1

    def silent_for(self) -> float:
        return 7.0

    def forget_silence(self) -> None:
        self.forgotten += 1


def shaped(source: Source, wait: float) -> ShapedBody:
    async def take(size: int) -> float:
        return wait * size

    return ShapedBody(cast(RequestBody, source), take)


async def test_next_bytes_are_read_after_the_pause() -> None:
    source = Source([b"a", b"b", b"c"])
    body = shaped(source, 0.05)
    started = time.monotonic()
    assert [await body.read() for _ in range(4)] == [b"a", b"b", b"c", None]
    assert time.monotonic() - started > 0.14
    assert source.forgotten == 3


async def test_wake_ends_a_pause_without_bytes() -> None:
    source = Source([b"a", b"b"])
    body = shaped(source, LONG)
    assert await body.read() == b"a"
    reading = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    assert body.silent_for() == 0
    body.wake()
    assert await reading == b""
    assert (source.wakes, source.pieces) == (0, [b"b"])
    body.wake()
    assert source.wakes == 1
    assert body.silent_for() == 7


async def test_wake_before_a_pause_ends_it() -> None:
    """A commit that is asked for while bytes are counted, or stored, is made before the pause."""
    counting, counted = asyncio.Event(), asyncio.Event()

    async def take(size: int) -> float:
        counting.set()
        await counted.wait()
        return LONG

    source = Source([b"a", b"b"])
    body = ShapedBody(cast(RequestBody, source), take)
    reading = asyncio.ensure_future(body.read())
    await counting.wait()
    body.wake()
    counted.set()
    assert await reading == b"a"
    assert await body.read() == b""
    body.wake()
    assert await body.read() == b""
    reading = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    assert not reading.done()
    body.wake()
    assert await reading == b""
    assert source.pieces == [b"b"]


async def test_wake_that_the_body_has_taken_ends_no_later_pause() -> None:
    source = Source([b"", b"a", b"b"])
    body = shaped(source, LONG)
    body.wake()
    assert [await body.read(), await body.read()] == [b"", b"a"]
    reading = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    assert not reading.done()
    body.interrupt(UploadInterrupted())
    with pytest.raises(UploadInterrupted):
        await reading


async def test_interruption_ends_all_pauses() -> None:
    source = Source([b"a", b"b"])
    body = shaped(source, LONG)
    assert await body.read() == b"a"
    reading = asyncio.ensure_future(body.read())
    await asyncio.sleep(0)
    body.interrupt(UploadInterrupted())
    with pytest.raises(UploadInterrupted):
        await reading
    with pytest.raises(UploadInterrupted):
        await body.read()


@pytest.mark.parametrize("most", [1, MIN_BATCH_SIZE, 3 * MIN_BATCH_SIZE, 1 << 30])
def test_small_buffers_are_of_the_pool_and_bounded(most: int) -> None:
    pool = BufferPool(ByteBudget(64 << 20))
    small = SmallBuffers(pool, most)
    buffer = small.acquire()
    assert MIN_BATCH_SIZE <= len(buffer) <= max(most, MIN_BATCH_SIZE)
    small.detach(buffer)
    buffer.pool.release(buffer)
    assert pool._lent == 0
    assert small.acquire() is buffer
