"""Migration of records between state stores. The bytes stay where they are.

After an interruption, a second run skips the records that have been copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.local_locks.locker import servers_excluded
from tusd_py.composition import LOCKS, RECORDS, build_state, build_storage
from tusd_py.contracts.state import StateStore, SupportsQuotas
from tusd_py.contracts.storage import Storage, SupportsCompletionRecords
from tusd_py.core.command_progress import Progress, no_progress
from tusd_py.core.errors import StateUnavailable, StorageBehind, StoredElsewhere
from tusd_py.core.storage_identity import PRIVATE_FOLDER
from tusd_py.core.upload import Status, Upload, UploadPart
from tusd_py.migration.report import Reporter, Summary, UploadRefused, abbreviated, no_report, printable, root_cause
from tusd_py.places import errors_at, make_private_folder, redis, upload_directory
from tusd_py.settings import Settings
from tusd_py.uploads.identity import IdentityCheck, hand_on_identity
from tusd_py.uploads.locations import Locations

StateKind: TypeAlias = Literal["sqlite", "redis"]

UNFINISHED = (Status.ACTIVE, Status.FINISHING)


async def migrate_records(
    source: StateStore,
    target: StateStore,
    *,
    merge_storage: Storage | None = None,
    completion_records: SupportsCompletionRecords | None = None,
    dry_run: bool = False,
    report: Reporter = no_report,
    report_error: Reporter = no_report,
    progress: Progress = no_progress,
) -> Summary:
    """Copy every record with its uploaded parts. The source is only read.

    A record that the target has already is skipped; one that differs is refused and left as it is.

    Args:
        source: the state store to read.
        target: the state store to write.
        merge_storage: merges the bytes of unfinished uploads into one file first, for a server that cannot read
            their segments.
        completion_records: saves a completion record of each finished upload.
        dry_run: only report.
        report: called with a line for each copied upload.
        report_error: called with a line for each refused one.
        progress: called before each upload.

    Returns:
        The numbers of copied, skipped and refused uploads.
    """
    migration = Migration(source, target, merge_storage, completion_records, dry_run)
    return await migration.copy_all(report, report_error, progress)


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration: source, target and options, as in `migrate_records`."""

    source: StateStore
    target: StateStore
    merge_storage: Storage | None = None
    completion_records: SupportsCompletionRecords | None = None
    dry_run: bool = False

    async def copy_all(self, report: Reporter, report_error: Reporter, progress: Progress) -> Summary:
        """Copy all records, and report those that cannot be read."""
        summary = Summary()
        # Counted by reading them all, which takes a small part of the time of the copies, only where somebody looks.
        total = None if progress is no_progress else sum([1 async for _ in self.source.all()])
        async for record in self.source.all():
            progress(summary.done, total)
            try:
                if await self.copy(record):
                    report(printable(f"{record.id} {record.status} {record.offset} bytes"))
                    summary.copied += 1
                else:
                    summary.skipped += 1
            except UploadRefused as error:
                report_error(printable(f"upload {record.id} {error}"))
                summary.refused += 1
        async for broken in self.source.broken():
            report_error(
                f"upload {abbreviated(broken.upload_id)} has a record that cannot be read: {abbreviated(broken.reason)}"
            )
            summary.refused += 1
        return summary

    async def copy(self, record: Upload) -> bool:
        """Copy one record; return False if the target has it already. Raises `UploadRefused`."""
        # The locker of the target starts at lower fencing tokens. Those beside SQLite are nanoseconds: the target would
        # refuse every later change, and Redis compares tokens as doubles, which cannot represent such large ones.
        record = replace(record, token=0)
        existing = await self.target.get(record.id)
        parts = [] if record.is_complete else list(await self.source.parts(record.id))
        if self.merge_storage is not None and record.storage_state and record.status in UNFINISHED:
            record, parts = replace(record, storage_state=await self._join(record, parts, existing)), []
        if existing is not None:
            copied = list(await self.target.parts(record.id))
            if replace(existing, token=0) != record or copied not in ([], parts):
                raise UploadRefused("is there already, and differs")
            if copied == parts:
                return False
        if not self.dry_run:
            await self._store(existing, record, parts)
        return True

    async def _join(self, upload: Upload, parts: Sequence[UploadPart], existing: Upload | None) -> str:
        """Merge the bytes of an upload into one file; return its new layout."""
        if existing is not None:  # an earlier run did so; a second merge could cut off later bytes
            return existing.storage_state
        if self.merge_storage is None or self.dry_run:
            return upload.storage_state
        try:
            upload = await Locations(self.merge_storage).located(upload)
            return await self.merge_storage.finish(upload, parts, sync=True)
        except StorageBehind as error:
            raise UploadRefused(f"is at {upload.offset} bytes, but {error.message}") from None
        except StoredElsewhere as error:
            raise UploadRefused(f"cannot be joined: {error.message}") from None

    async def _store(self, existing: Upload | None, record: Upload, parts: Sequence[UploadPart]) -> None:
        """Store one record in steps; an interruption leaves the later ones to the next run."""
        if existing is None:
            if self.completion_records is not None and record.is_complete and not record.is_partial:
                await self.completion_records.save_completion_record(record)
            await self.target.create(record, durable=True)
        if parts:
            before = existing or record
            await self.target.update(before, before, before.token, parts=parts, durable=True)


async def migrate(
    settings: Settings,
    source: StateKind,
    target: StateKind,
    *,
    dry_run: bool = False,
    report: Reporter = no_report,
    report_error: Reporter = no_report,
    progress: Progress = no_progress,
) -> Summary:
    """Run `migrate_records` between the stores of these settings, while no server uses either of them.

    Raises `StateUnavailable` and `StorageUnavailable` with a sentence that names the place.
    """
    if source == "sqlite" and not await asyncio.to_thread(has_records, settings):
        raise StateUnavailable(f"there are no records in {records_file(settings)}")
    async with (
        nothing_running(settings, dry_run=dry_run),
        opened_state(settings, source) as old,
        opened_state(settings, target, scratch=dry_run) as new,
        opened_storage(settings, dry_run=dry_run) as storage,
    ):
        if not dry_run:
            await IdentityCheck(old, storage).settle(records_inside=source == "sqlite" and not settings.s3.bucket)
            await hand_on_identity(old, new)
        return await migrate_records(
            old,
            new,
            merge_storage=storage if target == "sqlite" and isinstance(storage, SharedDiskStorage) else None,
            completion_records=storage
            if target == "redis" and isinstance(storage, SupportsCompletionRecords)
            else None,
            dry_run=dry_run,
            report=report,
            report_error=report_error,
            progress=progress,
        )


@contextlib.asynccontextmanager
async def nothing_running(settings: Settings, *, dry_run: bool) -> AsyncIterator[None]:
    """Keep servers beside SQLite from starting within the context.

    Raises `StateUnavailable` if a server uses these records, since its changes would be lost. A dry run checks nothing.
    """
    with contextlib.ExitStack() as stack:
        if not dry_run:
            try:
                await asyncio.to_thread(
                    stack.enter_context, servers_excluded(settings.upload_dir / PRIVATE_FOLDER / LOCKS)
                )
            except StateUnavailable as error:
                raise StateUnavailable(f"{upload_directory(settings)}: {root_cause(error)}") from error
            await _no_server_on_redis(settings)
        yield


async def _no_server_on_redis(settings: Settings) -> None:
    from tusd_py.backends.redis.connection import RedisConnection
    from tusd_py.backends.redis.locker import servers_with  # Redis is an extra

    connection = RedisConnection(settings.redis.url or "")
    try:
        with errors_at(redis(settings)):
            await connection.open()
            servers = await servers_with(connection, settings.redis.prefix)
    finally:
        await connection.close()
    if servers:
        raise StateUnavailable(
            f"{redis(settings)}: {servers} server processes are running with these records; stop them first"
        )


@contextlib.asynccontextmanager
async def opened_state(settings: Settings, kind: StateKind, *, scratch: bool = False) -> AsyncIterator[StateStore]:
    """Open and close the state store of these settings; with `scratch`, an empty temporary one if it has no file.

    Raises `StateUnavailable` with a sentence that names the place.
    """
    with contextlib.ExitStack() as stack:
        if kind == "sqlite":
            if scratch and not await asyncio.to_thread(has_records, settings):
                elsewhere = stack.enter_context(tempfile.TemporaryDirectory(prefix="tusd-py-"))
                settings = settings.model_copy(update={"upload_dir": Path(elsewhere)})
            await asyncio.to_thread(make_private_folder, settings)
        state = build_state(settings, kind)
        if isinstance(state, SupportsQuotas):
            state.enforces_quotas = False  # the uploads were admitted before
        try:
            with errors_at(redis(settings) if kind == "redis" else upload_directory(settings)):
                await state.open()
            yield state
        finally:
            await state.close()


@contextlib.asynccontextmanager
async def opened_storage(settings: Settings, *, dry_run: bool) -> AsyncIterator[Storage]:
    """Open and close the storage of these settings; a dry run leaves it closed. Raises `StorageUnavailable`."""
    storage = build_storage(settings)
    if dry_run:
        yield storage
        return
    with errors_at(upload_directory(settings)):
        await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


def records_file(settings: Settings) -> Path:
    """Return the path of the SQLite file of these settings."""
    return settings.upload_dir / PRIVATE_FOLDER / RECORDS


def has_records(settings: Settings) -> bool:
    """Return whether the SQLite file exists, or another object has its path, which shows when the store opens it.

    Raises `StateUnavailable` if the directory cannot be read. Blocks.
    """
    with errors_at(upload_directory(settings)):
        try:
            records_file(settings).stat()
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
    return True
