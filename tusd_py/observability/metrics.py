"""Prometheus metrics, fed by the event bus and by the instrumentation of components.

Names are those of tusd where the meaning is the same, so that its dashboards work.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.core.progress import RESUME_PAUSE
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.interruptions import Interruptions
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
from tusd_py.observability import catalogue
from tusd_py.observability.bounded_measurement import BoundedMeasurement
from tusd_py.observability.catalogue import Kind, MetricEntry
from tusd_py.observability.label_values import METHOD, OTHER, status_class
from tusd_py.observability.metrics_merge import locked
from tusd_py.observability.tallies import Family, Tally

# Names of tusd, without the suffix `_total` that prometheus_client adds to every counter.
PLAIN_COUNTERS = [
    name for name, entry in catalogue.ENTRIES.items() if entry.kind is Kind.COUNTER and not name.endswith("_total")
]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # variable with the folder of the files of several processes
READ_ATTEMPTS, READ_PAUSE = 50, 0.02  # seconds; a process creates its file empty and fills it a moment later
FOLD_INTERVAL = 0.5  # seconds
MAX_WAITING = 1000  # events until the next fold
MEASURE_TIMEOUT = 1.0  # seconds that a scrape waits for the free space


class Metrics(Instrumentation):
    """The metrics of one server; of all its processes together where PROMETHEUS_MULTIPROC_DIR is set.

    Observations in the path of requests wait in tallies until `fold` adds them to the collectors: before this process
    renders them, and where other processes render them too, `FOLD_INTERVAL` after the first one. A process that is
    killed loses those of that time.
    """

    def __init__(self, events: EventBus) -> None:
        """Observe the events of a server."""
        self._registry = CollectorRegistry()
        self._families = {name: Family(entry, self._registry) for name, entry in catalogue.ENTRIES.items()}
        self._is_shared = SHARED_FOLDER in os.environ
        self._fold_lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0  # events since the last fold
        self._interruptions = Interruptions()
        self._measured_gauges: dict[str, Callable[[], int]] = {}
        self._free_space: BoundedMeasurement | None = None
        self._family(catalogue.FREE_SPACE).child().set(math.nan)
        self._requests: dict[tuple[str, str], tuple[Tally, Tally, Tally]] = {}  # by method and class of status
        self._redis_calls = self._family(catalogue.REDIS_CALL_DURATION)
        self._subscribe(events)

    def _family(self, entry: MetricEntry) -> Family:
        return self._families[entry.name]

    def _tally(self, entry: MetricEntry) -> Tally:
        return self._family(entry).tally()

    # Measurements of components.

    def connections_changed(self, change: int) -> None:
        """Add to the gauge of open connections."""
        self._family(catalogue.CONNECTIONS_OPEN).child().inc(change)

    def connections_limited(self, limit: int) -> None:
        """Set the gauge of the connection limit."""
        self._family(catalogue.CONNECTIONS_LIMIT).child().set(limit)

    def connection_ended(self, reason: str) -> None:
        """Count a connection that the server ended early."""
        self._family(catalogue.CONNECTIONS_ENDED).child(reason).inc()

    def s3_request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Observe the duration of a request to S3. Runs in a worker thread."""
        self._family(catalogue.S3_CALL_DURATION).child(operation, outcome).observe(seconds)

    def watch_s3_memory(self, buffered_bytes: Callable[[], int], parts_in_flight: Callable[[], int]) -> None:
        """Read the gauges of S3 from these functions at every scrape."""
        measured = {catalogue.S3_BUFFERED.name: buffered_bytes, catalogue.S3_PARTS.name: parts_in_flight}
        self._measured_gauges |= measured

    def watch_free_space(self, measure: Callable[[], int]) -> None:
        """Measure the free space at every scrape."""
        self._free_space = BoundedMeasurement(measure)

    def outbox_measured(self, sink: str, waiting: int, dead: int, oldest_seconds: float) -> None:
        """Set the gauges of a sink; they are zero in every process but the one that delivers to it."""
        events = self._family(catalogue.OUTBOX_EVENTS)
        events.child(sink, "waiting").set(waiting)
        events.child(sink, "dead").set(dead)
        self._family(catalogue.OUTBOX_OLDEST).child(sink).set(oldest_seconds)

    def listeners_changed(self, kind: str, change: int) -> None:
        """Add to the gauge of listeners."""
        self._family(catalogue.LISTENERS).child(kind).inc(change)

    def progress_told(self, kind: str, listeners: int) -> None:
        """Count the messages of one kind."""
        self._family(catalogue.PROGRESS_MESSAGES).tally(kind).add(listeners)
        self._fold_soon()

    def storage_written(self, seconds: float) -> None:
        """Observe a wait for the storage."""
        self._storage_writes.add(seconds)
        self._fold_soon()

    def hook_called(self, hook: str, seconds: float, succeeded: bool) -> None:
        """Observe the duration of a call of a hook."""
        self._family(catalogue.HOOK_DURATION).child(hook, _result(succeeded)).observe(seconds)

    def lease_lost(self) -> None:
        """Count a lost lease."""
        self._family(catalogue.LEASES_LOST).child().inc()

    def redis_call_finished(self, call: str, seconds: float, succeeded: bool) -> None:
        """Observe the duration of a call to Redis, and count a failed one."""
        self._redis_calls.tally(call).add(seconds)
        if not succeeded:
            self._family(catalogue.REDIS_ERRORS).child(call).inc()
        self._fold_soon()

    # Folding and rendering.

    def _fold_soon(self) -> None:
        """Count an event, and fold in time for other processes that may be asked, and before much memory is taken."""
        self._waiting += 1
        if self._waiting >= MAX_WAITING:
            self.fold()
        elif self._is_shared and self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # no event loop could fold later
                self.fold()
            else:
                self._timer = loop.call_later(FOLD_INTERVAL, self.fold)

    def fold(self) -> None:
        """Add the observations that wait to the collectors; called by the owner of an event loop before its end too."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._add_waiting()

    def _add_waiting(self) -> None:
        with self._fold_lock:
            self._waiting = 0
            for family in self._families.values():
                family.fold()

    def render(self) -> bytes:
        """Return the metrics in the text format of Prometheus. Blocks: reads the files of all processes."""
        self._add_waiting()
        for name, measure in self._measured_gauges.items():
            self._families[name].child().set(measure())
        if self._free_space is not None:
            free = self._free_space.latest(MEASURE_TIMEOUT)
            self._family(catalogue.FREE_SPACE).child().set(math.nan if free is None else free)
        folder = os.environ.get(SHARED_FOLDER)
        text = _text_of(self._registry) if folder is None else _sum_text(Path(folder))
        for name in PLAIN_COUNTERS:
            text = text.replace(f"{name}_total".encode(), name.encode())
        return text

    # Events.

    def _subscribe(self, events: EventBus) -> None:
        self._storage_writes = self._tally(catalogue.STORAGE_WRITE)
        self._lock_waits = self._tally(catalogue.LOCK_WAIT)
        self._active = self._tally(catalogue.UPLOADS_ACTIVE)
        self._received = self._tally(catalogue.BYTES_RECEIVED)
        counted: dict[type[Any], MetricEntry] = {
            UploadCreated: catalogue.UPLOADS_CREATED,
            UploadFinished: catalogue.UPLOADS_FINISHED,
            PartialFinished: catalogue.UPLOADS_FINISHED,  # tusd counts both
            UploadTerminated: catalogue.UPLOADS_TERMINATED,
            UploadExpired: catalogue.UPLOADS_EXPIRED,
        }
        for kind, entry in counted.items():
            events.observe(kind, partial(self._count, self._tally(entry)))
        events.observe(RequestFinished, self._request_finished)
        events.observe(LockWaited, self._lock_waited)
        events.observe(AppendStarted, self._append_started)
        events.observe(AppendEnded, self._append_ended)
        events.observe(UploadProgressed, self._progressed)
        events.observe(JobFinished, self._job_finished)

    def _count(self, tally: Tally, event: object) -> None:
        tally.add(1)
        self._fold_soon()

    def _append_started(self, event: AppendStarted) -> None:
        self._active.add(1)
        if event.upload.offset and self._is_resumed(event.upload):
            self._family(catalogue.UPLOADS_RESUMED).child().inc()
        self._fold_soon()

    def _is_resumed(self, upload: Upload) -> bool:
        return self._interruptions.take(upload.id) or time.time() - upload.changed_at >= RESUME_PAUSE

    def _append_ended(self, event: AppendEnded) -> None:
        self._active.add(-1)
        if event.interrupted:
            self._family(catalogue.UPLOADS_INTERRUPTED).child().inc()
            self._interruptions.add(event.upload.id)

    def _progressed(self, event: UploadProgressed) -> None:
        self._received.add(event.received)
        self._fold_soon()

    def _job_finished(self, event: JobFinished) -> None:
        self._family(catalogue.JOB_DURATION).child(event.name, _result(event.succeeded)).observe(event.seconds)

    def _request_finished(self, event: RequestFinished) -> None:
        key = event.method, status_class(event.status)
        count, duration, first_byte = self._requests.get(key) or self._request_tallies(key)
        count.add(1)
        if not event.is_stream:
            duration.add(event.seconds)
        if event.first_byte is not None:
            first_byte.add(event.first_byte)
        if event.error_code:
            self._family(catalogue.ERRORS).child(str(event.status), event.error_code).inc()
        self._fold_soon()

    def _request_tallies(self, key: tuple[str, str]) -> tuple[Tally, Tally, Tally]:
        """Return the tallies for a method and a class of statuses, made for the first such request."""
        method = key[0] if key[0] in METHOD.values else OTHER
        tallies = (
            self._family(catalogue.REQUESTS).tally(method),
            self._family(catalogue.REQUEST_DURATION).tally(method, key[1]),
            self._family(catalogue.FIRST_BYTE).tally(method),
        )
        if method != OTHER:  # the cache is bounded: clients can send any method
            self._requests[key] = tallies
        return tallies

    def _lock_waited(self, event: LockWaited) -> None:
        self._lock_waits.add(event.seconds)
        if not event.obtained:
            self._family(catalogue.LOCK_TIMEOUTS).child().inc()
        if event.unreleased_predecessors:
            self._family(catalogue.LOCK_TAKEOVERS).child().inc()
        self._fold_soon()


def _result(succeeded: bool) -> str:
    return "ok" if succeeded else "failed"


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
