"""The fate of an upload: read, restored, recovered, finished, removed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.state import ReadsAtOnce, StateStore
from tusd_py.contracts.storage import Storage, StoresInThreads, SupportsCompletionRecords, SupportsConcatenation
from tusd_py.core.clock import SteadyClock
from tusd_py.core.durability import Durability
from tusd_py.core.errors import (
    BrokenRecord,
    MaxSizeExceeded,
    OffsetMismatch,
    PartBehind,
    PartialLost,
    PartialUnfinished,
    StateFull,
    StorageBehind,
    StorageFull,
    StorageUnavailable,
    StoredElsewhere,
    UploadError,
    UploadExists,
    UploadGone,
    UploadNotFound,
)
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import finish_event
from tusd_py.uploads.concatenation import with_length
from tusd_py.uploads.locations import located
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.waiting_finals import WaitingFinals

logger = logging.getLogger("tusd_py.uploads")

MAX_LOOKUPS = 10_000
ENSURED_RECORDS = 3600.0  # seconds after its completion


class Completion:
    """Finishes, recovers and removes uploads. The caller holds their lock, and gives its token."""

    def __init__(
        self, state: StateStore, storage: Storage, events: EventBus, options: UploadOptions, clock: SteadyClock
    ) -> None:
        self._state = state
        self._storage = storage
        # Asking for each request takes 10 us.
        self._completion_records = storage if isinstance(storage, SupportsCompletionRecords) else None
        self._at_once = state if isinstance(state, ReadsAtOnce) else None
        self._events = events
        self._options = options
        self._kept: set[str] = set()  # expired uploads that were told of
        self._looked_for: set[str] = set()  # complete uploads whose completion records need no second look
        self._clock = clock
        self.waiting = WaitingFinals(state, clock)

    async def get(self, upload_id: str, lock: Lock | None = None) -> Upload:
        """The record as committed, as the lock brought it if it did; raises `UploadNotFound` or `UploadGone`."""
        upload = (lock and lock.record) or await self._state.get(upload_id)
        if lock is not None and upload is not None:
            await lock.raise_token(upload.token)
        if upload is None:
            upload = await self.restore(upload_id)
        if not upload.location:
            upload = await located(self._storage, upload)
        if upload.has_ended(self._clock.steady()) and not await self._was_finished(upload):
            raise UploadGone if self._options.gone_for else UploadNotFound
        return upload

    def get_at_once(self, upload_id: str) -> Upload | None:
        """The record as committed, if that takes no waiting and says all there is to say; None otherwise."""
        upload = self._at_once.get_at_once(upload_id) if self._at_once is not None else None
        if upload is None or not upload.location or upload.has_ended(self._clock.steady()):
            return None
        return upload

    async def _was_finished(self, upload: Upload) -> bool:
        """Whether an expired record is older than the end of its upload; if so, the caller finishes the upload."""
        return upload.status is Status.ACTIVE and await self.load_completion_record(upload.id) is not None

    async def restore(self, upload_id: str) -> Upload:
        """A finished upload whose record was lost; raises `UploadNotFound` if there is none."""
        upload = await self.load_completion_record(upload_id)
        if upload is None:
            raise UploadNotFound
        with contextlib.suppress(UploadExists):
            await self._state.create(upload)
        return upload

    async def load_completion_record(self, upload_id: str) -> Upload | None:
        """Return the completion record of an upload whose record was lost, or went back in time."""
        upload = (
            await self._completion_records.load_completion_record(upload_id)
            if self._completion_records is not None
            else None
        )
        return None if upload is None else replace(upload, token=0)

    # Going on.

    async def recover(self, upload: Upload, token: int, request: RequestContext | None = None) -> Upload:
        """Finish what was left unfinished, and go to the offset that storage really has."""
        if upload.is_final and not upload.is_complete:
            finished = await self.load_completion_record(upload.id)  # its parts may have been removed since
            if finished is not None:
                return await self._state.update(upload, finished, token)
            return await self._recover_final(upload, token, request)
        if upload.status is Status.FINISHING:
            return await self.finish(upload, token, request)
        stored = await self._storage.stored_size(upload) if upload.status is Status.ACTIVE else upload.offset
        if stored < upload.offset:
            return await self._state.update(upload, upload.at(stored), token)
        finished = None if upload.is_complete else await self.load_completion_record(upload.id)
        if finished is not None:
            return await self._state.update(upload, finished, token)
        return upload

    async def _recover_final(self, upload: Upload, token: int, request: RequestContext | None) -> Upload:
        while True:
            try:
                return await self.finish(upload, token, request)
            except PartialLost as error:
                if not self._options.concatenation_unfinished:
                    await self.remove(upload, token, Status.TERMINATED)
                    raise
                await self.waiting.wait_for_part(upload, error)
                return await self.waiting.postpone(upload, token)
            except PartialUnfinished as error:  # the policy allowed that when it was made
                if await self.waiting.wait_for_part(upload, error):
                    return await self.waiting.postpone(upload, token)
            except (UploadNotFound, UploadGone, MaxSizeExceeded):  # it can never be made any more
                await self.remove(upload, token, Status.TERMINATED)
                raise
            except (StorageFull, StorageUnavailable):
                with contextlib.suppress(UploadError):  # what went wrong is told already
                    await self.waiting.postpone(upload, token)
                raise

    # Finishing.

    async def finish(self, upload: Upload, token: int, request: RequestContext | None = None) -> Upload:
        """All bytes are stored: make the upload complete. Left in `finishing` if that fails."""
        sync = self._options.durability is not Durability.NEVER
        try:
            if upload.is_final:
                assembled = await self._assemble(upload, sync=sync)
            else:
                parts = await self._state.parts(upload.id) if upload.storage_state else ()
                assembled = replace(upload, storage_state=await self._storage.finish(upload, parts, sync=sync))
        except StorageBehind as error:
            back = replace(upload.at(error.stored), status=Status.ACTIVE, expires_at=self.extended(upload))
            await self._state.update(upload, back, token)
            raise OffsetMismatch(error.stored) from error
        complete = self.completed(assembled, token)
        complete = await self._state.update(upload, complete, token, durable=sync)
        await self.save_completion_record(complete)
        await self._storage.discard_superseded(upload)
        self._events.publish(finish_event(complete, request))
        return complete

    def steady(self) -> float:
        """The time that records are judged by, in seconds since the epoch."""
        return self._clock.steady()

    def completed(self, upload: Upload, token: int, *, offset: int | None = None, synced: int | None = None) -> Upload:
        """The record of an upload that has all its bytes, at this offset if it is another one."""
        now = self._clock.wall()
        return replace(
            upload,
            offset=upload.offset if offset is None else offset,
            synced=upload.synced if synced is None else synced,
            status=Status.COMPLETE,
            completed_at=now,
            expires_at=self.extended(upload) if upload.is_partial else self._retained_until(now),
            token=token,
        )

    def _retained_until(self, completed_at: float) -> float | None:
        return completed_at + self._options.retention if self._options.retention else None

    def is_over(self, upload: Upload) -> bool:
        """Whether an upload has ended, or was finished so long ago that it is not to be kept any longer."""
        now = self._clock.steady()
        if not upload.is_complete or upload.is_partial:
            return upload.has_ended(now)
        until = self._retained_until(upload.completed_at or upload.created_at)
        return until is not None and until <= now

    async def correct_retention(self, upload: Upload, token: int) -> None:
        """Correct the expiry in the record of a finished upload, if the setting `retention` has been changed."""
        if upload.is_complete and not upload.is_partial:
            until = self._retained_until(upload.completed_at or upload.created_at)
            await self._state.update(upload, replace(upload, expires_at=until), token)

    async def save_completion_record(self, complete: Upload) -> None:
        """Save the completion record of a complete upload, if the storage keeps one.

        Call it after the state store has accepted the complete upload: that change fails if the lock was lost.
        """
        if self._completion_records is not None and not complete.is_partial:
            try:
                await self._completion_records.save_completion_record(complete)
            except UploadError as error:  # the upload is complete all the same
                _warn_of_missing_completion_record(complete, error)

    def save_completion_record_in_thread(self, storage: StoresInThreads, complete: Upload) -> None:
        """Do what `save_completion_record` does, in the thread of the caller. Blocks."""
        if not complete.is_partial:
            try:
                storage.save_completion_record_in_thread(complete)
            except UploadError as error:  # the upload is complete all the same
                _warn_of_missing_completion_record(complete, error)

    def may_lack_completion_record(self, complete: Upload) -> bool:
        """Return whether a crash may have come between the change of the record and the completion record.

        A client that saw the crash asks soon. True once for each upload, see `note_completion_record_lookup`.
        """
        if self._completion_records is None or complete.is_partial or complete.id in self._looked_for:
            return False
        return (complete.completed_at or 0) >= self._clock.wall() - ENSURED_RECORDS

    def note_completion_record_lookup(self, complete: Upload) -> None:
        """Note that the caller looks for the completion record of an upload, so that no other request does."""
        if len(self._looked_for) >= MAX_LOOKUPS:
            self._looked_for.clear()
        self._looked_for.add(complete.id)

    async def _assemble(self, final: Upload, *, sync: bool) -> Upload:
        """Put the partial uploads together; returns the final one with its length."""
        assert isinstance(self._storage, SupportsConcatenation)
        found = {partial_id: await self.get(partial_id) for partial_id in dict.fromkeys(final.partial_ids)}
        partials = [found[partial_id] for partial_id in final.partial_ids]
        final = with_length(final, partials, self._options)
        try:
            storage_state = await self._storage.concatenate(final, partials, sync=sync)
        except PartBehind as error:
            await self._put_back(error, partials)
            raise PartialLost(error.upload_id, error.stored) from error
        final = replace(final, storage_state=storage_state)
        grace_end = self._clock.wall() + self._options.partial_retention
        for partial in found.values():
            if partial.expires_at is None or partial.expires_at > grace_end:
                with contextlib.suppress(UploadError):  # it was terminated meanwhile, or is about to be
                    await self._state.update(partial, replace(partial, expires_at=grace_end), partial.token)
        return final

    async def _put_back(self, error: PartBehind, partials: Sequence[Upload]) -> None:
        """Reopen a complete partial upload at the offset where its bytes end: its storage has lost the rest."""
        partial = next(partial for partial in partials if partial.id == error.upload_id)
        back = replace(
            partial.at(error.stored), status=Status.ACTIVE, completed_at=None, expires_at=self.extended(partial)
        )
        with contextlib.suppress(UploadError):  # somebody has changed it meanwhile
            await self._state.update(partial, back, partial.token)

    # Ending.

    async def is_kept(self, upload: Upload) -> bool:
        """Whether the storage may hold a finished upload of which this expired record knows nothing.

        Then the record is older than the bytes, as one from a backup is; a crash leaves as much only if it comes at
        the very end of an upload.
        """
        if upload.status is not Status.ACTIVE or upload.is_partial:
            return False
        try:
            stored = await self._storage.stored_size(upload)
        except UploadNotFound:  # for certain: a multipart upload that somebody aborted, say
            return False
        kept = stored > upload.offset and (upload.length is None or stored >= upload.length)
        if kept and upload.id not in self._kept:
            self._kept.add(upload.id)
            logger.warning(
                "upload %s has expired but is kept: there are %d bytes of it, and %d by its record, which may be from "
                "a backup; remove its file if it is not wanted",
                upload.id,
                stored,
                upload.offset,
            )
        return kept

    async def remove(self, upload: Upload, token: int, status: Status, *, keep_record: bool = True) -> None:
        """Remove an upload, and its record unless `keep_record` and the setting `gone_for` keep it for a time."""
        # First the record says that the upload has ended, so that a crash on the way is cleaned up by the sweeper.
        # A record that is not kept is due at any time: the clock that it is judged by may be behind for a while.
        kept_for = self._options.gone_for if keep_record else 0.0
        gone_until = self._clock.wall() + kept_for if kept_for else 0.0
        ended = replace(upload, status=status, expires_at=gone_until)
        try:
            ended = await self._state.update(upload, ended, token)
        except StateFull:  # then the bytes make the room; should the record stay behind, they are missed like lost ones
            await self._storage.delete(upload)
            ended = await self._state.update(upload, ended, token)
        await self._storage.delete(ended)
        if not kept_for:
            await self._state.delete(ended.id, token)

    async def remove_broken(self, error: BrokenRecord, token: int) -> Upload:
        """Remove an upload whose record cannot be read, with all that `error.remains` names."""
        remains = error.remains
        assert isinstance(remains, Upload)
        with contextlib.suppress(StoredElsewhere):  # what says where the bytes are is broken too
            await self._storage.delete(remains)
        await self._state.delete(remains.id, token)
        return remains

    def expiry(self, now: float) -> float | None:
        """When an upload expires that is written to now, in seconds since the epoch."""
        return now + self._options.expires_after if self._options.expires_after else None

    def extended(self, upload: Upload) -> float | None:
        """The expiry of an upload that was written to just now: never earlier than before, whatever the clock says."""
        expires_at = self.expiry(self._clock.wall())
        if expires_at is None or upload.expires_at is None:
            return expires_at
        return max(expires_at, upload.expires_at)


def _warn_of_missing_completion_record(complete: Upload, error: UploadError) -> None:
    logger.warning("completion record of upload %s could not be saved: %s", complete.id, error.message)
