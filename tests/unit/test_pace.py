"""The pace of storage steps: fast, slow, or stalled."""

from __future__ import annotations

import pytest

from tusd_py.uploads.pace import FAST_SYNC, FAST_WRITE, SAMPLES, STALLED, Pace


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pace(clock: FakeClock) -> Pace:
    return Pace(syncs=True, clock=clock)


def take(pace: Pace, clock: FakeClock, seconds: float, *, count: int = 1, counts: bool = True) -> None:
    for _ in range(count):
        pace.begin("step")
        clock.now += seconds
        pace.end("step", counts=counts)


def test_an_unknown_pace_is_not_fast(pace: Pace, clock: FakeClock) -> None:
    assert not pace.is_fast
    take(pace, clock, FAST_SYNC / 10, count=SAMPLES, counts=False)
    assert not pace.is_fast


def test_a_few_fast_steps_make_the_pace_fast(pace: Pace, clock: FakeClock) -> None:
    take(pace, clock, FAST_SYNC / 10, count=3)
    assert pace.is_fast


def test_single_steps_that_waited_for_the_processor_do_not_make_the_pace_slow(pace: Pace, clock: FakeClock) -> None:
    take(pace, clock, FAST_SYNC / 10, count=3)
    take(pace, clock, 1.0, count=SAMPLES - 3)
    assert pace.is_fast


def test_slow_steps_make_the_pace_slow_and_fast_ones_fast_again(pace: Pace, clock: FakeClock) -> None:
    take(pace, clock, FAST_SYNC / 10, count=SAMPLES)
    take(pace, clock, 2 * FAST_SYNC, count=SAMPLES)
    assert not pace.is_fast
    take(pace, clock, FAST_SYNC / 10, count=SAMPLES)
    assert pace.is_fast


def test_a_step_under_way_for_long_is_a_stall_until_it_ends(pace: Pace, clock: FakeClock) -> None:
    take(pace, clock, FAST_SYNC / 10, count=SAMPLES)
    pace.begin("stalled")
    assert pace.is_fast
    clock.now += 2 * STALLED
    take(pace, clock, FAST_SYNC / 10)
    assert (pace.is_stalled, pace.is_fast) == (True, False)
    pace.end("stalled", counts=True)
    assert (pace.is_stalled, pace.is_fast) == (False, True)


def test_steps_without_syncs_are_fast_until_they_are_known_to_be_slow(clock: FakeClock) -> None:
    pace = Pace(syncs=False, clock=clock)
    assert pace.is_fast
    take(pace, clock, FAST_WRITE / 2, count=SAMPLES)
    assert pace.is_fast
    take(pace, clock, 2 * FAST_WRITE, count=SAMPLES)
    assert not pace.is_fast
