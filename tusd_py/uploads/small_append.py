"""Appends of small bodies that have arrived as a whole: one job of one thread, from the record to its change.

The body of a creation is appended by the job that adds the record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tusd_py.contracts.locks import Lock
from tusd_py.core.buffers import Buffer
from tusd_py.core.conditions import NO_CONDITIONS
from tusd_py.core.durability import Durability, must_sync
from tusd_py.core.errors import StorageBehind
from tusd_py.core.outbox import EventType
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadKind, changed
from tusd_py.events.types import AppendEnded, AppendStarted, UploadCreated, UploadProgressed
from tusd_py.uploads.completion import RecordChange, ThreadedCompletion
from tusd_py.uploads.components import Components
from tusd_py.uploads.decisions import naming_created
from tusd_py.uploads.last_step import MAX_SMALL_BODY as MAX_SMALL_BODY
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.pace import Pace
from tusd_py.uploads.validation import AppendRequest, NewUpload

logger = logging.getLogger("tusd_py.uploads")


class NotSimpleError(Exception):
    """A reason to leave a small append to `Append`, which then finds and reports it."""


class TooSlowError(Exception):
    """The storage became too slow for the thread of the records while the step waited for it; nothing was stored."""


class SyncFailedError(Exception):
    """A failed sync: the bytes of the record `before` end at `error.stored`."""

    def __init__(self, before: Upload, error: StorageBehind) -> None:
        super().__init__(str(error))
        self.before = before
        self.error = error


class SmallAppends:
    """The fast path of small appends. Every special case is left to `Append`, as if it came just now.

    The thread of the records writes the bytes of all that came together, and syncs them while that is fast. Syncs that
    take their time are made in the threads of the storage, side by side, and so are all steps while one is stalled.
    """

    def __init__(
        self,
        components: Components,
        lifetimes: Lifetimes,
        threaded: ThreadedCompletion,
        work: LockedWork,
        slots: asyncio.Semaphore,
        pace: Pace,
    ) -> None:
        """One of `slots` is taken for each step in a thread of the storage."""
        self._events = components.events
        self._instrumentation = components.instrumentation
        self._budget = components.budget
        self._options = components.options
        self._clock = components.clock
        self._lifetimes = lifetimes
        self._threaded = threaded
        self._work = work
        self._slots = slots
        self._pace = pace

    def suits_creation(self, new: NewUpload, request: AppendRequest) -> bool:
        """Return whether one job may create the upload and append its first bytes; with `create`.

        A subscriber of creations finds an upload without bytes, and may remove it before they are appended.
        """
        size = len(request.source.arrived or b"")
        return (
            self._pace.is_fast
            and not self._work.is_draining
            and is_small(request, self._options)
            and new.concatenation is UploadKind.NONE
            and new.length is not None
            and size <= new.length
            and new.conditions is NO_CONDITIONS
            and not self._events.has_subscribers(UploadCreated)
        )

    async def create(self, lock: Lock, new: Upload, request: AppendRequest) -> Upload | None:
        """Create an upload and append its first bytes, while the caller holds the lock.

        The record is committed before the first byte is stored, so that no crash leaves a file without a record.

        Returns:
            The record with all bytes of the body; None if the upload has been created without them.

        Raises:
            SyncFailedError: the upload has been created.
            HookUnavailable, HookRejected: see `Completion.finish`; the upload has been created.
            UploadError: the record could not be added.
        """
        body = request.source.arrived
        assert body is not None
        log = self._threaded.completion.event_log
        new = changed(new, token=lock.token)
        events = log.events_of(EventType.CREATED, new, request.context)
        await self._budget.reserve(len(body))
        step = self._step(lock, request, body, RecordChange(lock.token, request.context, new, events))
        try:
            upload = await self._threaded.storage.run_external(step.commit_with_others, step.store_while_fast)
        except Exception as error:  # of the bytes, which the slow path then reports, or of the record
            if not step.has_begun:
                raise
            log.notify()
            self._events.publish(UploadCreated(new, request.context))
            if isinstance(error, SyncFailedError):
                raise
            logger.debug("the first bytes of upload %s take the slow path: %s", new.id, error)
            return None
        finally:
            self._budget.release(len(body))
        await request.source.read()  # returns at once: the body is used now
        log.notify()
        self._events.publish(UploadCreated(new, request.context))
        with naming_created(new.id):
            return await self._conclude(new, upload, lock, request.context, step.seconds)

    async def append(self, lock: Lock, request: AppendRequest) -> Upload | None:
        """Append, while the caller holds the lock; None if that was not to be, and nothing has changed.

        Raises `SyncFailedError`, and the errors of `Completion.finish`.
        """
        body = request.source.arrived
        if not body or not is_small(request, self._options) or lock.upload or not self._budget.try_reserve(len(body)):
            return None
        try:
            step, upload = await self._store(lock, request, body)
        except SyncFailedError:
            raise
        except Exception as error:  # whatever it is, the slow path meets it too
            logger.debug("upload %s takes the slow path: %s", lock.upload_id, error)
            return None
        finally:
            self._budget.release(len(body))
        await request.source.read()  # returns at once: the body is used now
        assert step.before is not None
        return await self._conclude(step.before, upload, lock, request.context, step.seconds)

    async def _store(self, lock: Lock, request: AppendRequest, body: Buffer) -> tuple[_Step, Upload]:
        """Store the body and change the record; return the step, and the record after it."""
        self._work.refuse_when_draining()
        step = self._step(lock, request, body, RecordChange(lock.token, request.context))
        after = await self._store_with_others(step)
        if after is None:
            async with self._slots:
                after = await self._threaded.storage.run(step.store_and_commit)
        return step, after

    def _step(self, lock: Lock, request: AppendRequest, body: Buffer, change: RecordChange) -> _Step:
        return _Step(self._threaded, self._lifetimes, self._pace, lock, request, body, change, now=self._clock.steady())

    async def _store_with_others(self, step: _Step) -> Upload | None:
        """Store and commit in the thread of the records; return the record, or None if the storage is too slow."""
        if not self._pace.is_fast:
            return None
        try:
            return await self._threaded.storage.run_external(step.commit_with_others, step.store_while_fast)
        except TooSlowError:
            return None

    async def _conclude(
        self, before: Upload, upload: Upload, lock: Lock, request: RequestContext | None, seconds: float
    ) -> Upload:
        """Tell of the append, whose bytes took so many seconds, and end the upload if it has all; return the record."""
        self._instrumentation.storage_written(seconds)
        self._events.publish(AppendStarted(before))
        self._events.publish(UploadProgressed(upload, upload.offset - before.offset, request))
        self._events.publish(AppendEnded(upload))
        return await self._threaded.completion.conclude(upload, lock.token, request)


class _Step:
    """One small append in the thread that executes it."""

    def __init__(
        self,
        threaded: ThreadedCompletion,
        lifetimes: Lifetimes,
        pace: Pace,
        lock: Lock,
        request: AppendRequest,
        body: Buffer,
        change: RecordChange,
        *,
        now: float,
    ) -> None:
        """Judge the record by the time `now`, in seconds since the epoch."""
        self._threaded = threaded
        self._lifetimes = lifetimes
        self._pace = pace
        self._lock = lock
        self._request = request
        self._body = body
        self._change = change
        self._now = now
        self.before: Upload | None = None  # the record as it was read
        self.seconds = 0.0  # that the storage took
        self.has_begun = False

    def commit_with_others(self, store: Callable[[], tuple[Upload, Upload]]) -> asyncio.Future[Upload]:
        """Have the thread of the records add the new record, store, and change the record."""
        return self._threaded.commit_after(store, self._change)

    def store_while_fast(self) -> tuple[Upload, Upload]:
        """Do what `store` does; raises `TooSlowError` if steps before this one have been slow. Blocks."""
        self.has_begun = True
        if not self._pace.is_fast:
            raise TooSlowError
        return self.store()

    def store_and_commit(self) -> Upload:
        """Store the bytes and commit. Blocks."""
        return self._threaded.commit(*self.store(), self._change)

    def store(self) -> tuple[Upload, Upload]:
        """Store the bytes; return the records before and after. Blocks. Raises `NotSimpleError` before any byte."""
        before = self.before = self._change.new or self._read()
        after = self._reached(before)
        self._write(before, sync=self._threaded.syncs and after.is_complete)
        return before, after

    def _read(self) -> Upload:
        record = self._threaded.state.get_in_thread(self._lock.upload_id)
        if record is None or not is_simple(record, self._lock, self._request, len(self._body), self._now):
            raise NotSimpleError
        if self._threaded.syncs and is_sync_due(record, len(self._body)):
            raise NotSimpleError
        return record

    def _write(self, before: Upload, *, sync: bool) -> None:
        stored = False
        self._pace.begin(self)
        try:
            self._threaded.storage.writer(before, self._lock.token).finish_in_thread((self._body,), sync=sync)
            stored = True
        except StorageBehind as error:
            if sync:
                raise SyncFailedError(before, error) from error
            raise
        finally:
            self.seconds = self._pace.end(self, counts=stored and sync == self._threaded.syncs)

    def _reached(self, before: Upload) -> Upload:
        offset, token = self._request.offset + len(self._body), self._lock.token
        if offset == before.length:
            synced = offset if self._threaded.syncs else before.synced  # it counts only if the sync succeeds
            return self._threaded.completion.ended(before, token, offset=offset, synced=synced)
        return changed(before, offset=offset, expires_at=self._lifetimes.extended(before), token=token)


def is_small(request: AppendRequest, options: UploadOptions) -> bool:
    """Return whether an append may take a fast path, as far as its request tells."""
    body = request.source.arrived
    return (
        body is not None
        and 0 < len(body) <= MAX_SMALL_BODY
        and request.verification is None
        and request.length is None
        and options.durability is not Durability.ALWAYS
        and not options.allowed_types  # whose first bytes are looked at
    )


def is_simple(record: Upload, lock: Lock, request: AppendRequest, size: int, now: float) -> bool:
    """Return whether the append needs nothing but its `size` bytes."""
    return (
        record.status is Status.ACTIVE
        and not record.is_final
        and not record.conditions
        and not record.is_gone(now)
        and bool(record.location)
        and record.offset == request.offset
        and record.length is not None
        and request.offset + size <= record.length
        and record.token < lock.token
        and request.admission.fits(record)
    )


def is_sync_due(record: Upload, size: int) -> bool:
    """Return whether the append syncs although the upload may go on after it, which the fast paths do not."""
    return must_sync(Durability.COMPLETE, deferred=record.deferred, unsynced=record.offset + size - record.synced)
