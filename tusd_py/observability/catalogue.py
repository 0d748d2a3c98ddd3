"""The catalogue of all metrics: the collectors are made from it, and so is the table in docs/operations.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tusd_py.observability.label_values import (
    CODE,
    EVENT_STATUS,
    HOOK,
    JOB,
    LISTENER_KIND,
    MESSAGE_KIND,
    METHOD,
    REASON,
    REDIS_CALL,
    RESULT,
    S3_OPERATION,
    S3_RESULT,
    SINK,
    STATUS,
    STATUS_CLASS,
    Label,
)

DURATIONS = (0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600, 3600)
FIRST_BYTES = (0.001, 0.005, 0.025, 0.1, 0.25, 1, 2, 5, 30, 120)
WRITES = (0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30)
LOCK_WAITS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10)
REDIS_CALLS = (0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1)
S3_CALLS = (0.005, 0.025, 0.1, 0.5, 2, 10, 60)
HOOKS = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 30, 60)


class Kind(StrEnum):
    """The type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """The description of one metric.

    Attributes:
        name: the name under which it is exposed; a histogram has suffixes besides.
        kind: its type.
        unit: the unit of its values.
        meaning: a phrase for the documentation and for `HELP`.
        labels: its labels.
        buckets: upper bounds of the buckets of a histogram.
        is_of_host: whether each process measures the same thing: the latest value counts, not the sum.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    is_of_host: bool = False


def _counter(name: str, unit: str, meaning: str, *labels: Label) -> MetricEntry:
    return MetricEntry(name, Kind.COUNTER, unit, meaning, labels)


def _gauge(name: str, unit: str, meaning: str, *labels: Label, is_of_host: bool = False) -> MetricEntry:
    return MetricEntry(name, Kind.GAUGE, unit, meaning, labels, is_of_host=is_of_host)


def _histogram(name: str, buckets: tuple[float, ...], meaning: str, *labels: Label) -> MetricEntry:
    return MetricEntry(name, Kind.HISTOGRAM, "seconds", meaning, labels, buckets)


# The counters without the suffix `_total` have the names of tusd, so that its dashboards work.
UPLOADS_CREATED = _counter("tusd_uploads_created", "uploads", "uploads created, partial and final ones included")
UPLOADS_FINISHED = _counter("tusd_uploads_finished", "uploads", "uploads completed, partial and final ones included")
UPLOADS_TERMINATED = _counter("tusd_uploads_terminated", "uploads", "uploads removed by clients or by the application")
UPLOADS_EXPIRED = _counter("tusd_uploads_expired", "uploads", "uploads removed by the sweeper after their time")
BYTES_RECEIVED = _counter("tusd_bytes_received", "bytes", "bytes of uploads that were stored")
UPLOADS_ACTIVE = _gauge("tusd_uploads_active", "uploads", "uploads that a request is appending to now")
UPLOADS_INTERRUPTED = _counter(
    "tusd_uploads_interrupted_total",
    "appends",
    "appends that ended before their bodies did: the client left or was silent for too long, another request took"
    " over, or the server was about to end",
)
UPLOADS_RESUMED = _counter(
    "tusd_uploads_resumed_total",
    "appends",
    "appends that went on with an upload after an interruption in the same process, or after two seconds without a"
    " change of its record",
)
REQUESTS = _counter("tusd_requests_total", "requests", "requests answered or given up by their clients", METHOD)
ERRORS = _counter("tusd_errors_total", "requests", "requests that ended with an error code", STATUS, CODE)
REQUEST_DURATION = _histogram(
    "tusd_request_duration_seconds",
    DURATIONS,
    "from the head of a request to the end of its answer; a PATCH lasts as long as its body; without streams of"
    " [events](progress.md), which last as long as their clients listen",
    METHOD,
    STATUS_CLASS,
)
FIRST_BYTE = _histogram(
    "tusd_request_first_byte_seconds",
    FIRST_BYTES,
    "from the head of a request to the first byte of its answer; of a PATCH, its body lies in between",
    METHOD,
)
LOCK_WAIT = _histogram("tusd_lock_wait_seconds", LOCK_WAITS, "time to obtain the lock of an upload, or until giving up")
LOCK_TIMEOUTS = _counter("tusd_lock_timeouts_total", "locks", "locks that were not obtained in time (423)")
LOCK_TAKEOVERS = _counter(
    "tusd_lock_takeovers_total",
    "locks",
    "locks whose earlier holder never released them: a host or process has died or was paused",
)
LEASES_LOST = _counter("tusd_leases_lost_total", "leases", "leases in Redis that their holder could not renew in time")
STORAGE_WRITE = _histogram(
    "tusd_storage_write_seconds",
    WRITES,
    "time that an append waits for the storage to take a batch of bytes, or to store the last ones before a commit;"
    " syncs included",
)
FREE_SPACE = _gauge(
    "tusd_storage_free_bytes",
    "bytes",
    "free space of the file system of the uploads, as of the scrape; `NaN` for S3, and while it cannot be measured",
    is_of_host=True,
)
REDIS_CALL_DURATION = _histogram(
    "tusd_redis_call_duration_seconds", REDIS_CALLS, "one try of a call to Redis, by script or command", REDIS_CALL
)
REDIS_ERRORS = _counter(
    "tusd_redis_errors_total", "calls", "tries of calls to Redis that failed; most are repeated", REDIS_CALL
)
S3_CALL_DURATION = _histogram(
    "tusd_s3_call_duration_seconds", S3_CALLS, "requests to S3, with their repetitions", S3_OPERATION, S3_RESULT
)
S3_BUFFERED = _gauge(
    "tusd_s3_buffered_bytes", "bytes", "bytes of parts in memory, at most `--s3-buffer-size` for each process"
)
S3_PARTS = _gauge("tusd_s3_parts_in_flight", "parts", "parts that are being sent to S3")
CONNECTIONS_OPEN = _gauge("tusd_connections_open", "connections", "open connections")
CONNECTIONS_LIMIT = _gauge("tusd_connections_limit", "connections", "largest number of open connections")
CONNECTIONS_ENDED = _counter(
    "tusd_connections_ended_total", "connections", "connections that the server ended early", REASON
)
LISTENERS = _gauge("tusd_listeners", "clients", "clients that [follow uploads](progress.md)", LISTENER_KIND)
PROGRESS_MESSAGES = _counter(
    "tusd_progress_messages_total",
    "messages",
    "messages for clients that follow uploads, one for each client; a slow client is sent the latest of several only",
    MESSAGE_KIND,
)
HOOK_DURATION = _histogram(
    "tusd_hook_duration_seconds",
    HOOKS,
    "calls of hooks: of one that is asked with all its attempts, of one that is told one attempt",
    HOOK,
    RESULT,
)
OUTBOX_EVENTS = _gauge(
    "tusd_outbox_events",
    "events",
    "events that wait for a sink, and its dead letters; set in the one process that delivers to the sink, zero in all"
    " others",
    SINK,
    EVENT_STATUS,
)
OUTBOX_OLDEST = _gauge(
    "tusd_outbox_oldest_seconds", "seconds", "age of the oldest event that waits, in the same process", SINK
)
JOB_DURATION = _histogram("tusd_job_duration_seconds", DURATIONS, "runs of periodic jobs", JOB, RESULT)

ENTRIES: Mapping[str, MetricEntry] = {
    entry.name: entry for entry in list(globals().values()) if isinstance(entry, MetricEntry)
}
