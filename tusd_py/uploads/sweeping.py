"""The sweeper: removes what has expired, and drives on what a crash left in the middle of finishing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore, SupportsIndexRepair
from tusd_py.contracts.storage import Orphan, SupportsIdentity, SupportsOrphanCleanup
from tusd_py.core.errors import UploadError
from tusd_py.core.upload import Upload
from tusd_py.uploads.identity import keep_identity, know_all
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.timekeeping import keep_time

logger = logging.getLogger("tusd_py.sweeper")

BATCH = 100
ORPHAN_AGE = 86400.0  # seconds


async def expired_uploads(service: UploadService, now: float) -> AsyncIterator[Upload]:
    """Yield the uploads that a sweep would look at now, without touching them."""
    for upload in await service.state.due(now, 1 << 31):
        if service.is_over(upload):
            yield upload


async def sweep(service: UploadService, complain: Callable[[str], object] = logger.warning) -> int:
    """Look once at everything that is due; returns how many uploads were dealt with.

    `complain` is told of each that could not be dealt with.
    """
    await keep_time(service.state, service.clock)
    await keep_identity(service.state, service.storage)
    if isinstance(service.state, SupportsIndexRepair):
        await service.state.repair_index()
    swept = 0
    seen: set[str] = set()
    stayed = 0  # due uploads that could not be dealt with, because somebody writes to them, for example
    while batch := await service.state.due(service.clock.steady(), BATCH, skip=stayed):
        for upload in batch:
            if upload.id in seen:
                stayed += 1
                continue
            seen.add(upload.id)
            try:
                swept += await service.sweep(upload)
            except UploadError as error:
                reason = f" ({error.__cause__})" if error.__cause__ else ""
                complain(f"upload {upload.id} could not be removed or finished: {error.message}{reason}")
    return swept


async def clean(service: UploadService, *, older_than: float = ORPHAN_AGE, dry_run: bool = False) -> Sequence[Orphan]:
    """Remove what crashes left in the storage and no record names; with `dry_run` only find it.

    Where there are no records at all, nothing is found: perhaps they are elsewhere.
    """
    if not isinstance(service.storage, SupportsOrphanCleanup) or await anext(service.state.all(), None) is None:
        return ()
    if isinstance(service.storage, SupportsIdentity):
        await service.storage.prove_identity()  # another one may hold the uploads of others
        if not await know_all(service.state):
            logger.warning(
                "nothing orphaned is removed: the storage was in use before these records; if no other records name"
                " uploads in it, say so with `tusd-py adopt-storage`"
            )
            return ()
    # A record that cannot be read may name what would be removed.
    if await anext(service.state.broken(), None) is not None:
        logger.warning("nothing orphaned is removed while there are records that cannot be read")
        return ()
    cleaning = service.storage.clean(
        Records(service.state, service.locker, service.refuse_when_draining), older_than=older_than, dry_run=dry_run
    )
    return await service.carry_out(cleaning)


class Records:
    """The records, and their locks, for the orphan cleanup of a storage (`UploadRecords`)."""

    def __init__(self, state: StateStore, locker: Locker, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called before every lock, and raises what is to end the cleanup."""
        self._state = state
        self._locker = locker
        self._check = check

    async def get(self, upload_id: str) -> Upload | None:
        return await self._state.get(upload_id)

    def all(self) -> AsyncIterator[Upload]:
        return self._state.all()

    @contextlib.asynccontextmanager
    async def locked(self, upload_id: str) -> AsyncIterator[Upload | None]:
        self._check()
        lock = await self._locker.acquire(upload_id, NonInterruptibleHolder(), 0, to_remove=True)
        try:
            yield await self._state.get(upload_id)
        finally:
            await lock.release()
