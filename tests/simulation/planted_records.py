"""Defects of records, stored bytes, events and ends to plant in the server, as in `planted.py`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.simulation.planted import change, nothing, soon
from tusd_py.asyncutil import threads
from tusd_py.backends.disk import identity, storage, syncs, writer as disk_writer
from tusd_py.backends.sqlite import outbox as sqlite_outbox
from tusd_py.core import clock
from tusd_py.core.errors import HookUnavailable
from tusd_py.outbox import sink_worker
from tusd_py.progress import reconciler
from tusd_py.transfer import batch_writer
from tusd_py.uploads import (
    administration,
    append,
    decisions,
    event_log,
    lifetimes,
    locked_work,
    queries,
    record_reader,
    removal,
    small_append,
)

RECORD_PLANTS: dict[str, Callable[[], None]] = {}


def plant(function: Callable[[], None]) -> Callable[[], None]:
    RECORD_PLANTS[function.__name__] = function
    return function


# Stored bytes.


@plant
def lost_bytes_not_noticed() -> None:
    def believed(self: Any, path: Any, status: Any) -> int:
        return max(int(status.st_size), 1 << 30)

    change(syncs.Syncs, "trusted_size", believed)


@plant
def absence_proves_something() -> None:
    """A directory that is not mounted throws offsets away: missing bytes are taken for lost ones."""
    change(identity.IdentityFile, "check", nothing)


@plant
def location_follows_the_setting() -> None:
    """Another setting at the next start looks for old uploads in another folder, and finds them at 0."""
    real = storage.DiskStorage.path
    change(storage.DiskStorage, "path", lambda self, upload: real(self, replace(upload, location=self.locate(upload))))


@plant
def empty_appends_trust_the_record() -> None:
    change(append.Append, "_refuse_lost_bytes", soon)


@plant
def expiry_by_a_wrong_clock() -> None:
    """The wall clock alone judges records: a clock that jumps ahead removes uploads that are in use."""
    change(clock.SteadyClock, "steady", lambda self: self._clock.wall())


@plant
def finished_uploads_expire() -> None:
    change(
        lifetimes.Lifetimes,
        "of_complete",
        lambda self, upload, completed_at: completed_at + 1.0,
    )
    change(
        lifetimes.Lifetimes,
        "is_over",
        lambda self, upload: upload.expires_at is not None and upload.expires_at <= self._clock.steady(),
    )


@plant
def expired_uploads_stay() -> None:
    change(lifetimes.Lifetimes, "is_over", lambda self, upload: False)


@plant
def record_removed_before_the_bytes() -> None:
    async def later(self: Any, upload: Any) -> None:
        self.run(lambda: time)

    change(storage.DiskStorage, "delete", later)


# Old records.


@plant
def records_of_a_backup_believed() -> None:
    """The sweeper removes a finished file whose record, from an older backup, says that it has expired unfinished."""

    async def no_record(self: Any, upload_id: str) -> None: ...

    async def never(self: Any, upload: Any) -> bool:
        return False

    change(record_reader.RecordReader, "load_completion_record", no_record)
    change(removal.Removal, "is_kept", never)


# Events.


@plant
def event_of_a_completion_lost() -> None:
    """The event is stored after the commit of the record, in a step of its own: a crash between both loses it."""

    async def update(
        self: Any,
        before: Any,
        after: Any,
        token: int,
        kind: Any,
        request: Any,
        *,
        parts: Any = (),
        durable: bool = False,
    ) -> Any:
        stored = await self._state.update(before, after, token, parts=parts, durable=durable)
        if kind is None:
            return stored
        events = self.events_of(kind, stored, request)
        if not events:
            return stored
        stored = await self._outbox.update(stored, stored, token, events=events)
        self.notify()
        return stored

    change(event_log.EventLog, "update", update)
    _leave_events_to_the_loop()


@plant
def event_published_before_the_commit() -> None:
    """Sinks get an event from memory at once, whether or not its change is committed."""
    real = event_log.EventLog.events_of

    def events_of(self: Any, kind: Any, upload: Any, request: Any) -> Any:
        events = real(self, kind, upload, request)
        for event in events:
            for observer in self._observers:
                relay = getattr(observer, "__self__", None)
                for sink in getattr(relay, "_sinks", ()):
                    sink._application.ledger.take(sink.name, event)
        return events

    change(event_log.EventLog, "events_of", events_of)


@plant
def later_events_overtake_failed_ones() -> None:
    """Every event that is due is sent, also while an earlier one of its upload waits for its next attempt."""
    text = sqlite_outbox.SELECT_DUE
    start, end = text.index("AND NOT EXISTS"), text.index("ORDER BY")
    change(sqlite_outbox, "SELECT_DUE", text[:start] + text[end:])


@plant
def event_removed_before_it_was_taken() -> None:
    real = sink_worker.SinkWorker._attempt

    async def attempt(self: Any, delivery: Any) -> None:
        await self._outbox.delivered(self._sink.name, [delivery.event.id])
        await real(self, delivery)

    change(sink_worker.SinkWorker, "_attempt", attempt)


@plant
def unanswered_hook_taken_for_consent() -> None:
    """A completion goes on when the application that decides about it cannot be asked."""
    real = decisions.Decisions.on_completion

    async def on_completion(self: Any, *arguments: Any) -> None:
        with contextlib.suppress(HookUnavailable):
            await real(self, *arguments)

    change(decisions.Decisions, "on_completion", on_completion)


def _leave_events_to_the_loop() -> None:
    """Have no upload completed in a thread, where the event belongs to the same job as the record."""
    change(small_append, "is_simple", lambda *_: False)


# Ends.


@plant
def calls_lost_at_the_end_of_threads() -> None:
    change(threads.Threads, "_take_jobs", lambda self: [])


@plant
def descriptor_left_open() -> None:
    real = disk_writer.DiskWriter._close

    def close(self: Any) -> None:
        if self._stored % 7 == 3:
            self._descriptor = -1
        else:
            real(self)

    change(disk_writer.DiskWriter, "_close", close)


@plant
def budget_not_returned() -> None:
    def forget(self: Any) -> None:
        self._gathered, self._gathered_size = [], 0

    change(batch_writer.BatchWriter, "_drop_gathered", forget)


@plant
def buffers_lent_while_they_are_written() -> None:
    real = batch_writer.BatchWriter._start_writing

    def start(self: Any) -> Any:
        buffers = real(self)
        self._release_buffers(buffers)
        self._writing = []
        return buffers

    change(batch_writer.BatchWriter, "_start_writing", start)


@plant
def locks_never_released_after_an_error() -> None:
    async def hold(self: Any, lock: Any, work: Any) -> Any:
        result = await work
        await lock.release()
        return result

    change(locked_work.LockedWork, "_hold", hold)


# Administrators.


@plant
def complete_uploads_expired_by_administrators() -> None:
    change(administration, "_refuse_all_but_active", nothing)


@plant
def lists_end_with_their_first_page() -> None:
    real = queries.RecordQueries.find

    async def find(self: Any, query: Any, text: str = "") -> Any:
        return replace(await real(self, query, text), next=None)

    change(queries.RecordQueries, "find", find)


@plant
def progress_never_compared_with_the_records() -> None:
    change(reconciler.Reconciler, "look_now", nothing)


@plant
def declared_length_lost() -> None:
    """The length that a request declares is kept only if the request brings the last byte."""
    real = append.Append._with_snapshot

    def with_snapshot(self: Any, snapshot: Any) -> Any:
        upload = real(self, snapshot)
        return upload if upload.has_all_bytes else replace(upload, length=self._stored_record.length)

    change(append.Append, "_with_snapshot", with_snapshot)
