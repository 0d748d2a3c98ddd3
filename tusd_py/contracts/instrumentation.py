"""The contract of instrumentation: measurements that the components of a server report.

Facts about uploads and requests are events (`tusd_py.events`); this contract has all other measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Instrumentation(Protocol):
    """A receiver of measurements. Every method returns at once and raises nothing. Times are seconds.

    A class that wants some of them derives from `NoInstrumentation` and overrides those.
    """

    def s3_request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Count a request to S3. Runs in a worker thread.

        Args:
            operation: name of the operation in snake case, such as `upload_part`.
            outcome: `ok`, or the code of the error.
            seconds: time until the end of the response, retries of the client included.
        """

    def watch_s3_memory(self, buffered_bytes: Callable[[], int], parts_in_flight: Callable[[], int]) -> None:
        """Take the functions that return the bytes of parts in memory, and the parts being sent, at the moment.

        They are called from any thread, whenever the measurements are read. Later functions replace earlier ones.
        """

    def redis_call_finished(self, call: str, seconds: float, succeeded: bool) -> None:
        """Count a call to Redis, under the name of its command or script. Runs in the event loop."""

    def lease_lost(self) -> None:
        """Count a lease that its holder could not renew in time. Runs in the event loop."""

    def connections_changed(self, change: int) -> None:
        """Add to the number of open connections: 1 for one that opened, -1 for one that closed."""

    def connections_limited(self, limit: int) -> None:
        """Set the largest number of connections of this process."""

    def connection_ended(self, reason: str) -> None:
        """Count a connection that the server ended early, for a reason such as `header_timeout`."""

    def outbox_measured(self, sink: str, waiting: int, dead: int, oldest_seconds: float) -> None:
        """Set the number of events that wait for a sink, of its dead letters, and the age of the oldest that waits."""

    def listeners_changed(self, kind: str, change: int) -> None:
        """Add to the number of listeners of live progress of a kind, such as `sse`."""

    def progress_told(self, kind: str, listeners: int) -> None:
        """Count a message of a kind, such as `progress`, for so many listeners. Runs in the event loop."""

    def storage_written(self, seconds: float) -> None:
        """Count a time for which an append has waited for the storage. Runs in the event loop."""

    def hook_called(self, hook: str, seconds: float, succeeded: bool) -> None:
        """Count a call of a hook, by its type; it failed if it could not be asked or told. Runs in the event loop."""

    def watch_free_space(self, measure: Callable[[], int]) -> None:
        """Take the function that measures the free space of the storage in bytes.

        The function is called in a thread of its own, and may block and raise. A later one replaces it.
        """


class NoInstrumentation(Instrumentation):
    """Instrumentation that drops every measurement: the default of every component."""

    def s3_request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def watch_s3_memory(self, buffered_bytes: Callable[[], int], parts_in_flight: Callable[[], int]) -> None:
        """Do nothing."""

    def redis_call_finished(self, call: str, seconds: float, succeeded: bool) -> None:
        """Do nothing."""

    def lease_lost(self) -> None:
        """Do nothing."""

    def connections_changed(self, change: int) -> None:
        """Do nothing."""

    def connections_limited(self, limit: int) -> None:
        """Do nothing."""

    def connection_ended(self, reason: str) -> None:
        """Do nothing."""

    def outbox_measured(self, sink: str, waiting: int, dead: int, oldest_seconds: float) -> None:
        """Do nothing."""

    def listeners_changed(self, kind: str, change: int) -> None:
        """Do nothing."""

    def progress_told(self, kind: str, listeners: int) -> None:
        """Do nothing."""

    def storage_written(self, seconds: float) -> None:
        """Do nothing."""

    def hook_called(self, hook: str, seconds: float, succeeded: bool) -> None:
        """Do nothing."""

    def watch_free_space(self, measure: Callable[[], int]) -> None:
        """Do nothing."""


NO_INSTRUMENTATION = NoInstrumentation()
