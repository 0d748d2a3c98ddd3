from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from tests.outbox.doubles import SINK, FakeSink, MemoryOutbox, event_of
from tests.support.timing import scaled
from tusd_py.backends.memory.locker import MemoryLocker, MemoryLocks
from tusd_py.contracts.instrumentation import NoInstrumentation
from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.clock import SteadyClock, SystemClock
from tusd_py.core.outbox import DeliveryStatus, OutboxEvent
from tusd_py.outbox.backoff import AWAY_AFTER
from tusd_py.outbox.relay import OutboxRelay
from tusd_py.outbox.sink_worker import DeliveryOptions

WEEK = 7 * 86400.0


@contextlib.asynccontextmanager
async def delivering(
    outbox: MemoryOutbox,
    sinks: Sequence[FakeSink],
    *,
    locker: MemoryLocker | None = None,
    give_up: float = 1e12,
    concurrency: int = 16,
    send_timeout: float = 30.0,
    measured: NoInstrumentation | None = None,
) -> AsyncIterator[OutboxRelay]:
    relay = OutboxRelay(
        sinks,
        outbox,
        locker or MemoryLocker(),
        SteadyClock(SystemClock()),
        DeliveryOptions(give_up=give_up, concurrency=concurrency, send_timeout=send_timeout, poll_interval=0.05),
        measured or NoInstrumentation(),
    )
    relay.start()
    try:
        yield relay
    finally:
        await relay.stop(scaled(10))


async def until(condition: Callable[[], bool], what: str = "the condition holds") -> None:
    deadline = time.monotonic() + scaled(30)
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


async def test_events_of_an_upload_arrive_in_order_and_leave_the_outbox() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    events = [event_of(f"upload{number}", sequence) for sequence in (1, 2, 3) for number in range(40)]
    outbox.add(*reversed(events))
    async with delivering(outbox, [sink]):
        await until(lambda: not outbox.deliveries_of)
    assert sorted(sink.taken) == sorted(event.id for event in events)
    for number in range(40):
        mine = [event_id for event_id in sink.taken if event_id.startswith(f"upload{number}-")]
        assert mine == [f"upload{number}-{sequence}" for sequence in (1, 2, 3)]
    assert sink.most_at_once > 1
    assert (sink.opened, sink.closed) == (1, 1)


async def test_event_that_is_stored_while_delivering_is_sent_when_woken() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    async with delivering(outbox, [sink]) as relay:
        await until(lambda: outbox.reads > 0)
        outbox.add(event_of("a"))
        relay.wake()
        await until(lambda: sink.taken == ["a-1"])


async def test_event_of_another_process_is_found_without_a_wake_up() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    async with delivering(outbox, [sink]):
        await until(lambda: outbox.reads > 0)
        outbox.add(event_of("a"))
        await until(lambda: sink.taken == ["a-1"])


async def test_number_of_attempts_at_the_same_time_is_bounded() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    outbox.add(*(event_of(f"upload{number}") for number in range(50)))
    async with delivering(outbox, [sink], concurrency=3):
        await until(lambda: len(sink.taken) == 50)
    assert sink.most_at_once <= 3


async def test_failed_event_is_sent_again_before_later_ones_of_its_upload() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def fail_first(event: OutboxEvent) -> None:
        if event.id == "a-1" and sink.attempts["a-1"] < 2:
            raise DeliveryError("not now")

    sink.behave = fail_first
    outbox.add(event_of("a", 1), event_of("a", 2), event_of("b", 1))
    async with delivering(outbox, [sink]):
        await until(lambda: not outbox.deliveries_of)
    assert sink.taken.index("a-1") < sink.taken.index("a-2")
    assert sink.taken[0] == "b-1"
    assert sink.attempts["a-1"] == 2


async def test_upload_that_hangs_delays_only_itself() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def hang(event: OutboxEvent) -> None:
        if event.upload_id == "slow":
            await asyncio.Event().wait()

    sink.behave = hang
    outbox.add(event_of("slow", 1), event_of("slow", 2), *(event_of(f"upload{number}") for number in range(20)))
    async with delivering(outbox, [sink], send_timeout=0.2):
        await until(lambda: len(sink.taken) == 20)
        await until(lambda: bool(outbox.deliveries_of[SINK, "slow-1"].error))
        assert outbox.deliveries_of[SINK, "slow-1"].error == "the sink gave no answer in 0.2 s"
        assert outbox.deliveries_of[SINK, "slow-2"].attempts == 0


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd\n  text"),
        KeyError("x"),
        asyncio.CancelledError(),
        BrokenPipeError(),
        ExceptionGroup("", [OSError()]),
    ],
)
async def test_sink_that_raises_anything_fails_the_attempt_only(error: BaseException) -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def fail_once(event: OutboxEvent) -> None:
        if sink.attempts[event.id] == 1:
            raise error

    sink.behave = fail_once
    outbox.add(event_of("a"))
    async with delivering(outbox, [sink]):
        await until(lambda: sink.attempts["a-1"] == 1 and outbox.deliveries_of[SINK, "a-1"].attempts == 1)
        assert "\n" not in outbox.deliveries_of[SINK, "a-1"].error
        await until(lambda: sink.taken == ["a-1"])


async def test_error_of_a_sink_is_kept_without_password_and_bounded() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def fail(event: OutboxEvent) -> None:
        raise DeliveryError("nats://user:secret@host " + "x" * 1000)

    sink.behave = fail
    outbox.add(event_of("a"))
    async with delivering(outbox, [sink]):
        await until(lambda: outbox.deliveries_of[SINK, "a-1"].attempts == 1)
    error = outbox.deliveries_of[SINK, "a-1"].error
    assert "secret" not in error
    assert len(error) <= 300


async def test_old_event_that_fails_becomes_a_dead_letter_and_later_ones_go_on() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def fail_first(event: OutboxEvent) -> None:
        if event.id == "a-1":
            raise DeliveryError("never")

    sink.behave = fail_first
    now = time.time()
    outbox.add(event_of("a", 1, time=now - WEEK), event_of("a", 2, time=now))
    async with delivering(outbox, [sink], give_up=3 * 86400.0):
        await until(lambda: sink.taken == ["a-2"])
    dead = outbox.deliveries_of[SINK, "a-1"]
    assert (dead.status, dead.attempts, dead.error) == (DeliveryStatus.DEAD, 1, "never")


async def test_old_event_that_was_never_tried_is_tried_before_it_is_given_up() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    outbox.add(event_of("a", time=time.time() - WEEK))
    async with delivering(outbox, [sink], give_up=3 * 86400.0):
        await until(lambda: sink.taken == ["a-1"])


async def test_sink_that_is_away_gets_few_attempts_however_many_events_wait() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    away = True

    async def refuse(event: OutboxEvent) -> None:
        if away:
            raise DeliveryError("connection refused")

    sink.behave = refuse
    outbox.add(*(event_of(f"upload{number}") for number in range(500)))
    async with delivering(outbox, [sink], concurrency=4):
        await until(lambda: sum(sink.attempts.values()) >= 5)
        attempts, reads = sum(sink.attempts.values()), outbox.reads
        await asyncio.sleep(1.0)
        assert sum(sink.attempts.values()) <= attempts + 3
        assert outbox.reads <= reads + 3
        away = False
        await until(lambda: len(sink.taken) == 500)


async def test_sink_that_is_away_delays_no_other_sink() -> None:
    outbox, first, second = MemoryOutbox(), FakeSink(), FakeSink("nats://broker/tus")

    async def hang(event: OutboxEvent) -> None:
        await asyncio.Event().wait()

    first.behave = hang
    outbox.add(*(event_of(f"upload{number}", sinks=(first.name, second.name)) for number in range(30)))
    async with delivering(outbox, [first, second]) as relay:
        await until(lambda: len(second.taken) == 30)
        await relay.stop(0)
    assert first.taken == []


async def test_sink_that_cannot_be_opened_is_tried_with_the_events(caplog: pytest.LogCaptureFixture) -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def refuse() -> None:
        raise OSError("no route to host")

    sink.open = refuse  # type: ignore[method-assign]
    outbox.add(event_of("a"))
    async with delivering(outbox, [sink]):
        await until(lambda: sink.taken == ["a-1"])


async def test_outbox_that_fails_for_a_while_loses_no_outcome() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()

    async def take_and_break(event: OutboxEvent) -> None:
        outbox.failing = True

    sink.behave = take_and_break
    outbox.add(event_of("a"))
    async with delivering(outbox, [sink]):
        await until(lambda: sink.taken == ["a-1"])
        await asyncio.sleep(0.2)
        assert (SINK, "a-1") in outbox.deliveries_of
        outbox.failing = False
        await until(lambda: not outbox.deliveries_of)
    assert sink.attempts["a-1"] == 1


async def test_one_of_several_processes_delivers_and_another_one_follows_it() -> None:
    outbox, locks = MemoryOutbox(), MemoryLocks()
    first, second = FakeSink(), FakeSink()
    async with delivering(outbox, [second], locker=MemoryLocker(locks)):
        async with delivering(outbox, [first], locker=MemoryLocker(locks)):
            outbox.add(*(event_of(f"upload{number}") for number in range(10)))
            await until(lambda: not outbox.deliveries_of)
            assert len(first.taken) + len(second.taken) == 10
            assert not (first.taken and second.taken)
        outbox.add(event_of("later"))
        await until(lambda: not outbox.deliveries_of)


async def test_shutdown_waits_for_attempts_under_way_and_begins_none() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    going = asyncio.Event()
    release = asyncio.Event()

    async def wait(event: OutboxEvent) -> None:
        going.set()
        await release.wait()

    sink.behave = wait
    outbox.add(event_of("a", 1), event_of("a", 2))
    async with delivering(outbox, [sink]) as relay:
        await going.wait()
        stopping = asyncio.create_task(relay.stop(scaled(10)))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        release.set()
        await stopping
    assert sink.taken == ["a-1"]
    assert list(outbox.deliveries_of) == [(SINK, "a-2")]
    assert sink.closed == 1


async def test_shutdown_cuts_off_an_attempt_that_outlasts_the_grace() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    going = asyncio.Event()

    async def hang(event: OutboxEvent) -> None:
        going.set()
        await asyncio.Event().wait()

    sink.behave = hang
    outbox.add(event_of("a"))
    async with delivering(outbox, [sink]) as relay:
        await going.wait()
        await relay.stop(0)
    kept = outbox.deliveries_of[SINK, "a-1"]
    assert (kept.attempts, kept.error) == (0, "")


async def test_delivery_that_was_stopped_starts_again() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    async with delivering(outbox, [sink]) as relay:
        await relay.stop(1)
        outbox.add(event_of("a"))
        relay.start()
        await until(lambda: sink.taken == ["a-1"])


class Measured(NoInstrumentation):
    """A record of the last measurement of each sink."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int, float]] = {}

    def outbox_measured(self, sink: str, waiting: int, dead: int, oldest_seconds: float) -> None:
        self.last[sink] = waiting, dead, oldest_seconds


async def test_depth_and_age_are_measured_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    outbox, sink, measured = MemoryOutbox(), FakeSink(), Measured()

    async def refuse(event: OutboxEvent) -> None:
        raise DeliveryError("connection refused")

    sink.behave = refuse
    outbox.add(*(event_of(f"upload{number}", time=time.time() - 3600) for number in range(AWAY_AFTER + 2)))
    async with delivering(outbox, [sink], measured=measured):
        await until(lambda: measured.last.get(SINK, (0, 0, 0))[0] == AWAY_AFTER + 2)
    assert 3590 < measured.last[SINK][2] < 3700
    assert f"{AWAY_AFTER + 2} events wait for {SINK}, the oldest for 36" in caplog.text
    assert "an event could not be delivered" in caplog.text
