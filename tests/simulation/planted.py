"""Defects to plant in the server, each a small change of today's code that the simulation has to find.

A defect is planted in a process of its own, for good: `python -m tests.simulation --plant sync_skipped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tusd_py import composition, server
from tusd_py.asyncutil import serial_task, threads
from tusd_py.backends.disk import identity, storage, syncs, writer as disk_writer
from tusd_py.backends.local_locks import locker as local_locker
from tusd_py.backends.sqlite import outbox as sqlite_outbox, state as sqlite_state, writer as sqlite_writer
from tusd_py.contracts.storage import SupportsConcatenation
from tusd_py.core import clock
from tusd_py.core.errors import HookUnavailable
from tusd_py.core.upload import Status
from tusd_py.outbox import sink_worker
from tusd_py.transfer import batch_writer
from tusd_py.uploads import (
    append,
    completion,
    decisions,
    event_log,
    lifetimes,
    locked_work,
    power_cuts,
    record_reader,
    removal,
    small_append,
)

PLANTS: dict[str, Callable[[], None]] = {}


def plant(function: Callable[[], None]) -> Callable[[], None]:
    PLANTS[function.__name__] = function
    return function


def change(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, value)


def nothing(*_: Any, **__: Any) -> None: ...


async def soon(*_: Any, **__: Any) -> None: ...


# Ownership of work and locks.


@plant
def locker_closed_before_storage() -> None:
    """A shutdown gives the locks up while a write that stalls goes on: the next server is overwritten."""

    async def close_service(service: Any, timeout: float = 30.0) -> bool:
        if isinstance(service.storage, SupportsConcatenation):
            service.storage.interrupt()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await service.close()
        await service.locker.close()
        await service.state.close()
        return bool(await service.storage.close(timeout))

    change(composition, "close_service", close_service)
    for module in (composition, server):
        if hasattr(module, "close_service"):
            change(module, "close_service", close_service)


@plant
def cancelled_request_releases_the_lock() -> None:
    """The request owns the lock: when it is cancelled, its work goes on without one."""
    real = locked_work.LockedWork.start

    def start(self: Any, lock: Any, work: Any) -> Any:
        task = real(self, lock, work)
        request = asyncio.current_task()
        assert request is not None

        def release(_: object) -> None:
            if not task.done():
                self._spawn(lock.release())

        request.add_done_callback(release)
        return task

    change(locked_work.LockedWork, "start", start)


@plant
def lock_released_before_the_last_write() -> None:
    async def close(self: Any) -> None:
        if self._descriptor >= 0:
            self._storage.run(self._close)

    change(disk_writer.DiskWriter, "close", close)
    change(serial_task.SerialTask, "wait", soon)


@plant
def locks_of_other_processes_ignored() -> None:
    change(local_locker, "try_lock", lambda *_, **__: True)


# Syncs.


@plant
def sync_skipped() -> None:
    for module in (syncs, storage, disk_writer):
        for name in ("sync_file", "sync_data"):
            if hasattr(module, name):
                change(module, name, nothing)
    defaults = syncs.Syncs.sync.__kwdefaults__
    assert defaults is not None
    defaults["with_call"] = nothing
    for kind in (disk_writer.DiskWriter,):
        assert kind._sync.__kwdefaults__ is not None
        kind._sync.__kwdefaults__["with_call"] = nothing


@plant
def names_not_synced() -> None:
    change(syncs.Syncs, "sync_folders", nothing)


@plant
def sync_retried() -> None:
    """A failed sync counts as a success the second time, although the pages are gone."""

    def again(descriptor: int) -> None:
        system: Any = syncs.os  # type: ignore[attr-defined]
        try:
            system.fsync(descriptor)
        except OSError:
            system.fsync(descriptor)

    for module in (syncs, storage, disk_writer):
        for name in ("sync_file", "sync_data"):
            if hasattr(module, name):
                change(module, name, again)
    for function in (syncs.Syncs.sync, disk_writer.DiskWriter._sync):
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__["with_call"] = again


@plant
def unfinished_sync_of_a_dead_process_trusted() -> None:
    change(syncs.Syncs, "_check_unproven", lambda self, _, unproven: self.marks.remove(unproven.path))


@plant
def length_of_a_file_believed_after_a_power_cut() -> None:
    change(power_cuts.PowerCuts, "_go_back", soon)


@plant
def stop_without_a_sync_called_clean() -> None:
    change(power_cuts, "_run", soon)


@plant
def failed_sync_of_the_log_forgotten() -> None:
    real = sqlite_writer.SQLiteWriter._handle_error

    def handle(self: Any, error: Any) -> None:
        real(self, error)
        self._log_unsynced = False

    change(sqlite_writer.SQLiteWriter, "_handle_error", handle)


@plant
def inherited_log_trusted() -> None:
    change(sqlite_writer.SQLiteWriter, "_write_inherited_log_back", nothing)


@plant
def completion_not_durable() -> None:
    real = sqlite_writer.SQLiteWriter._transact

    def transact(self: Any, jobs: Sequence[Any]) -> None:
        for job in jobs:
            job.durable = False
        real(self, jobs)

    change(sqlite_writer.SQLiteWriter, "_transact", transact)


@plant
def cut_not_synced() -> None:
    def cut(self: Any, descriptor: int, end: int) -> None:
        disk_writer.os.ftruncate(descriptor, end)  # type: ignore[attr-defined]

    change(disk_writer.DiskWriter, "_cut", cut)


# Commits.


@plant
def commit_before_write() -> None:
    async def flush(self: Any, buffers: Sequence[Any] = (), *, sync: bool) -> None:
        await self._jobs.settle()
        if buffers or (sync and self._descriptor >= 0):
            start = self._stored
            self._jobs.start(self._storage.run(lambda: self._flush(buffers, sync)))
            self._stored = start

    real = append.Append._with_snapshot

    def reached(self: Any, snapshot: Any) -> Any:
        return real(self, replace(snapshot, offset=self._position))

    change(disk_writer.DiskWriter, "flush", flush)
    change(append.Append, "_with_snapshot", reached)


@plant
def offset_of_received_bytes() -> None:
    real = append.Append._with_snapshot

    def reached(self: Any, snapshot: Any) -> Any:
        return real(self, replace(snapshot, offset=self._position))

    change(append.Append, "_with_snapshot", reached)


@plant
def bytes_of_a_wrong_checksum_kept() -> None:
    real = append.Append._commit_received

    async def commit(self: Any) -> None:
        self._verification = None
        await real(self)

    change(append.Append, "_commit_received", commit)


@plant
def checksum_not_compared() -> None:
    async def finish(self: Any) -> Any:
        self._verification = None
        return await real(self)

    real = append.Append._finish
    change(append.Append, "_finish", finish)


@plant
def uncommitted_bytes_not_cut() -> None:
    change(disk_writer.DiskWriter, "_cut", nothing)


@plant
def offset_not_compared() -> None:
    change(
        sqlite_state,
        "UPDATE",
        sqlite_state.UPDATE.replace("offset = ? AND status = ?", "? >= 0 AND ? <> ''"),
    )
    real = small_append.is_simple

    def is_simple(record: Any, lock: Any, offset: int, size: int, now: float) -> bool:
        return real(record, lock, record.offset, size, now)

    change(small_append, "is_simple", is_simple)


@plant
def short_write_taken_for_a_whole_one() -> None:
    def write_all(self: Any, buffers: list[Any]) -> None:
        disk_writer.os.pwritev(self._descriptor, buffers, self._stored)  # type: ignore[attr-defined]
        self._stored += sum(len(buffer) for buffer in buffers)

    change(disk_writer.DiskWriter, "_write_all", write_all)


@plant
def finishing_without_all_bytes() -> None:
    def advanced(self: Any, upload: Any, before: Any, token: int) -> Any:
        if upload.has_all_bytes:
            return replace(upload, status=Status.FINISHING, token=token)
        return replace(upload, expires_at=self._lifetimes.extended(before), token=token)

    change(completion.Completion, "advanced", advanced)


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
