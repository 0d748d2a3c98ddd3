from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.support.properties import on_any_machine
from tusd_py.outbox.backoff import (
    AWAY_AFTER,
    MAX_PAUSE,
    MAX_RETRY_AFTER,
    MAX_SINK_PAUSE,
    SinkHealth,
    pause_after,
)


@pytest.mark.parametrize(("attempts", "full"), [(1, 1), (2, 2), (3, 4), (10, 512), (11, 600), (10_000, 600)])
def test_pause_doubles_up_to_its_longest(attempts: int, full: float) -> None:
    assert pause_after(attempts, chance=1.0) == full
    assert pause_after(attempts, chance=0.0) == full / 2


@on_any_machine
@given(attempts=st.integers(1, 1 << 40), chance=st.floats(0, 1), retry_after=st.none() | st.floats(-1e9, 1e18))
def test_pause_is_bounded_whatever_the_receiver_asks(attempts: int, chance: float, retry_after: float | None) -> None:
    pause = pause_after(attempts, retry_after, chance)
    assert 0.5 <= pause <= max(MAX_PAUSE, MAX_RETRY_AFTER)


def test_pause_is_as_long_as_the_receiver_asks() -> None:
    assert pause_after(1, retry_after=120) == 120
    assert pause_after(20, retry_after=1) >= MAX_PAUSE / 2


def test_pauses_of_many_events_differ() -> None:
    assert len({pause_after(5) for _ in range(20)}) > 10


def test_sink_with_one_event_that_always_fails_is_not_away() -> None:
    health = SinkHealth()
    for attempt in range(100):
        health.failed("poison", float(attempt))
    assert not health.is_away
    assert health.slots(16) == 16
    assert health.pause(100.0) == 0


def test_sink_is_away_after_several_events_failed_in_a_row() -> None:
    health = SinkHealth()
    for number in range(AWAY_AFTER):
        assert not health.is_away
        health.failed(f"event-{number}", 10.0)
    assert health.is_away
    assert health.slots(16) == 1
    assert health.pause(10.0) == 0.5
    health.failed("another", 11.0)
    assert health.pause(11.0) == 1.0
    for _ in range(50):
        health.failed("another", 11.0)
    assert health.pause(11.0) == MAX_SINK_PAUSE


def test_sink_that_asks_for_time_gets_it() -> None:
    health = SinkHealth()
    for number in range(AWAY_AFTER):
        health.failed(f"event-{number}", 10.0, retry_after=90)
    assert health.pause(10.0) == 90
    assert health.pause(99.0) == 1


def test_success_ends_the_pause() -> None:
    health = SinkHealth()
    for number in range(AWAY_AFTER):
        health.failed(f"event-{number}", 10.0)
    health.succeeded()
    assert not health.is_away
    assert health.pause(10.0) == 0
    assert health.slots(16) == 16
