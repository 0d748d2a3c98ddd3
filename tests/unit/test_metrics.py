"""Metrics beside those of a host application, and sums of processes that have ended."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Histogram
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import ROOT
from tests.support.timing import wait_until
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.interruptions import MAX_INTERRUPTED
from tusd_py.events.types import (
    AppendEnded,
    AppendStarted,
    LockWaited,
    RequestFinished,
    UploadCreated,
    UploadProgressed,
)
from tusd_py.observability import catalogue
from tusd_py.observability.bounded_measurement import BoundedMeasurement
from tusd_py.observability.label_values import MAX_NAMES, OTHER
from tusd_py.observability.metrics import MAX_WAITING, Metrics
from tusd_py.observability.metrics_merge import merge_counts
from tusd_py.observability.tallies import Family, Tally

UPLOAD = Upload("a", 1.0)
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


def values_of(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample of a scrape by its name and labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the value of one sample; 0 if there is none."""
    return values_of(metrics).get((name, tuple(sorted(labels.items()))), 0.0)


def request_of(method: str = "PATCH", status: int = 204, seconds: float = 0.3, **fields: Any) -> RequestFinished:
    return RequestFinished(method, "/files/a", status, seconds, **fields)


def test_observations_that_waited_are_in_the_buckets_in_which_each_alone_would_be() -> None:
    bounds = catalogue.LOCK_WAITS
    seconds = [0.0, *bounds, *(bound * 1.01 for bound in bounds)]
    events = EventBus()
    metrics = Metrics(events)
    expected = Histogram("expected", "Observed one by one.", buckets=bounds, registry=None)
    for value in seconds:
        events.publish(LockWaited("a", value, obtained=True))
        expected.observe(value)
    (family,) = expected.collect()
    for wanted in family.samples:
        name = wanted.name.replace("expected", "tusd_lock_wait_seconds")
        if not name.endswith("_created"):
            assert sample(metrics, name, **wanted.labels) == pytest.approx(wanted.value)


def test_client_cannot_add_to_the_labels() -> None:
    events = EventBus()
    metrics = Metrics(events)
    events.publish(request_of(error_code="ERR_FIRST", first_byte=0.1))
    for code in range(MAX_NAMES - 1):
        events.publish(request_of(error_code=f"ERR_{code}"))
    before = len(values_of(metrics))
    for number in range(1000):
        events.publish(request_of(f"METHOD{number}", 999, first_byte=0.1, error_code=f"ERR_OTHER_{number}"))
        metrics.connection_ended(f"reason {number}")
        metrics.progress_told(f"kind {number}", 1)
        metrics.hook_called(f"hook-{number}", 0.1, succeeded=True)
        metrics.redis_call_finished(f"call{number}", 0.1, succeeded=False)
        metrics.s3_request_finished(f"operation{number}", "ok", 0.1)
    found = values_of(metrics)
    of_one = sum(len(entry.buckets) + 3 if entry.buckets else 1 for entry in catalogue.ENTRIES.values() if entry.labels)
    assert len(found) - before <= of_one
    assert found["tusd_requests_total", (("method", OTHER),)] == 1000
    assert found["tusd_errors_total", (("code", OTHER), ("status", OTHER))] == 1000
    assert found["tusd_redis_errors_total", (("call", OTHER),)] == 1000


def test_many_observations_that_nobody_reads_take_bounded_memory() -> None:
    events = EventBus()
    metrics = Metrics(events)
    for _ in range(3 * MAX_WAITING):
        events.publish(request_of())
    waiting = [len(vars_of(tally)) for family in vars(metrics)["_families"].values() for tally in tallies_of(family)]
    assert max(waiting) <= MAX_WAITING
    assert sample(metrics, "tusd_requests_total", method="PATCH") == 3 * MAX_WAITING


@pytest.mark.parametrize(
    "observe",
    [
        lambda metrics, events: metrics.progress_told("progress", 2),
        lambda metrics, events: metrics.storage_written(0.1),
        lambda metrics, events: metrics.redis_call_finished("time", 0.1, succeeded=True),
        lambda metrics, events: events.publish(LockWaited("id", 0.1, obtained=True)),
        lambda metrics, events: events.publish(AppendStarted(UPLOAD)),
        lambda metrics, events: events.publish(UploadProgressed(UPLOAD, 1, None)),
        lambda metrics, events: events.publish(UploadCreated(UPLOAD)),
    ],
)
def test_observations_of_one_kind_alone_take_bounded_memory(observe: Callable[[Metrics, EventBus], object]) -> None:
    """A process may see nothing else: clients that follow the uploads of other processes, or one long PATCH."""
    events = EventBus()
    metrics = Metrics(events)
    for _ in range(3 * MAX_WAITING):
        observe(metrics, events)
    waiting = [len(vars_of(tally)) for family in vars(metrics)["_families"].values() for tally in tallies_of(family)]
    assert max(waiting) <= MAX_WAITING


def tallies_of(family: Family) -> list[Tally]:
    return list(vars(family)["_tallies"].values())


def vars_of(tally: Tally) -> Any:
    return tally._waiting


def test_request_is_counted_by_method_and_class_of_its_status() -> None:
    events = EventBus()
    metrics = Metrics(events)
    events.publish(request_of("HEAD", 200, 0.2, first_byte=0.15))
    events.publish(request_of("HEAD", 0, 0.2))
    events.publish(request_of("GET", 200, 3000, first_byte=0.01, is_stream=True))
    name = "tusd_request_duration_seconds_count"
    assert sample(metrics, name, method="HEAD", status_class="2xx") == 1
    assert sample(metrics, name, method="HEAD", status_class="none") == 1
    assert sample(metrics, name, method="GET", status_class="2xx") == 0
    assert sample(metrics, "tusd_request_first_byte_seconds_count", method="HEAD") == 1
    assert sample(metrics, "tusd_request_first_byte_seconds_sum", method="GET") == pytest.approx(0.01)


def test_append_resumes_an_upload_after_an_interruption_or_a_pause() -> None:
    events = EventBus()
    metrics = Metrics(events)

    def appended(upload_id: str, offset: int, changed_at: float, *, interrupted: bool = False) -> None:
        upload = Upload(upload_id, changed_at, 10, offset=offset, updated_at=changed_at)
        events.publish(AppendStarted(upload))
        events.publish(AppendEnded(upload, interrupted))

    def counts() -> tuple[float, float]:
        names = ("tusd_uploads_interrupted_total", "tusd_uploads_resumed_total")
        return sample(metrics, names[0]), sample(metrics, names[1])

    now = time.time()
    appended("begins", 0, now - 100)
    appended("goes-on-at-once", 5, now)
    assert counts() == (0, 0)
    appended("a", 5, now, interrupted=True)
    assert counts() == (1, 0)
    appended("a", 5, now)
    appended("a", 6, now)
    assert counts() == (1, 1)
    appended("of-another-process", 5, now - 100)
    assert counts() == (1, 2)
    for number in range(MAX_INTERRUPTED + 10):
        appended(f"upload-{number}", 5, now, interrupted=True)
    assert len(vars(metrics)["_interruptions"]) == MAX_INTERRUPTED
    assert sample(metrics, "tusd_uploads_active") == 0


def test_free_space_is_unknown_until_it_is_measured_and_while_it_cannot_be() -> None:
    metrics = Metrics(EventBus())
    assert math.isnan(sample(metrics, "tusd_storage_free_bytes"))
    metrics.watch_free_space(lambda: 12345)
    assert sample(metrics, "tusd_storage_free_bytes") == 12345

    def fail() -> int:
        raise OSError

    metrics.watch_free_space(fail)
    assert math.isnan(sample(metrics, "tusd_storage_free_bytes"))


def test_measurement_that_hangs_delays_no_scrape_and_is_not_repeated() -> None:
    release, calls = threading.Event(), []

    def measure() -> float:
        calls.append(1)
        if len(calls) == 2:
            release.wait(60)
        return float(len(calls))

    measurement = BoundedMeasurement(measure)
    assert measurement.latest(60) == 1
    assert [measurement.latest(0.01) for _ in range(5)] == [1] * 5  # the last value that is known
    assert len(calls) == 2
    release.set()
    assert measurement.latest(60) in (2, 3)


def test_measurement_whose_thread_did_not_start_is_made_the_next_time() -> None:
    measurement = BoundedMeasurement(lambda: 7.0)
    size = threading.stack_size(1 << 48)  # bytes, more than addresses
    try:
        assert measurement.latest(60) is None
    finally:
        threading.stack_size(size)
    assert measurement.latest(60) == 7.0


SHARED = """
import asyncio, sys
from tusd_py.events.bus import EventBus
from tusd_py.events.types import UploadCreated
from tusd_py.core.upload import Upload
from tusd_py.observability.metrics import Metrics

events = EventBus()
metrics = Metrics(events)
metrics.watch_free_space(lambda: int(sys.argv[1]))

async def main():
    events.publish(UploadCreated(Upload("a", 1.0)))
    print("counted", flush=True)
    while (line := await asyncio.to_thread(sys.stdin.readline)) == "render\\n":
        print(await asyncio.to_thread(metrics.render))

asyncio.run(main())
"""


def test_processes_see_the_observations_of_each_other_and_one_free_space(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SHARED, size],
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for size in ("1000", "2000")
        )
        assert first.stdout is not None
        assert second.stdout is not None
        assert (first.stdout.readline(), second.stdout.readline()) == ("counted\n", "counted\n")

        def rendered(process: subprocess.Popen[str]) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("render\n")
            process.stdin.flush()
            return process.stdout.readline()

        wait_until(lambda: "tusd_uploads_created 2.0" in rendered(first))
        assert "tusd_storage_free_bytes 1000.0" in rendered(first)
        assert "tusd_storage_free_bytes 2000.0" in rendered(second)
        for process in (first, second):
            process.communicate("end\n", timeout=60)
