"""Defects to plant in the server, each a small change of today's code that the simulation has to find.

A defect is planted in a process of its own, for good: `python -m tests.simulation --plant sync_skipped`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tusd_py import late_close, lifecycle, server
from tusd_py.asyncutil import serial_task
from tusd_py.backends.disk import folder_syncs, sync_health, syncs, writer as disk_writer
from tusd_py.backends.local_locks import locker as local_locker
from tusd_py.backends.sqlite import records as sqlite_records, writer as sqlite_writer
from tusd_py.contracts.storage import SupportsConcatenation
from tusd_py.core.upload import Status
from tusd_py.uploads import (
    append,
    completion,
    locked_work,
    power_cuts,
    small_append,
)

PLANTS: dict[str, Callable[[], None]] = {}
SYNCING_MODULES = (syncs, folder_syncs, sync_health, disk_writer)


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

    change(lifecycle, "close_service", close_service)
    for module in (lifecycle, server, late_close):
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
    for module in SYNCING_MODULES:
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

    for module in SYNCING_MODULES:
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
        sqlite_records,
        "UPDATE",
        sqlite_records.UPDATE.replace("offset = ? AND status = ?", "? >= 0 AND ? <> ''"),
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
