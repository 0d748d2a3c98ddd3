"""The sweep of one upload: remove an upload that has ended, resume the completion of one that has all its bytes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import StrEnum

from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import ContentRefused, HookRejected, LockTimeout, UploadNotFound
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import UploadExpired
from tusd_py.uploads.components import Components
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.recovery import Recovery
from tusd_py.uploads.removal import Removal


class SweepResult(StrEnum):
    """The change that a sweep made to one upload."""

    REMOVED = "removed"
    COMPLETED = "completed"


class Expiration:
    """The sweep of single uploads that are due (`StateStore.due`)."""

    def __init__(
        self,
        components: Components,
        lifetimes: Lifetimes,
        records: RecordReader,
        recovery: Recovery,
        removal: Removal,
        work: LockedWork,
    ) -> None:
        self._state = components.state
        self._events = components.events
        self._clock = components.clock
        self._lifetimes = lifetimes
        self._records = records
        self._recovery = recovery
        self._removal = removal
        self._work = work

    async def sweep(self, upload: Upload, patience: float | None = None) -> SweepResult | None:
        """See `UploadService.sweep`."""
        try:
            lock = await self._work.acquire(upload.id, NonInterruptibleHolder(), 0, to_remove=True)
            sweeping = self._work.start(lock, self._sweep(lock))
            done, _ = await asyncio.wait((sweeping,), timeout=patience)
            return sweeping.result() if done else None
        except LockTimeout:
            return None

    async def _sweep(self, lock: Lock) -> SweepResult | None:
        current = await self._records.get_under(lock)
        if current is None:
            return None
        if current.status is Status.FINISHING:
            return await self._finish_or_expire(current, lock)
        if not self._lifetimes.is_over(current):
            await self._correct_retention(current, lock.token)
            return None
        active = current.status is Status.ACTIVE
        if active and await self._records.is_outdated(current):
            return _completed(await self._recovery.recover(current, lock.token))
        if await self._removal.is_kept(current):
            if not current.uncounted:  # its owner cannot remove it
                await self._state.update(current, replace(current, uncounted=True), lock.token)
            return None
        expired = active or current.is_complete
        status = Status.EXPIRED if expired else current.status
        await self._removal.remove(current, lock.token, status, keep_record=expired)
        if expired:
            self._events.publish(UploadExpired(current))
        return SweepResult.REMOVED

    async def _finish_or_expire(self, upload: Upload, lock: Lock) -> SweepResult | None:
        """Recover an upload that has all its bytes; remove it like an unfinished one if its bytes are lost."""
        try:
            return _completed(await self._recovery.recover(upload, lock.token))
        except (ContentRefused, HookRejected):
            return SweepResult.REMOVED
        except UploadNotFound:
            expires_at = None if upload.is_final else upload.expires_at
            if expires_at is None or expires_at > self._clock.steady():
                raise
        await self._removal.remove(upload, lock.token, Status.EXPIRED)
        self._events.publish(UploadExpired(upload))
        return SweepResult.REMOVED

    async def _correct_retention(self, upload: Upload, token: int) -> None:
        """Correct the expiry in the record of a finished upload after a change of the setting `retention`."""
        if upload.is_complete and not upload.is_partial:
            corrected = replace(upload, expires_at=self._lifetimes.corrected(upload))
            await self._state.update(upload, corrected, token)


def _completed(upload: Upload) -> SweepResult | None:
    return SweepResult.COMPLETED if upload.is_complete else None
