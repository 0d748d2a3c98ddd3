"""Appending to uploads: the lock, the checks, the append under it, and the completion of an upload."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.storage import Buffer, Observer, ThreadedWriter, Writer
from tusd_py.core.errors import (
    ClientDisconnected,
    ContentRefused,
    FinalUploadModified,
    LockLost,
    LockTimeout,
    OffsetMismatch,
    ReadTimeout,
    ServerShutdown,
    StateUnavailable,
    StorageAhead,
    StorageUnavailable,
    UploadError,
    UploadInterrupted,
    UploadNotFound,
)
from tusd_py.core.outbox import EventType
from tusd_py.core.upload import Status, Upload, UploadPart
from tusd_py.events.types import AppendEnded, AppendStarted, UploadProgressed
from tusd_py.uploads.admission import Admission
from tusd_py.uploads.append import Append
from tusd_py.uploads.awaited_append import AwaitedAppends
from tusd_py.uploads.checksum import Verification
from tusd_py.uploads.completion import Completion, RecordChange, ThreadedCompletion
from tusd_py.uploads.components import Components
from tusd_py.uploads.content_checks import AppendChecks
from tusd_py.uploads.last_step import LastStep
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.lock_holders import DeferredHolder, NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork, outcome
from tusd_py.uploads.pace import Pace
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.recovery import Recovery
from tusd_py.uploads.small_append import SmallAppends, SyncFailedError
from tusd_py.uploads.validation import AppendRequest, NewUpload, check_append, refuse_hopeless

MAX_LAST_STEPS = 7  # last steps at a time in threads of the storage; one thread stays free if the records hang
INTERRUPTIONS = (ClientDisconnected, ReadTimeout, ServerShutdown, UploadInterrupted)
LOOK_INTERVAL = 0.1  # seconds between two looks at all running appends for those that somebody has begun to watch
ENDING_POLL = 0.01  # seconds between two checks whether an upload has ended


class Appending:
    """The appends of a service, each under the lock of its upload and in a task of `LockedWork`."""

    def __init__(
        self,
        components: Components,
        lifetimes: Lifetimes,
        records: RecordReader,
        completion: Completion,
        recovery: Recovery,
        work: LockedWork,
        quotas: Quotas,
    ) -> None:
        self._storage = components.storage
        self._events = components.events
        self._instrumentation = components.instrumentation
        self._budget = components.budget
        self._options = components.options
        self._records = records
        self._completion = completion
        self._recovery = recovery
        self._work = work
        self._quotas = quotas
        self._appends: set[Append] = set()
        self._slots = asyncio.Semaphore(MAX_LAST_STEPS)
        self._pace = Pace(syncs=components.syncs_completion)
        self._in_threads = components.stores_in_threads
        self._threaded: ThreadedCompletion | None = None
        self._small: SmallAppends | None = None
        self._fast_path: SmallAppends | AwaitedAppends | None = None
        self.is_watched: Callable[[Upload], bool] | None = None  # whether somebody follows the progress of an upload
        self._next_look = 0.0  # time of the event loop
        if components.in_threads is not None:
            self._threaded = ThreadedCompletion(components.in_threads, completion, syncs=components.syncs_completion)
            self._small = SmallAppends(components, lifetimes, self._threaded, work, self._slots, self._pace)
            self._fast_path = self._small
        elif components.stores_in_threads is not None:
            self._fast_path = AwaitedAppends(components, components.stores_in_threads, completion, work, self._pace)

    async def append(self, upload_id: str, append_request: AppendRequest) -> tuple[Upload, bool]:
        """Append the bytes of the source; return the upload as committed, and whether the append was made.

        Nothing can be appended to a complete upload. Raises as `UploadService.append` does.
        """
        holder = DeferredHolder()
        try:
            lock = await self._lock_to_append(upload_id, append_request, holder)
            context = append_request.context
            work = self._work.start(lock, self._append_under(lock, append_request, holder), context)
            try:
                if append_request.source.arrived is not None:
                    return await outcome(work)
                await append_request.source.feed(work)
                return work.result()
            finally:
                del work  # its error refers to this frame, and would live on in a cycle with the body
        except (LockLost, LockTimeout, UploadInterrupted):
            await self._refuse_if_ended(upload_id, append_request.admission)
            raise

    def suits_creation(self, new: NewUpload, append_request: AppendRequest) -> bool:
        """Return whether `create` can create an upload with these first bytes."""
        return self._small is not None and self._small.suits_creation(new, append_request)

    async def create(self, new: Upload, append_request: AppendRequest) -> tuple[Upload, bool] | None:
        """Create an upload and append its first bytes, in one job.

        Returns the upload as committed, and whether its bytes were taken or refused; otherwise they are still to be
        appended. Returns None if there is no lock, and nothing was created. Raises the error of a creation.
        """
        assert self._small is not None
        try:
            lock = await self._work.acquire(new.id, NonInterruptibleHolder(), 0)
        except UploadError:  # another process takes a token just now, or the locks cannot be used
            return None
        work = self._create_under(self._small, lock, new, append_request)
        return await outcome(self._work.start(lock, work, append_request.context))

    async def _create_under(
        self, small: SmallAppends, lock: Lock, new: Upload, append_request: AppendRequest
    ) -> tuple[Upload, bool]:
        try:
            upload = await small.create(lock, new, append_request)
        except SyncFailedError as failure:
            return await self._rewind(failure, append_request, lock), True
        return (new, False) if upload is None else (upload, True)

    async def _rewind(self, failure: SyncFailedError, append_request: AppendRequest, lock: Lock) -> Upload:
        """Take the offset of an upload back after a failed sync; return its record."""
        append = self._new_append(failure.before, append_request, lock)
        await append.rewind(failure.before, failure.error)
        return append.upload

    def stop(self, upload_id: str, reason: UploadError) -> None:
        """Make a running append commit its bytes and end with this error."""
        for append in self._appends:
            if append.upload.id == upload_id:
                append.interrupt(reason)

    def watchers_changed(self) -> None:
        """Have running appends of uploads that somebody has begun to watch commit more often, soon.

        However many begin, the appends are looked at rarely: there may be many, to which the event loop belongs too.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next_look:
            self._next_look = loop.time() + LOOK_INTERVAL
            loop.call_at(self._next_look, self._look_at_appends)

    def _look_at_appends(self) -> None:
        self._next_look = 0.0
        for append in self._appends:
            append.watchers_changed()

    def drain(self) -> None:
        """Make running appends commit their bytes and end with `ServerShutdown`."""
        for append in list(self._appends):
            append.interrupt(ServerShutdown())

    async def _lock_to_append(self, upload_id: str, append_request: AppendRequest, holder: DeferredHolder) -> Lock:
        """Acquire the lock, without disturbing its holder on behalf of a request that cannot succeed."""
        try:
            return await self._work.acquire(upload_id, holder, 0)
        except LockTimeout:
            if not append_request.waits:
                raise
            record = await self._records.get(upload_id, admission=append_request.admission)
            try:
                refuse_hopeless(record, append_request, self._options)
            except OffsetMismatch:  # right only if the storage has the bytes: the holder may be dead, and they with it
                if record.is_complete or not await self._recovery.lacks_bytes(record):
                    raise
        return await self._work.acquire(upload_id, holder, self._options.lock_timeout)

    async def _refuse_if_ended(self, upload_id: str, admission: Admission) -> None:
        """Raise `UploadNotFound` or `UploadGone` if the upload has ended; wait for the end if it is about to."""
        deadline = time.monotonic() + self._options.lock_timeout
        with contextlib.suppress(StateUnavailable, StorageUnavailable):  # the error of the caller tells more
            while await self._work.is_ending(upload_id) and time.monotonic() < deadline:
                await self._records.get(upload_id, admission=admission)
                await asyncio.sleep(ENDING_POLL)
            await self._records.get(upload_id, admission=admission)

    async def _append_under(
        self, lock: Lock, append_request: AppendRequest, holder: DeferredHolder
    ) -> tuple[Upload, bool]:
        """Append under the lock, see `append`."""
        if self._fast_path is not None:
            try:
                upload = await self._fast_path.append(lock, append_request)
            except SyncFailedError as failure:
                rewound = await self._rewind(failure, append_request, lock)
                raise OffsetMismatch(rewound.offset) from failure.error
            if upload is not None:
                return upload, True
        record = await self._records.get(lock.upload_id, lock, append_request.admission)
        if record.is_final:
            raise FinalUploadModified
        if record.status is Status.FINISHING:
            record = await self._recovery.recover(record, lock.token, append_request.context)
        if record.is_complete:
            return record, False
        try:
            return await self._append(record, append_request, lock, holder), True
        except (StorageAhead, OffsetMismatch) as error:  # the offset of the record is told if the storage has its bytes
            record = await self._recovery.recover(
                await self._records.get(lock.upload_id), lock.token, append_request.context
            )
            # A client at a wrong offset is no failure of the server, which would be logged with its cause.
            raise OffsetMismatch(record.offset) from (None if isinstance(error, OffsetMismatch) else error)
        except UploadNotFound as error:  # of the storage, which has other bytes of an upload that is finished
            record = await self._records.get(lock.upload_id)
            if record.is_complete or not await self._records.is_outdated(record):
                raise
            record = await self._recovery.recover(record, lock.token, append_request.context)
            raise OffsetMismatch(record.offset) from error
        finally:
            holder.append_ended()

    async def _append(
        self, record: Upload, append_request: AppendRequest, lock: Lock, holder: DeferredHolder
    ) -> Upload:
        upload = check_append(record, append_request, self._options)
        self._work.refuse_when_draining()
        checks = self._completion.checks.of_append(upload)
        try:
            record, upload, quota_end = await self._quotas.admit_append(record, upload, append_request, lock.token)
        except UploadError:
            if checks is not None:  # no byte was taken, so that what was seen is still true
                self._completion.checks.append_ended(record, checks)
            raise
        append = self._new_append(upload, append_request, lock, quota_end, checks)
        holder.target = append
        self._appends.add(append)
        self._events.publish(AppendStarted(upload))
        try:
            await append.run(record)
        except Exception as error:
            interrupted = isinstance(error, INTERRUPTIONS)
            # Complete if too many bytes came.
            upload = await self._append_ended(append, lock, append_request, checks, interrupted=interrupted)
            if interrupted:
                await self._record_interruption(upload, lock, append_request)
            if isinstance(error, ContentRefused):
                await self._completion.checks.remove(upload, lock.token, append_request.context, error)
            raise
        return await self._append_ended(append, lock, append_request, checks)

    async def _append_ended(
        self,
        append: Append,
        lock: Lock,
        append_request: AppendRequest,
        checks: AppendChecks | None,
        *,
        interrupted: bool = False,
    ) -> Upload:
        self._appends.discard(append)
        if checks is not None:
            self._completion.checks.append_ended(append.upload, checks)
        self._events.publish(AppendEnded(append.upload, interrupted))
        append.upload = await self._completion.conclude(append.upload, lock.token, append_request.context)
        return append.upload

    async def _record_interruption(self, upload: Upload, lock: Lock, append_request: AppendRequest) -> None:
        """Store the event of an append that ended before its body, if a sink wants to hear of it."""
        log = self._completion.event_log
        if upload.status is Status.ACTIVE and log.stores(EventType.INTERRUPTED):
            with contextlib.suppress(UploadError):  # the reason of the interruption is raised
                kind = EventType.INTERRUPTED
                after = replace(upload, event_sequence=log.number(kind, upload.event_sequence))
                await log.update(upload, after, lock.token, kind, append_request.context)

    def _new_append(
        self,
        upload: Upload,
        append_request: AppendRequest,
        lock: Lock,
        quota_end: int | None = None,
        checks: AppendChecks | None = None,
    ) -> Append:
        def committed(before: Upload, after: Upload) -> None:
            received = max(0, after.offset - before.offset)
            self._events.publish(UploadProgressed(after, received, append_request.context))

        async def commit(
            before: Upload, after: Upload, parts: Sequence[UploadPart], finished: bool, sync: bool
        ) -> Upload:
            after = await self._completion.commit(
                before, after, lock.token, parts, finished=finished, sync=sync, request=append_request.context
            )
            committed(before, after)
            return after

        observer = _observer(append_request.verification, checks)
        writer, threaded, last_step = self._writer(upload, append_request, lock, committed, observer)
        return Append(
            upload,
            append_request.source,
            writer,
            self._budget,
            self._options,
            commit,
            self._storage.stored_size,
            self._instrumentation.storage_written,
            verification=append_request.verification,
            threaded=threaded,
            last_step=last_step,
            quota_end=quota_end,
            checks=checks,
            is_watched=self.is_watched,
        )

    def _writer(
        self,
        upload: Upload,
        append_request: AppendRequest,
        lock: Lock,
        committed: Callable[[Upload, Upload], object],
        observer: Observer | None,
    ) -> tuple[Writer, ThreadedWriter | None, LastStep | None]:
        """Return a writer, the same if it is a threaded one, and the last step if the record can be changed in it."""
        predecessors = lock.unreleased_predecessors
        if self._in_threads is None:
            writer = self._storage.writer(upload, lock.token, observer, unreleased_predecessors=predecessors)
            return writer, None, None
        threaded = self._in_threads.writer(upload, lock.token, observer, unreleased_predecessors=predecessors)
        if self._threaded is None:
            return threaded, threaded, None
        change = RecordChange(lock.token, append_request.context)
        return threaded, threaded, LastStep(threaded, self._threaded, change, self._slots, self._pace, committed)


def _observer(verification: Verification | None, checks: AppendChecks | None) -> Observer | None:
    """Return what is called with every buffer, in worker threads; None if nothing is to be computed."""
    seen = None if checks is None else checks.seen
    if seen is None:
        return None if verification is None else verification.update
    if verification is None:
        return seen.update
    verify, see = verification.update, seen.update

    def observe(data: Buffer) -> None:
        verify(data)
        see(data)

    return observe
