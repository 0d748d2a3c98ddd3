"""The creation of final uploads, and of those that wait for their partial ones (tus 1.0.0, Concatenation)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from tusd_py.contracts.hooks import HookType
from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import BrokenRecord, PartialUnfinished, UploadExists, UploadNotFound
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload, final_upload_id
from tusd_py.events.types import PartialFinished, UploadCreated, UploadExpired, UploadTerminated
from tusd_py.uploads.admission import remains_of
from tusd_py.uploads.components import Components
from tusd_py.uploads.concatenation import check_partial_ids, new_final
from tusd_py.uploads.decisions import Decisions, naming_created
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.new_records import NewRecords
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.recovery import Recovery
from tusd_py.uploads.validation import NewUpload
from tusd_py.uploads.waiting_finals import WaitingFinals

FINALS_TIMEOUT = 3.0  # seconds that a request waits for the final uploads of a partial one


class FinalUploads:
    """The final uploads of a service, made of partial ones."""

    def __init__(
        self,
        components: Components,
        records: RecordReader,
        new_records: NewRecords,
        decisions: Decisions,
        recovery: Recovery,
        waiting: WaitingFinals,
        work: LockedWork,
        quotas: Quotas,
    ) -> None:
        self._state = components.state
        self._events = components.events
        self._options = components.options
        self._clock = components.clock
        self._records = records
        self._new_records = new_records
        self._decisions = decisions
        self._recovery = recovery
        self._waiting = waiting
        self._work = work
        self._quotas = quotas
        self._tasks: dict[str, asyncio.Task[None]] = {}  # being made since this partial upload is complete

    def observe(self) -> None:
        """Hear of the ends of partial uploads."""
        self._events.observe(PartialFinished, self.partial_ended)
        self._events.observe(UploadTerminated, self.partial_ended)
        self._events.observe(UploadExpired, self.partial_ended)

    def unobserve(self) -> None:
        """Hear of nothing any more."""
        self._events.unobserve(PartialFinished, self.partial_ended)
        self._events.unobserve(UploadTerminated, self.partial_ended)
        self._events.unobserve(UploadExpired, self.partial_ended)

    async def concatenate(self, new: NewUpload) -> Upload:
        """Create a final upload. See `UploadService.concatenate`."""
        check_partial_ids(new.partial_ids, self._options)
        upload_id = final_upload_id(new.partial_ids, new.metadata, new.conditions.encode())
        if self._decisions.asks(HookType.PRE_CREATE):
            existing = await self._state.get(upload_id)
            if existing is None or existing.is_gone(self._clock.steady()):
                _, preview = await self._new_final(new, upload_id)
                new = await self._decisions.on_creation(new, preview)
                upload_id = new.id or upload_id

        async def make(lock: Lock) -> Upload:
            return await self._concatenate(new, lock)

        timeout = self._options.lock_timeout
        final = await self._work.run(upload_id, NonInterruptibleHolder(), timeout, make, context=new.context)
        await self._events.delivered(upload_id)
        return final

    async def _concatenate(self, new: NewUpload, lock: Lock) -> Upload:
        existing = await self._records.get_under(lock)
        if existing is not None and existing.partial_ids != new.partial_ids:  # the application chose its id
            raise UploadExists
        if existing is not None and not existing.is_gone(self._clock.steady()):
            await _refuse_stranger(new, existing)
            return await self._recover_created(existing, lock, new.context)
        partials, upload = await self._new_final(new, lock.upload_id)
        self._quotas.refuse_unsupported(upload)
        await self._quotas.admit_final(upload, partials)
        if existing is not None:
            await self._state.delete(lock.upload_id, lock.token)
        upload = await self._new_records.located(new, replace(upload, token=lock.token))
        upload = await self._new_records.add(new, upload)
        self._events.publish(UploadCreated(upload, new.context))
        return await self._recover_created(upload, lock, new.context)

    async def _new_final(self, new: NewUpload, upload_id: str) -> tuple[Sequence[Upload], Upload]:
        """Return the partial uploads of a final one, and its record; see `new_final`."""
        while True:
            partials = await self._partials_of(new)
            try:
                return partials, new_final(upload_id, new, partials, self._options, self._clock.wall())
            except PartialUnfinished as error:
                if not await self._recovery.finish_part(error.partial_id):
                    raise

    async def _recover_created(self, final: Upload, lock: Lock, context: RequestContext | None) -> Upload:
        with naming_created(final.id):
            return await self._recovery.recover(final, lock.token, context)

    async def _partials_of(self, new: NewUpload) -> Sequence[Upload]:
        """Return the partial uploads of a final one; one of another principal is as one that does not exist."""
        return [await self._partial_of(new, partial_id) for partial_id in new.partial_ids]

    async def _partial_of(self, new: NewUpload, partial_id: str) -> Upload:
        try:
            partial = await self._records.find(partial_id)
        except BrokenRecord as error:
            await _refuse_stranger(new, remains_of(error))
            raise
        if partial is None:
            raise UploadNotFound
        await _refuse_stranger(new, partial)
        return await self._records.usable(partial)

    def partial_ended(self, event: PartialFinished | UploadTerminated | UploadExpired) -> None:
        """Resume the final uploads that waited for this partial one, or remove those that have lost it."""
        partial_id = event.upload.id
        if event.upload.is_partial and not self._work.is_draining:
            making = self._work.start_unlocked(self._waiting.partial_ended(partial_id, self._resume))
            self._tasks[partial_id] = making
            making.add_done_callback(lambda _: self._tasks.pop(partial_id, None))

    async def _resume(self, final_id: str) -> None:
        self._work.refuse_when_draining()
        await self._recovery.resume_now(final_id)

    async def made_of(self, partial_id: str) -> None:
        """Return when the final uploads that waited for a partial one are made, or have had the time to be."""
        making = self._tasks.get(partial_id)
        if making is not None:
            await asyncio.wait((making,), timeout=FINALS_TIMEOUT)


async def _refuse_stranger(new: NewUpload, upload: Upload) -> None:
    """Raise `UploadNotFound` unless the sender of a request for a new upload may use another one."""
    if new.may_use is not None and not await new.may_use(upload):
        raise UploadNotFound
