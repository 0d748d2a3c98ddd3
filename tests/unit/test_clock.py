"""The time that records are judged by (tusd_py/core/clock.py)."""

from __future__ import annotations

import pytest

from tests.faults.clocks import DAY, FakeClock
from tusd_py.core.clock import RemoteClock, SteadyClock, SystemClock

HOUR = 3600.0
START = 1_800_000_000.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def steady(clock: FakeClock) -> SteadyClock:
    """A clock that was looked at once."""
    steady = SteadyClock(clock, hold=DAY)
    assert steady.steady() == START
    return steady


def looked_at(steady: SteadyClock, clock: FakeClock, seconds: float, every: float = 60.0) -> float:
    """Time goes by, and the clock is looked at; returns the last answer."""
    for _ in range(int(seconds / every)):
        clock.advance(every)
        steady.steady()
    return steady.steady()


def test_steady_time_is_the_wall_clock_as_long_as_that_runs(clock: FakeClock, steady: SteadyClock) -> None:
    assert looked_at(steady, clock, 3 * DAY) == clock.wall()
    assert not steady.is_held


@pytest.mark.parametrize("correction", [0.05, -2.0])
def test_steady_time_follows_corrections_at_once(clock: FakeClock, steady: SteadyClock, correction: float) -> None:
    clock.advance(60)
    clock.jump(correction)
    assert steady.steady() == clock.wall()


def test_steady_time_follows_a_small_step_soon(clock: FakeClock, steady: SteadyClock) -> None:
    clock.jump(2.0)
    assert looked_at(steady, clock, 2100) == clock.wall()


def test_steady_time_does_not_follow_a_jump_forward(clock: FakeClock, steady: SteadyClock) -> None:
    clock.jump(2 * DAY)
    assert steady.steady() == START
    assert steady.is_held
    clock.advance(5)
    assert steady.steady() == pytest.approx(START + 5, abs=1)
    clock.jump(-2 * DAY)
    assert steady.steady() == clock.wall()
    assert not steady.is_held


def test_steady_time_follows_a_jump_back_at_once(clock: FakeClock, steady: SteadyClock) -> None:
    clock.jump(-DAY)
    assert steady.steady() == START - DAY


def test_a_corrected_clock_is_believed_after_the_hold(clock: FakeClock, steady: SteadyClock) -> None:
    clock.jump(30 * DAY)
    assert looked_at(steady, clock, DAY - 60) < clock.wall() - 25 * DAY
    assert looked_at(steady, clock, 120) == clock.wall()


def test_another_jump_begins_another_hold(clock: FakeClock, steady: SteadyClock) -> None:
    clock.jump(30 * DAY)
    looked_at(steady, clock, DAY / 2)
    clock.jump(30 * DAY)
    assert looked_at(steady, clock, DAY - 60) < clock.wall() - 50 * DAY
    assert looked_at(steady, clock, 120) == clock.wall()


def test_the_hold_is_an_hour_at_least(clock: FakeClock) -> None:
    steady = SteadyClock(clock, hold=1)
    steady.steady()
    clock.jump(DAY)
    assert looked_at(steady, clock, HOUR - 60) < clock.wall() - DAY / 2
    assert looked_at(steady, clock, 120) == clock.wall()


def test_a_process_that_starts_during_a_jump_goes_on_at_the_pace_of_the_last_one(
    clock: FakeClock, steady: SteadyClock
) -> None:
    saved = steady.save()
    clock.advance(100)
    clock.jump(2 * DAY)
    later = SteadyClock(clock, hold=DAY)
    later.restore(saved)
    assert later.steady() == START + 100
    assert looked_at(later, clock, DAY + 60) == clock.wall()


def test_processes_that_start_again_and_again_do_not_prolong_the_hold(clock: FakeClock, steady: SteadyClock) -> None:
    clock.jump(30 * DAY)
    steady.steady()
    for _ in range(25):
        saved = steady.save()
        clock.advance(HOUR)
        steady = SteadyClock(clock, hold=DAY)
        steady.restore(saved)
        steady.steady()
    assert steady.steady() == clock.wall()


def test_a_clock_behind_at_boot_that_is_corrected_later_is_a_jump(clock: FakeClock, steady: SteadyClock) -> None:
    saved = steady.save()
    clock.reboot("second boot")
    clock.jump(-DAY)
    steady = SteadyClock(clock, hold=DAY)
    steady.restore(saved)
    assert steady.steady() == clock.wall()
    clock.advance(30)
    clock.jump(DAY)
    assert steady.steady() < clock.wall() - DAY + 10


def test_a_clock_far_ahead_at_boot_is_not_believed_at_once(clock: FakeClock, steady: SteadyClock) -> None:
    saved = steady.save()
    clock.reboot("second boot", off_for=7 * DAY)
    steady = SteadyClock(clock, hold=DAY)
    steady.restore(saved)
    assert steady.steady() == START
    assert looked_at(steady, clock, DAY + 60) == clock.wall()


def test_a_short_time_without_a_server_counts(clock: FakeClock, steady: SteadyClock) -> None:
    saved = steady.save()
    clock.reboot("second boot", off_for=90)
    steady = SteadyClock(clock, hold=DAY)
    steady.restore(saved)
    assert steady.steady() == clock.wall()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "nonsense", '{"era": 1, "monotonic": "x", "steady": null}'])
def test_a_saved_state_that_is_none_changes_nothing(clock: FakeClock, text: str) -> None:
    steady = SteadyClock(clock)
    steady.restore(text)
    assert steady.steady() == START


def test_a_remote_clock_tells_what_it_heard_and_goes_on_by_the_monotonic_one(clock: FakeClock) -> None:
    remote = RemoteClock(clock)
    assert remote.wall() == START
    asked_at = clock.monotonic()
    clock.advance(0.5)
    remote.synchronize(START + 7 * DAY, asked_at)
    assert remote.wall() == pytest.approx(START + 7 * DAY, abs=0.5)
    clock.advance(10)
    clock.jump(-3 * DAY)
    assert remote.wall() == pytest.approx(START + 7 * DAY + 10, abs=0.5)


def test_the_clock_of_this_host_has_an_era_on_linux() -> None:
    assert SystemClock().era() == SystemClock().era() != ""
