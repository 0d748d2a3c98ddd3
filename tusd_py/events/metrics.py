"""Prometheus metrics, fed by events. Names are tusd's where the meaning is the same, so that its dashboards work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import Metric

from tusd_py.events.base import (
    AppendEnded,
    AppendStarted,
    EventBus,
    LockWaited,
    RequestFinished,
    UploadCreated,
    UploadExpired,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})
DURATIONS = (0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600, 3600)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a sample beside every counter that nobody reads
LOCK_WAITS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10)


class PlainCounters:
    """Counters under names without `_total`, which prometheus_client's own would add."""

    HELP = {  # noqa: RUF012
        "tusd_bytes_received": "Bytes of uploads that were stored.",
        "tusd_uploads_created": "Uploads created.",
        "tusd_uploads_finished": "Uploads completed.",
        "tusd_uploads_terminated": "Uploads removed by clients.",
        "tusd_uploads_expired": "Unfinished uploads removed after their time.",
    }

    def __init__(self) -> None:
        self.values = dict.fromkeys(self.HELP, 0)

    def collect(self) -> Iterator[Metric]:
        for name, text in self.HELP.items():
            metric = Metric(name, text, "unknown")
            metric.add_sample(name, {}, self.values[name])
            yield metric


class Metrics:
    """The metrics of one server."""

    def __init__(self, events: EventBus, connections: Callable[[], int] | None = None) -> None:
        self.connections = connections or (lambda: 0)
        self._registry = CollectorRegistry()
        self._plain = PlainCounters()
        self._registry.register(self._plain)
        registry = self._registry
        self._requests = Counter("tusd_requests", "Requests by method.", ["method"], registry=registry)
        self._errors = Counter(
            "tusd_errors", "Requests refused, by status and code.", ["status", "code"], registry=registry
        )
        self._durations = Histogram(
            "tusd_request_duration_seconds", "Time to answer.", ["method"], buckets=DURATIONS, registry=registry
        )
        self._lock_waits = Histogram(
            "tusd_lock_wait_seconds", "Time to obtain the lock of an upload.", buckets=LOCK_WAITS, registry=registry
        )
        self._lock_timeouts = Counter("tusd_lock_timeouts", "Locks that were not obtained in time.", registry=registry)
        self._active = Gauge("tusd_uploads_active", "Uploads that are being written to now.", registry=registry)
        connections_open = Gauge("tusd_connections_open", "Connections that clients hold open.", registry=registry)
        connections_open.set_function(lambda: self.connections())
        self._subscribe(events)

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _subscribe(self, events: EventBus) -> None:
        events.subscribe(RequestFinished, self._request_finished)
        events.subscribe(LockWaited, self._lock_waited)
        events.subscribe(AppendStarted, lambda event: self._active.inc())
        events.subscribe(AppendEnded, lambda event: self._active.dec())
        events.subscribe(UploadProgressed, lambda event: self._add("tusd_bytes_received", event.received))
        events.subscribe(UploadCreated, lambda event: self._add("tusd_uploads_created", 1))
        events.subscribe(UploadFinished, lambda event: self._add("tusd_uploads_finished", 1))
        events.subscribe(UploadTerminated, lambda event: self._add("tusd_uploads_terminated", 1))
        events.subscribe(UploadExpired, lambda event: self._add("tusd_uploads_expired", 1))

    def _add(self, name: str, amount: int) -> None:
        self._plain.values[name] += amount

    def _request_finished(self, event: RequestFinished) -> None:
        method = event.method if event.method in METHODS else "other"
        self._requests.labels(method).inc()
        self._durations.labels(method).observe(event.seconds)
        if event.error_code:
            self._errors.labels(str(event.status), event.error_code).inc()

    def _lock_waited(self, event: LockWaited) -> None:
        self._lock_waits.observe(event.seconds)
        if not event.obtained:
            self._lock_timeouts.inc()
