"""Prometheus metrics, fed by the event bus and by the instrumentation of components.

Names are those of tusd where the meaning is the same, so that its dashboards work.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.events.bus import EventBus
from tusd_py.events.types import (
    AppendEnded,
    AppendStarted,
    JobFinished,
    LockWaited,
    PartialFinished,
    RequestFinished,
    UploadCreated,
    UploadExpired,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.observability.metrics_merge import locked

# Names of tusd, without the suffix `_total` that prometheus_client adds to every counter.
PLAIN_COUNTERS = {
    "tusd_bytes_received": "Bytes of uploads that were stored.",
    "tusd_uploads_created": "Uploads created.",
    "tusd_uploads_finished": "Uploads completed.",
    "tusd_uploads_terminated": "Uploads removed by clients.",
    "tusd_uploads_expired": "Unfinished uploads removed after their time.",
}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
READ_ATTEMPTS, READ_PAUSE = 50, 0.02  # seconds; a process creates its file empty and fills it a moment later
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})
DURATIONS = (0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600, 3600)
S3_CALLS = (0.005, 0.025, 0.1, 0.5, 2, 10, 60)
CALLS = (0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1)
LOCK_WAITS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10)


class Metrics(Instrumentation):
    """The metrics of one server; of all its processes together where PROMETHEUS_MULTIPROC_DIR is set.

    Thread-safe: prometheus_client has a lock for every value.
    """

    def __init__(self, events: EventBus) -> None:
        self._registry = CollectorRegistry()
        self._plain_counters = {name: self._counter(name, text) for name, text in PLAIN_COUNTERS.items()}
        self._requests = self._counter("tusd_requests", "Requests by method.", "method")
        self._by_method: dict[str, tuple[Counter, Histogram]] = {}  # cached children: a lookup by labels takes longer
        self._errors = self._counter("tusd_errors", "Requests refused.", "status", "code")
        self._durations = self._histogram("tusd_request_duration_seconds", "Time to answer.", DURATIONS, "method")
        self._active = self._gauge("tusd_uploads_active", "Uploads being written to.")
        self._make_lock_metrics()
        self._make_backend_metrics()
        self._connections = self._gauge("tusd_connections_open", "Open connections.")
        self._connection_limit = self._gauge("tusd_connections_limit", "Most open connections.")
        self._connections_ended = self._counter(
            "tusd_connections_ended", "Connections that the server ended early.", "reason"
        )
        self._listeners = self._gauge("tusd_listeners", "Clients that follow uploads.", "kind")
        self._jobs = self._histogram("tusd_job_duration_seconds", "Runs of periodic jobs.", DURATIONS, "job", "result")
        self._subscribe(events)

    def _make_lock_metrics(self) -> None:
        self._lock_waits = self._histogram(
            "tusd_lock_wait_seconds", "Time to obtain the lock of an upload.", LOCK_WAITS
        )
        self._lock_timeouts = self._counter("tusd_lock_timeouts", "Locks that were not obtained in time.")
        self._takeovers = self._counter("tusd_lock_takeovers", "Locks taken over from a holder that vanished.")
        self._lost_leases = self._counter("tusd_leases_lost", "Leases that could not be renewed in time.")

    def _make_backend_metrics(self) -> None:
        self._redis_calls = self._histogram("tusd_redis_call_duration_seconds", "Calls to Redis.", CALLS, "call")
        self._redis_call: dict[str, Histogram] = {}  # cached children
        self._redis_errors = self._counter("tusd_redis_errors", "Calls to Redis that failed.", "call")
        self._s3_calls = self._histogram(
            "tusd_s3_call_duration_seconds", "Requests to S3.", S3_CALLS, "operation", "result"
        )
        self._s3_buffered = self._gauge("tusd_s3_buffered_bytes", "Bytes of parts in memory.")
        self._s3_parts = self._gauge("tusd_s3_parts_in_flight", "Parts being sent to S3.")
        self._measured_gauges: dict[Gauge, Callable[[], int]] = {}
        self._outbox_events = self._gauge(
            "tusd_outbox_events", "Events that wait for a sink, and its dead letters.", "sink", "status"
        )
        self._outbox_oldest = self._gauge("tusd_outbox_oldest_seconds", "Age of the oldest event that waits.", "sink")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge whose value is the sum over the live processes."""
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode="livesum")

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def connections_changed(self, change: int) -> None:
        """Add to the gauge of open connections."""
        self._connections.inc(change)

    def connections_limited(self, limit: int) -> None:
        """Set the gauge of the connection limit."""
        self._connection_limit.set(limit)

    def connection_ended(self, reason: str) -> None:
        """Count a connection that the server ended early."""
        self._connections_ended.labels(reason).inc()

    def s3_request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Observe the duration of a request to S3. Runs in a worker thread."""
        self._s3_calls.labels(operation, outcome).observe(seconds)

    def watch_s3_memory(self, buffered_bytes: Callable[[], int], parts_in_flight: Callable[[], int]) -> None:
        """Read the gauges of S3 from these functions at every scrape."""
        self._measured_gauges |= {self._s3_buffered: buffered_bytes, self._s3_parts: parts_in_flight}

    def outbox_measured(self, sink: str, waiting: int, dead: int, oldest_seconds: float) -> None:
        """Set the gauges of a sink; they are zero in every process but the one that delivers to it."""
        self._outbox_events.labels(sink, "waiting").set(waiting)
        self._outbox_events.labels(sink, "dead").set(dead)
        self._outbox_oldest.labels(sink).set(oldest_seconds)

    def listeners_changed(self, kind: str, change: int) -> None:
        """Add to the gauge of listeners."""
        self._listeners.labels(kind).inc(change)

    def lease_lost(self) -> None:
        """Count a lost lease."""
        self._lost_leases.inc()

    def redis_call_finished(self, call: str, seconds: float, succeeded: bool) -> None:
        """Observe the duration of a call to Redis, and count a failed one."""
        histogram = self._redis_call.get(call)
        if histogram is None:
            histogram = self._redis_call[call] = self._redis_calls.labels(call)
        histogram.observe(seconds)
        if not succeeded:
            self._redis_errors.labels(call).inc()

    def render(self) -> bytes:
        """Return the metrics in the text format of Prometheus. Blocks: reads the files of all processes."""
        for gauge, measure in self._measured_gauges.items():
            gauge.set(measure())
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        text = _text_of(self._registry) if folder is None else _sum_text(Path(folder))
        for name in PLAIN_COUNTERS:
            text = text.replace(f"{name}_total".encode(), name.encode())
        return text

    def _subscribe(self, events: EventBus) -> None:
        events.observe(RequestFinished, self._request_finished)
        events.observe(LockWaited, self._lock_waited)
        events.observe(AppendStarted, lambda event: self._active.inc())
        events.observe(AppendEnded, lambda event: self._active.dec())
        plain = self._plain_counters
        events.observe(UploadProgressed, lambda event: plain["tusd_bytes_received"].inc(event.received))
        events.observe(UploadCreated, lambda event: plain["tusd_uploads_created"].inc())
        for kind in (UploadFinished, PartialFinished):  # tusd counts both
            events.observe(kind, lambda event: plain["tusd_uploads_finished"].inc())
        events.observe(UploadTerminated, lambda event: plain["tusd_uploads_terminated"].inc())
        events.observe(UploadExpired, lambda event: plain["tusd_uploads_expired"].inc())
        events.observe(JobFinished, self._job_finished)

    def _job_finished(self, event: JobFinished) -> None:
        self._jobs.labels(event.name, "ok" if event.succeeded else "failed").observe(event.seconds)

    def _request_finished(self, event: RequestFinished) -> None:
        requests, durations = self._by_method.get(event.method) or self._children_of(event.method)
        requests.inc()
        if not event.is_stream:
            durations.observe(event.seconds)
        if event.error_code:
            self._errors.labels(str(event.status), event.error_code).inc()

    def _children_of(self, method: str) -> tuple[Counter, Histogram]:
        """Return the counter and the histogram for a method, created with its first request."""
        name = method if method in METHODS else "other"
        counts = self._requests.labels(name), self._durations.labels(name)
        if method in METHODS:  # the cache is bounded: clients can send any method
            self._by_method[method] = counts
        return counts

    def _lock_waited(self, event: LockWaited) -> None:
        self._lock_waits.observe(event.seconds)
        if not event.obtained:
            self._lock_timeouts.inc()
        if event.unreleased_predecessors:
            self._takeovers.inc()


def _sum_text(folder: Path) -> bytes:
    """Return the sums over the files of all processes. Blocks, and retries while a process creates its file."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    for _ in range(READ_ATTEMPTS - 1):
        with contextlib.suppress(struct.error), locked(folder, shared=True):
            return _text_of(registry)
        time.sleep(READ_PAUSE)
    with locked(folder, shared=True):
        return _text_of(registry)


def _text_of(registry: CollectorRegistry) -> bytes:
    return generate_latest(_WithoutCreated(registry))


class _WithoutCreated(CollectorRegistry):
    """The metrics of a registry without the `_created` samples of counters.

    prometheus_client can omit these itself, but only for all metrics of the process, also those of the application.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics without these samples."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
