"""The rate of an upload, and the time that is left."""

from __future__ import annotations

import pytest

from tusd_py.progress.rate import MAX_PAUSE, WINDOW, RateMeter, seconds_left


def meter_with(*samples: tuple[float, int]) -> RateMeter:
    meter = RateMeter()
    for time, offset in samples:
        meter.add(time, offset)
    return meter


def test_rate_of_one_sample_is_not_known() -> None:
    assert meter_with().rate(0.0) is None
    assert meter_with((0.0, 100)).rate(1.0) is None


def test_rate_of_samples_at_the_same_moment_is_not_known() -> None:
    assert meter_with((0.0, 0), (0.001, 4)).rate(0.001) is None


def test_rate_is_the_average_of_the_last_seconds() -> None:
    assert meter_with((0.0, 0), (1.0, 100), (2.0, 300)).rate(2.0) == 150.0


def test_rate_of_many_samples_forgets_the_first_ones() -> None:
    samples = [(tick / 4, 0 if tick < 40 else (tick - 40) * 25) for tick in range(80)]
    assert meter_with(*samples).rate(samples[-1][0]) == pytest.approx(100.0)


def test_upload_without_progress_has_the_rate_zero_after_the_window() -> None:
    meter = meter_with((0.0, 0), (1.0, 100))
    assert meter.rate(1.0 + WINDOW) == 100.0
    assert meter.rate(1.1 + WINDOW) == 0.0


@pytest.mark.parametrize("next_sample", [(2.0, 50), (0.5, 200), (1.1 + MAX_PAUSE, 200)])
def test_rate_begins_anew_after_a_step_back_or_a_long_pause(next_sample: tuple[float, int]) -> None:
    assert meter_with((0.0, 0), (1.0, 100), next_sample).rate(next_sample[0]) is None


def test_restart_forgets_what_was_before() -> None:
    meter = meter_with((0.0, 0), (1.0, 100))
    meter.restart(2.0, 100)
    assert meter.rate(2.0) is None
    meter.add(3.0, 110)
    assert meter.rate(3.0) == 10.0


@pytest.mark.parametrize(
    ("rate", "offset", "length", "seconds"),
    [(100.0, 50, 100, 0.5), (100.0, 100, 100, 0.0), (None, 0, 100, None), (0.0, 0, 100, None), (10.0, 5, None, None)],
)
def test_time_left_is_that_of_the_rate(
    rate: float | None, offset: int, length: int | None, seconds: float | None
) -> None:
    assert seconds_left(rate, offset, length) == seconds
