"""Metrics beside those of a host application, and sums of processes that have ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from tests.support.harness import ROOT
from tusd_py.events.bus import EventBus
from tusd_py.observability.metrics import Metrics
from tusd_py.observability.metrics_merge import merge_counts

HOST = """
from prometheus_client import Counter, generate_latest
before = Counter("before", "Made before the import.")
import tusd_py
after = Counter("after", "Made after the import.")
text = generate_latest().decode()
assert "before_created" in text
assert "after_created" in text
"""


def test_the_import_leaves_the_metrics_of_the_host_as_they_are() -> None:
    subprocess.run([sys.executable, "-c", HOST], cwd=ROOT, check=True, timeout=60)


def test_counters_have_no_time_beside_them() -> None:
    metrics = Metrics(EventBus())
    metrics.connections_changed(3)
    text = metrics.render().decode()
    assert "_created" not in text.replace("tusd_uploads_created", "")
    assert "tusd_uploads_created 0.0" in text
    assert "tusd_connections_open 3.0" in text


def written(path: Path, **values: float) -> None:
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, value in values.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]


def read(path: Path) -> dict[str, float]:
    found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return {key: value for key, value, *_ in found}


@pytest.mark.parametrize("kind", ["counter", "histogram"])
def test_counts_of_ended_processes_are_added_up_in_one_file(tmp_path: Path, kind: str) -> None:
    written(tmp_path / f"{kind}_1.db", a=1.0, b=2.0)
    written(tmp_path / f"{kind}_2.db", b=3.0, c=4.0)
    merge_counts(tmp_path, 1)
    merge_counts(tmp_path, 2)
    merge_counts(tmp_path, 3)  # has counted nothing
    assert read(tmp_path / f"{kind}_ended.db") == {"a": 1.0, "b": 5.0, "c": 4.0}
    assert [path.name for path in tmp_path.glob("*.db")] == [f"{kind}_ended.db"]


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff\xff\xff\x7f" * 4])
def test_a_torn_file_does_not_spoil_the_sums(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "counter_1.db", a=1.0)
    merge_counts(tmp_path, 1)
    (tmp_path / "counter_2.db").write_bytes(content)
    merge_counts(tmp_path, 2)
    assert read(tmp_path / "counter_ended.db") == {"a": 1.0}
    assert not (tmp_path / "counter_2.db").exists()


def test_many_labels_fit(tmp_path: Path) -> None:
    """The file of sums grows beyond its first size."""
    values = {f"{'x' * 200}{number}": float(number) for number in range(1000)}
    written(tmp_path / "counter_1.db", **values)
    merge_counts(tmp_path, 1)
    assert read(tmp_path / "counter_ended.db") == values


def test_a_scrape_waits_for_the_file_that_a_process_is_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = Metrics(EventBus())
    file = tmp_path / "counter_1.db"
    file.touch()
    pauses = 0

    def pause(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        file.unlink()
        written(file, **{'["tusd_made", "tusd_made_total", {}, "Made."]': 3.0})

    monkeypatch.setattr("tusd_py.observability.metrics.time.sleep", pause)
    assert "tusd_made_total 3.0" in metrics.render().decode()
    assert pauses == 1
