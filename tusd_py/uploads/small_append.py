"""Appends of small bodies that have arrived as a whole: one job of one thread, from the record to its change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.state import UpdatesInThreads
from tusd_py.contracts.storage import StoresInThreads
from tusd_py.core.buffers import Buffer
from tusd_py.core.durability import Durability
from tusd_py.core.errors import StorageBehind
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import AppendEnded, AppendStarted, UploadProgressed, finish_event
from tusd_py.transfer.budget import ByteBudget
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.validation import AppendRequest

logger = logging.getLogger("tusd_py.uploads")

MAX_SMALL_BODY = 64 << 10  # bytes that the thread of the records may write


class NotSimpleError(Exception):
    """Something speaks against the short way; the long one finds out and tells what it is."""


class SyncFailedError(Exception):
    """A sync has failed: the bytes of the record `before` end at `stored`."""

    def __init__(self, before: Upload, error: StorageBehind) -> None:
        super().__init__(str(error))
        self.before = before
        self.error = error


class SmallAppends:
    """The short way of small appends. Every special case is left to `Append`, as if it came just now.

    The thread of the records writes bytes that are not synced, for all that came together. Those that are synced are
    written in the threads of the storage, since each sync may take its time.
    """

    def __init__(
        self,
        state: UpdatesInThreads,
        storage: StoresInThreads,
        events: EventBus,
        budget: ByteBudget,
        options: UploadOptions,
        completion: Completion,
        refuse_when_draining: Callable[[], None],
        slots: asyncio.Semaphore,
    ) -> None:
        """One of `slots` is taken for each step in a thread of the storage."""
        self._state = state
        self._storage = storage
        self._events = events
        self._budget = budget
        self._options = options
        self._completion = completion
        self._refuse_when_draining = refuse_when_draining
        self._slots = slots

    async def append(self, lock: Lock, request: AppendRequest) -> Upload | None:
        """Append, while the caller holds the lock; None if that was not to be, and nothing has changed.

        Raises `SyncFailedError`.
        """
        body = request.source.arrived
        if not body or not self._may_fit(lock, request, len(body)) or not self._budget.try_reserve(len(body)):
            return None
        try:
            before, upload = await self._store(lock, request.offset, body)
        except SyncFailedError:
            raise
        except Exception as error:  # whatever it is, the long way meets it too
            logger.debug("upload %s is appended to the long way: %s", lock.upload_id, error)
            return None
        finally:
            self._budget.release(len(body))
        await request.source.read()  # returns at once: the body is used now
        self._tell(before, upload, request.context)
        return upload

    def _may_fit(self, lock: Lock, request: AppendRequest, size: int) -> bool:
        return (
            size <= MAX_SMALL_BODY
            and request.verification is None
            and request.length is None
            and self._options.durability is not Durability.ALWAYS
            and lock.record is None
        )

    async def _store(self, lock: Lock, offset: int, body: Buffer) -> tuple[Upload, Upload]:
        """The records before and after."""
        self._refuse_when_draining()
        syncs = self._options.durability is not Durability.NEVER
        step = _Step(self._state, self._storage, self._completion, lock, offset, body, syncs=syncs)
        if syncs:
            async with self._slots:
                after = await self._storage.run(step.store_and_update)
        else:
            after = await self._storage.elsewhere(step.run_with_others, step.store)
        assert step.before is not None
        return step.before, after

    def _tell(self, before: Upload, upload: Upload, request: RequestContext | None) -> None:
        self._events.publish(AppendStarted(before))
        self._events.publish(UploadProgressed(upload, upload.offset - before.offset, request))
        self._events.publish(AppendEnded(upload))
        if upload.is_complete:
            self._events.publish(finish_event(upload, request))


class _Step:
    """One small append in the thread that does it."""

    def __init__(
        self,
        state: UpdatesInThreads,
        storage: StoresInThreads,
        completion: Completion,
        lock: Lock,
        offset: int,
        body: Buffer,
        *,
        syncs: bool,
    ) -> None:
        """Take the time for that of the step; in the event loop. `syncs` says that the last bytes are synced."""
        self._state = state
        self._storage = storage
        self._completion = completion
        self._lock = lock
        self._offset = offset
        self._body = body
        self._syncs = syncs
        self._now = completion.steady()
        self.before: Upload | None = None  # the record as it was read

    def run_with_others(self, store: Callable[[], tuple[Upload, Upload]]) -> asyncio.Future[Upload]:
        """Have the thread of the records store, and change the record."""
        return self._state.update_after(store, self._lock.token, self._conclude)

    def store_and_update(self) -> Upload:
        """Store, and change the record; blocks."""
        before, after = self.store()
        stored = self._state.update_in_thread(before, after, self._lock.token, durable=after.is_complete)
        self._conclude(stored)
        return stored

    def store(self) -> tuple[Upload, Upload]:
        """The records before and after, once the bytes are stored; blocks. Raises `NotSimpleError` before any byte."""
        before = self.before = self._state.get_in_thread(self._lock.upload_id)
        if before is None or not _is_simple(before, self._lock, self._offset, len(self._body), self._now):
            raise NotSimpleError
        if self._syncs and before.deferred:  # a recording: every acknowledgement comes after a sync
            raise NotSimpleError
        after = self._reached(before)
        sync = self._syncs and after.is_complete
        try:
            self._storage.writer(before, self._lock.token).finish_in_thread((self._body,), sync=sync)
        except StorageBehind as error:
            if sync:
                raise SyncFailedError(before, error) from error
            raise
        return before, after

    def _reached(self, before: Upload) -> Upload:
        offset, token = self._offset + len(self._body), self._lock.token
        if offset == before.length:
            synced = offset if self._syncs else before.synced  # it counts only if the sync succeeds
            return self._completion.completed(before, token, offset=offset, synced=synced)
        return replace(before, offset=offset, expires_at=self._completion.extended(before), token=token)

    def _conclude(self, stored: Upload) -> None:
        if stored.is_complete:
            self._completion.save_completion_record_in_thread(self._storage, stored)


def _is_simple(record: Upload, lock: Lock, offset: int, size: int, now: float) -> bool:
    """Whether nothing but the bytes is missing."""
    return (
        record.status is Status.ACTIVE
        and not record.is_final
        and not record.has_ended(now)
        and bool(record.location)
        and record.offset == offset
        and record.length is not None
        and offset + size <= record.length
        and record.token < lock.token
    )
