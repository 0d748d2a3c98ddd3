"""The time between two commits of an append."""

from __future__ import annotations

from tusd_py.uploads.commit_pace import COMMIT_SHARE, WATCHED_INTERVAL, CommitPace


def test_one_slow_commit_delays_no_other() -> None:
    pace = CommitPace()
    for seconds in (0.01, 0.3, 0.01, 0.3):
        pace.committed(seconds)
        assert pace.watched_interval(1.0) == WATCHED_INTERVAL


def test_slow_storage_keeps_its_pace() -> None:
    pace = CommitPace()
    for _ in range(2):
        pace.committed(0.2)
    assert pace.watched_interval(1.0) == COMMIT_SHARE * 0.2
    pace.committed(5.0)
    pace.committed(5.0)
    assert pace.watched_interval(1.0) == 1.0
    pace.committed(0.01)
    assert pace.watched_interval(1.0) == WATCHED_INTERVAL


def test_watched_upload_is_committed_no_later_than_others() -> None:
    assert CommitPace().watched_interval(0.1) == 0.1
