"""The recovery of uploads: resuming what a crash interrupted, and bringing record and storage back to agreement."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import (
    LockTimeout,
    MaxSizeExceeded,
    PartialLost,
    PartialUnfinished,
    QuotaExceeded,
    StorageFull,
    StorageUnavailable,
    UploadError,
    UploadGone,
    UploadNotFound,
)
from tusd_py.core.outbox import EventType
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.components import Components
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.removal import Removal
from tusd_py.uploads.waiting_finals import WaitingFinals

LOOK_TIMEOUT = 0.2  # seconds for the size of an upload that another request has locked
RESUME_TIMEOUT = 1.5  # seconds that a recovery waits for the lock; a HEAD waits twice as long for the recovery


class Recovery:
    """The recovery of uploads: completions are resumed, and offsets set back to the bytes that the storage has."""

    def __init__(
        self,
        components: Components,
        records: RecordReader,
        completion: Completion,
        removal: Removal,
        waiting: WaitingFinals,
        work: LockedWork,
    ) -> None:
        self._state = components.state
        self._storage = components.storage
        self._options = components.options
        self._records = records
        self._completion = completion
        self._removal = removal
        self._waiting = waiting
        self._work = work

    async def lacks_bytes(self, upload: Upload) -> bool:
        """Return whether the storage has fewer bytes than the record; False if that takes too long to find out.

        The offset of such a record is no answer: whoever gets the lock next takes it back.
        """
        with contextlib.suppress(TimeoutError, UploadError):
            async with asyncio.timeout(LOOK_TIMEOUT):
                return await self._storage.stored_size(upload) < upload.offset
        return False

    async def resume(self, upload_id: str) -> Upload:
        """Recover an upload under its lock; return it. The recovery continues after the wait of the caller.

        Raises:
            LockTimeout: the recovery takes longer than the caller waits.
        """
        recovering = self._work.start_unlocked(self.resume_now(upload_id))
        done, _ = await asyncio.wait((recovering,), timeout=2 * RESUME_TIMEOUT)
        if not done:
            raise LockTimeout
        return recovering.result()

    async def resume_now(
        self, upload_id: str, timeout: float = RESUME_TIMEOUT, context: RequestContext | None = None
    ) -> Upload:
        """Recover an upload under its lock, and wait until that is done.

        Args:
            upload_id: the id.
            timeout: seconds to wait for the lock.
            context: the request to name in the event.
        """

        async def recover(lock: Lock) -> Upload:
            return await self.recover(await self._records.get(upload_id, lock), lock.token, context)

        return await self._work.run(upload_id, NonInterruptibleHolder(), timeout, recover)

    async def recover(self, upload: Upload, token: int, request: RequestContext | None = None) -> Upload:
        """Finish an interrupted completion, or set the offset to that of the storage. The caller holds the lock."""
        if upload.is_final and not upload.is_complete:
            finished = await self._records.load_completion_record(upload.id)  # its parts may have been removed since
            if finished is not None:
                return await self._restore(upload, finished, token, request)
            return await self._recover_final(upload, token, request)
        if upload.status is Status.FINISHING:
            # The record may be older than the completion: the application or a check, asked once more, could reject it.
            if self._completion.decides(upload) and not upload.is_partial:
                finished = await self._records.load_completion_record(upload.id)
                if finished is not None:
                    return await self._restore(upload, finished, token, request)
            return await self._completion.finish(upload, token, request)
        if upload.status is Status.ACTIVE and (found := await self._records.finished_since(upload)) is not None:
            return await self._finish_found(upload, found, token, request)
        stored = await self._storage.stored_size(upload) if upload.status is Status.ACTIVE else upload.offset
        if stored < upload.offset:
            return await self._state.update(upload, upload.at(stored), token)
        finished = None if upload.is_complete else await self._records.load_completion_record(upload.id)
        if finished is not None:
            return await self._restore(upload, finished, token, request)
        return upload

    async def finish_part(self, partial_id: str) -> bool:
        """Finish a partial upload whose record is older than its bytes; return whether it is complete now."""
        with contextlib.suppress(UploadError):
            partial = await self._records.get(partial_id)
            if partial.status is Status.ACTIVE and await self._records.finished_since(partial) is not None:
                return (await self.resume_now(partial_id)).is_complete
        return False

    async def _finish_found(self, upload: Upload, found: Upload, token: int, request: RequestContext | None) -> Upload:
        """Finish an upload of which the storage has more bytes than the record, and all of them.

        The application, or a check, is asked once more: whether it has been is lost with the record.
        """
        found = await self._state.update(upload, replace(found, status=Status.FINISHING, token=token), token)
        return await self._completion.finish(found, token, request)

    async def _restore(self, upload: Upload, finished: Upload, token: int, request: RequestContext | None) -> Upload:
        """Replace a record that is older than the bytes by the completion record; return it.

        The event of the completion may be lost with the newer record, so that it is stored once more.
        """
        log = self._completion.event_log
        number = log.number(EventType.FINISHED, max(finished.event_sequence, upload.event_sequence))
        finished = replace(finished, event_sequence=number)
        return await log.update(upload, finished, token, EventType.FINISHED, request)

    async def _recover_final(self, upload: Upload, token: int, request: RequestContext | None) -> Upload:
        while True:
            try:
                return await self._completion.finish(upload, token, request)
            except PartialLost as error:
                if not self._options.concatenation_unfinished:
                    await self._removal.remove(upload, token, Status.TERMINATED, request)
                    raise
                await self._waiting.wait_for_part(upload, error)
                return await self._waiting.postpone(upload, token)
            except PartialUnfinished as error:  # `concatenation_unfinished` allowed that at the creation
                if await self.finish_part(error.partial_id):
                    continue
                if await self._waiting.wait_for_part(upload, error):
                    return await self._waiting.postpone(upload, token)
            except (UploadNotFound, UploadGone, MaxSizeExceeded):  # it can never be completed, unless it was before
                if not upload.storage_state and (found := await self._records.finished_since(upload)) is not None:
                    return await self._finish_found(upload, found, token, request)
                await self._removal.remove(upload, token, Status.TERMINATED, request)
                raise
            except QuotaExceeded:
                if upload.is_waiting:  # its sender was told that it exists: it is made when its owner has room
                    await self._waiting.postpone(upload, token)
                else:
                    await self._removal.remove(upload, token, Status.TERMINATED, request)
                raise
            except (StorageFull, StorageUnavailable):
                with contextlib.suppress(UploadError):  # the first error is raised
                    await self._waiting.postpone(upload, token)
                raise
