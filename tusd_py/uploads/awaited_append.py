"""Appends of small bodies where changes of records are awaited, as in Redis: one job of a thread stores the bytes.

The lock brings the record, so that three calls are left: the lock, the change of the record, the release.
"""

from __future__ import annotations

import logging

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.storage import StoresInThreads, WriterSnapshot
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StorageBehind
from tusd_py.core.upload import Upload, changed
from tusd_py.events.types import AppendEnded, AppendStarted, UploadProgressed
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.components import Components
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.pace import Pace
from tusd_py.uploads.small_append import SyncFailedError, is_simple, is_small, is_sync_due
from tusd_py.uploads.validation import AppendRequest

logger = logging.getLogger("tusd_py.uploads")


class AwaitedAppends:
    """The fast path of small appends to a storage in threads. Every special case is left to `Append`."""

    def __init__(
        self, components: Components, storage: StoresInThreads, completion: Completion, work: LockedWork, pace: Pace
    ) -> None:
        self._storage = storage
        self._events = components.events
        self._instrumentation = components.instrumentation
        self._budget = components.budget
        self._options = components.options
        self._clock = components.clock
        self._syncs = components.syncs_completion
        self._completion = completion
        self._work = work
        self._pace = pace

    async def append(self, lock: Lock, request: AppendRequest) -> Upload | None:
        """Append, while the caller holds the lock; None if that was not to be, and the record has not changed.

        Raises:
            SyncFailedError: the sync of the last bytes has failed.
            UploadError: of the change of the record, which may have been made.
        """
        record, body = lock.upload, request.source.arrived
        if not body or record is None or not self._suits(record, body, lock, request):
            return None
        self._work.refuse_when_draining()
        if not self._budget.try_reserve(len(body)):
            return None
        try:
            snapshot = await self._store(record, body, lock)
        except SyncFailedError:
            raise
        except Exception as error:  # whatever it is, the slow path meets it too
            logger.debug("upload %s takes the slow path: %s", record.id, error)
            return None
        finally:
            self._budget.release(len(body))
        await request.source.read()  # returns at once: the body is used now
        return await self._commit(record, snapshot, lock, request)

    def _suits(self, record: Upload, body: Buffer, lock: Lock, request: AppendRequest) -> bool:
        return (
            is_small(request, self._options)
            and is_simple(record, lock, request, len(body), self._clock.steady())
            and not record.storage_state
            and not lock.unreleased_predecessors
            and not (self._syncs and is_sync_due(record, len(body)))
        )

    async def _store(self, record: Upload, body: Buffer, lock: Lock) -> WriterSnapshot:
        """Store the bytes, and sync them if they are the last ones of the upload."""
        sync = self._syncs and record.offset + len(body) == record.length
        writer = self._storage.writer(record, lock.token)

        seconds = 0.0

        def finish() -> None:
            nonlocal seconds
            stored = False
            self._pace.begin(writer)
            try:
                writer.finish_in_thread((body,), sync=sync)
                stored = True
            finally:
                seconds = self._pace.end(writer, counts=stored and sync == self._syncs)

        try:
            await self._storage.run(finish, brief=not sync or self._pace.is_fast)
        except StorageBehind as error:
            if sync:
                raise SyncFailedError(record, error) from error
            raise
        self._instrumentation.storage_written(seconds)
        return writer.snapshot()

    async def _commit(self, record: Upload, snapshot: WriterSnapshot, lock: Lock, request: AppendRequest) -> Upload:
        """Change the record, and tell of it."""
        upload = changed(record, offset=snapshot.offset, synced=snapshot.synced, storage_state=snapshot.storage_state)
        finished = upload.has_all_bytes and not upload.storage_state  # otherwise several files are to be joined
        self._events.publish(AppendStarted(record))
        try:
            upload = await self._completion.commit(
                record, upload, lock.token, finished=finished, sync=False, request=request.context
            )
            self._events.publish(UploadProgressed(upload, upload.offset - record.offset, request.context))
        finally:
            self._events.publish(AppendEnded(upload))
        return await self._completion.conclude(upload, lock.token, request.context)
