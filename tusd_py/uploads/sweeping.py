"""The sweeper removes what has expired and resumes interrupted completions; the orphan cleaner removes orphans."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore, SupportsIndexRepair
from tusd_py.contracts.storage import Orphan, SupportsOrphanCleanup
from tusd_py.core.command_progress import Progress, no_progress
from tusd_py.core.errors import HookUnavailable, UploadError
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.expiration import SweepResult
from tusd_py.uploads.identity import IdentityCheck
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.timekeeping import keep_time

logger = logging.getLogger("tusd_py.sweeper")

BATCH = 100
PATIENCE = 10.0  # seconds for one completion, whose bytes may be read, or scanned, for hours
MAX_HOOKS_WAIT = 30.0  # seconds; a hook that hangs keeps a sweep from other completions then, never from removals
MAX_LISTED = 1 << 31  # uploads
ORPHAN_AGE = 86400.0  # seconds


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """The numbers of uploads that a sweep removed and completed."""

    removed: int = 0
    completed: int = 0

    @property
    def total(self) -> int:
        """The number of uploads that the sweep has dealt with."""
        return self.removed + self.completed

    def __str__(self) -> str:
        return f"removed {self.removed}, completed {self.completed}"


class Sweeper:
    """The sweeper of one service."""

    def __init__(self, service: UploadService) -> None:
        state, storage = service.state, service.storage
        self._service = service
        self._state = state
        self._index = state if isinstance(state, SupportsIndexRepair) else None
        self._identity = IdentityCheck(state, storage)

    async def expired(self) -> AsyncIterator[Upload]:
        """Yield the uploads that a sweep would remove now, without changing them."""
        for upload in await self._state.due(self._service.clock.steady(), MAX_LISTED):
            if self._service.is_over(upload):
                yield upload

    async def sweep(
        self,
        report_error: Callable[[str], object] = logger.warning,
        *,
        patience: float | None = None,
        progress: Progress = no_progress,
    ) -> SweepSummary:
        """Remove or complete every upload that is due; return the numbers of both.

        Args:
            report_error: called with a sentence for each upload that could not be removed or completed.
            patience: seconds to wait for one completion, which goes on without the sweep then; None: for any time.
            progress: called before each due upload.
        """
        await keep_time(self._state, self._service.clock)
        await self._identity.keep()
        await self._service.power_cuts.keep()
        if self._index is not None:
            await self._index.repair_index()
        results: list[SweepResult | None] = []
        seen: set[str] = set()
        waited = 0.0  # seconds for hooks that could not be asked, and for completions that go on
        skipped = 0  # due uploads that stay due, because a request writes to them, for example
        while batch := await self._state.due(self._service.clock.steady(), BATCH, skip=skipped):
            for upload in batch:
                if upload.id in seen:
                    skipped += 1
                    continue
                progress(len(seen), None)
                seen.add(upload.id)
                is_finishing = upload.status is Status.FINISHING
                if is_finishing and waited > MAX_HOOKS_WAIT:
                    continue
                started = time.monotonic()
                try:
                    result = await self._service.sweep(upload, patience if is_finishing else None)
                    results.append(result)
                    if is_finishing and result is None:
                        waited += time.monotonic() - started
                except UploadError as error:
                    if isinstance(error, HookUnavailable):
                        waited += time.monotonic() - started
                    reason = f" ({error.__cause__})" if error.__cause__ else ""
                    report_error(f"upload {upload.id} could not be removed or completed: {error.message}{reason}")
        return SweepSummary(results.count(SweepResult.REMOVED), results.count(SweepResult.COMPLETED))


class OrphanCleaner:
    """The orphan cleaner of one service: it removes bytes that no record names, as crashes leave them."""

    def __init__(self, service: UploadService) -> None:
        self._service = service
        self._state = service.state
        self._storage = service.storage if isinstance(service.storage, SupportsOrphanCleanup) else None
        self._identity = IdentityCheck(service.state, service.storage)

    async def clean(
        self, *, older_than: float = ORPHAN_AGE, dry_run: bool = False, progress: Progress = no_progress
    ) -> Sequence[Orphan]:
        """Remove the orphans, files, objects and multipart uploads, and return them.

        Without any record nothing is removed: the records may be elsewhere.

        Args:
            older_than: seconds since the last change of an orphan, at least.
            dry_run: only return the orphans.
            progress: called for each record that is compared with the storage.
        """
        if self._storage is None or await anext(self._state.all(), None) is None:
            return ()
        if not await self._identity.prove_orphans():
            logger.warning(
                "nothing orphaned is removed: the storage was in use before these records; if no other records name"
                " uploads in it, say so with `tusd-py adopt-storage`"
            )
            return ()
        # A record that cannot be read may name one of the orphans.
        if await anext(self._state.broken(), None) is not None:
            logger.warning("nothing orphaned is removed while there are records that cannot be read")
            return ()
        records = Records(self._state, self._service.locker, self._service.refuse_when_draining, progress)
        return await self._service.carry_out(self._storage.clean(records, older_than=older_than, dry_run=dry_run))


class Records:
    """The records, and their locks, for the orphan cleanup of a storage (`UploadRecords`)."""

    def __init__(
        self,
        state: StateStore,
        locker: Locker,
        check: Callable[[], None] = lambda: None,
        progress: Progress = no_progress,
    ) -> None:
        """Use these records and locks; `check` is called before every lock, and may raise to end the cleanup."""
        self._state = state
        self._locker = locker
        self._check = check
        self._progress = progress
        self._compared = 0

    async def get(self, upload_id: str) -> Upload | None:
        self._count()
        return await self._state.get(upload_id)

    async def all(self) -> AsyncIterator[Upload]:
        async for upload in self._state.all():
            self._count()
            yield upload

    def _count(self) -> None:
        self._compared += 1
        self._progress(self._compared, None)

    @contextlib.asynccontextmanager
    async def locked(self, upload_id: str) -> AsyncIterator[Upload | None]:
        self._check()
        lock = await self._locker.acquire(upload_id, NonInterruptibleHolder(), 0, to_remove=True)
        try:
            yield await self._state.get(upload_id)
        finally:
            await lock.release()
