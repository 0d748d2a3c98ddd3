"""The termination of uploads, by their clients and by the application."""

from __future__ import annotations

import contextlib

from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import BrokenRecord, UploadGone, UploadNotFound, UploadStopped
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import UploadTerminated
from tusd_py.uploads.admission import ANY_UPLOAD, Admission, admission_to, remains_of
from tusd_py.uploads.appending import Appending
from tusd_py.uploads.components import Components
from tusd_py.uploads.decisions import Decisions
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork, outcome
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.removal import Removal


class Termination:
    """The termination of uploads, each under its lock and to its end, even if the caller is cancelled."""

    def __init__(
        self,
        components: Components,
        records: RecordReader,
        removal: Removal,
        decisions: Decisions,
        appending: Appending,
        work: LockedWork,
    ) -> None:
        self._events = components.events
        self._options = components.options
        self._records = records
        self._removal = removal
        self._decisions = decisions
        self._appending = appending
        self._work = work

    async def terminate(
        self, upload_id: str, context: RequestContext | None = None, admission: Admission = ANY_UPLOAD
    ) -> None:
        """Remove an upload, also one whose record cannot be read. See `UploadService.terminate`."""
        try:
            upload = await self._records.get(upload_id, admission=admission)
        except BrokenRecord as error:
            await self._decisions.on_termination(remains_of(error, admission), context)
        else:
            admission = admission_to(upload)  # the application answers for this upload alone
            await self._decisions.on_termination(upload, context)
        await outcome(self._work.start_unlocked(self._end(upload_id, context, admission)))

    async def stop(self, upload: Upload, reason: UploadStopped, context: RequestContext | None) -> None:
        """End an upload that the application stops; a running append ends with the reason first."""
        self._appending.stop(upload.id, reason)
        await self.remove_stopped(upload.id, context, admission_to(upload))

    async def remove_stopped(self, upload_id: str, context: RequestContext | None, admission: Admission) -> None:
        """Remove an upload that the application has stopped, unless it is complete or has ended."""
        with contextlib.suppress(UploadNotFound, UploadGone):
            if not (await self._records.get(upload_id, admission=admission)).is_complete:
                ending = self._end(upload_id, context, admission, stopped=True)
                await outcome(self._work.start_unlocked(ending))

    async def _end(
        self, upload_id: str, context: RequestContext | None, admission: Admission, *, stopped: bool = False
    ) -> None:
        """Remove an upload; one that the application has `stopped` only if it is not complete."""

        async def remove(lock: Lock) -> None:
            try:
                upload = await self._records.get(upload_id, lock, admission)
            except BrokenRecord as error:
                if stopped:
                    raise
                upload = remains_of(error, admission)
                await self._removal.remove_broken(upload, lock.token)
            else:
                if upload.is_complete and stopped:
                    return
                await self._removal.remove(upload, lock.token, Status.TERMINATED, context)
            self._events.publish(UploadTerminated(upload, context, UploadStopped.code if stopped else ""))

        async with self._work.ending(upload_id):
            await self._work.run(
                upload_id,
                NonInterruptibleHolder(),
                self._options.lock_timeout,
                remove,
                to_remove=True,
                context=context,
            )
