"""Appending to uploads: the lock, the checks, the append under it, and what becomes of an upload that has all bytes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.state import StateStore, UpdatesInThreads
from tusd_py.contracts.storage import Observer, Storage, StoresInThreads, Writer
from tusd_py.core.durability import Durability
from tusd_py.core.errors import (
    FinalUploadModified,
    LockLost,
    LockTimeout,
    OffsetMismatch,
    ServerShutdown,
    StateUnavailable,
    StorageAhead,
    StorageUnavailable,
    UploadInterrupted,
)
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadPart
from tusd_py.events.bus import EventBus
from tusd_py.events.types import AppendEnded, AppendStarted, UploadProgressed, finish_event
from tusd_py.transfer.budget import ByteBudget
from tusd_py.uploads.append import Append, LastStep
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.lock_holders import DeferredHolder
from tusd_py.uploads.locked_work import LockedWork, outcome
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.small_append import MAX_SMALL_BODY, SmallAppends, SyncFailedError
from tusd_py.uploads.validation import AppendRequest, check_append, refuse_hopeless

MAX_LAST_STEPS = 7  # at a time in threads of the storage: should the records hang, one is left for others
ENDING_POLL = 0.01  # seconds between two looks whether an upload has ended


class Appending:
    """Appends to uploads under their locks, in tasks of `LockedWork`, and knows those under way.

    `refuse_when_draining` raises `ServerShutdown` once no new work is to be begun.
    """

    def __init__(
        self,
        state: StateStore,
        storage: Storage,
        events: EventBus,
        budget: ByteBudget,
        options: UploadOptions,
        work: LockedWork,
        completion: Completion,
        refuse_when_draining: Callable[[], None],
    ) -> None:
        self._state = state
        self._storage = storage
        self._events = events
        self._budget = budget
        self._options = options
        self._work = work
        self._completion = completion
        self._refuse_when_draining = refuse_when_draining
        self._appends: set[Append] = set()
        self._slots = asyncio.Semaphore(MAX_LAST_STEPS)
        self._small: SmallAppends | None = None
        self._in_threads: tuple[UpdatesInThreads, StoresInThreads] | None = None
        if isinstance(state, UpdatesInThreads) and isinstance(storage, StoresInThreads) and storage.stores_in_threads:
            self._in_threads = state, storage
            self._small = SmallAppends(
                state, storage, events, budget, options, completion, refuse_when_draining, self._slots
            )

    async def append(self, upload_id: str, append_request: AppendRequest) -> tuple[Upload, bool]:
        """Append what the source gives: the upload as committed, and whether the addition was made.

        To a complete upload there is nothing to add. Raises as `UploadService.append` does.
        """
        holder = DeferredHolder()
        try:
            lock = await self._lock_to_append(upload_id, append_request, holder)
            work = self._work.start(lock, self._append_under(lock, append_request, holder))
            if append_request.source.arrived is not None:
                return await outcome(work)
            await append_request.source.feed(work)
            return work.result()
        except (LockLost, LockTimeout, UploadInterrupted):
            await self._refuse_if_ended(upload_id)
            raise

    def drain(self) -> None:
        """Have the appends under way commit what they have, and end with `ServerShutdown`."""
        for append in list(self._appends):
            append.interrupt(ServerShutdown())

    async def _lock_to_append(self, upload_id: str, append_request: AppendRequest, holder: DeferredHolder) -> Lock:
        """The lock, without disturbing its holder on behalf of a request that cannot succeed."""
        try:
            return await self._work.acquire(upload_id, holder, 0)
        except LockTimeout:
            refuse_hopeless(await self._completion.get(upload_id), append_request, self._options)
        return await self._work.acquire(upload_id, holder, self._options.lock_timeout)

    async def _refuse_if_ended(self, upload_id: str) -> None:
        """Raise `UploadNotFound` or `UploadGone` if the upload has ended, or is about to: this waits for that."""
        deadline = time.monotonic() + self._options.lock_timeout
        with contextlib.suppress(StateUnavailable, StorageUnavailable):  # then the caller's reason is the better one
            while await self._work.is_ending(upload_id) and time.monotonic() < deadline:
                await self._completion.get(upload_id)
                await asyncio.sleep(ENDING_POLL)
            await self._completion.get(upload_id)

    async def _append_under(
        self, lock: Lock, append_request: AppendRequest, holder: DeferredHolder
    ) -> tuple[Upload, bool]:
        """The upload, and whether the addition was made: to a complete one there is nothing to add."""
        if self._small is not None:
            try:
                upload = await self._small.append(lock, append_request)
            except SyncFailedError as failure:
                append = self._new_append(failure.before, append_request, lock)
                await append.give_up(failure.before, failure.error)
                raise OffsetMismatch(append.upload.offset) from failure.error
            if upload is not None:
                return upload, True
        record = await self._completion.get(lock.upload_id, lock)
        if record.is_final:
            raise FinalUploadModified
        if record.status is Status.FINISHING:
            record = await self._completion.finish(record, lock.token, append_request.context)
        if record.is_complete:
            return record, False
        try:
            return await self._append(record, append_request, lock, holder), True
        except StorageAhead as error:
            record = await self._completion.recover(
                await self._completion.get(lock.upload_id), lock.token, append_request.context
            )
            raise OffsetMismatch(record.offset) from error

    async def _append(
        self, record: Upload, append_request: AppendRequest, lock: Lock, holder: DeferredHolder
    ) -> Upload:
        upload = check_append(record, append_request, self._options)
        self._refuse_when_draining()
        append = self._new_append(upload, append_request, lock)
        holder.target = append
        self._appends.add(append)
        self._events.publish(AppendStarted(upload))
        try:
            await append.run(record)
        except Exception:
            await self._append_ended(
                append, lock, append_request.context
            )  # complete, perhaps: more bytes came than the length allows
            raise
        await self._append_ended(append, lock, append_request.context)
        return append.upload

    async def _append_ended(self, append: Append, lock: Lock, request: RequestContext | None) -> None:
        self._appends.discard(append)
        self._events.publish(AppendEnded(append.upload))
        if append.upload.is_complete:
            self._events.publish(finish_event(append.upload, request))
        elif append.upload.status is Status.FINISHING:
            append.upload = await self._completion.finish(append.upload, lock.token, request)

    def _new_append(self, upload: Upload, append_request: AppendRequest, lock: Lock) -> Append:
        sync = self._options.durability is Durability.ALWAYS or (
            self._options.durability is Durability.COMPLETE and upload.deferred
        )
        verification = append_request.verification
        observer = verification.update if verification is not None else None

        def committed(before: Upload, stored: Upload) -> None:
            received = max(0, stored.offset - before.offset)
            self._events.publish(UploadProgressed(stored, received, append_request.context))

        async def commit(before: Upload, after: Upload, parts: Sequence[UploadPart], whole: bool) -> Upload:
            if whole:
                after = self._completion.completed(after, lock.token)
            elif after.has_all_bytes:
                after = replace(after, status=Status.FINISHING, token=lock.token)
            else:
                after = replace(after, expires_at=self._completion.extended(before), token=lock.token)
            durable = sync or (whole and self._options.durability is not Durability.NEVER)
            stored = await self._state.update(before, after, lock.token, parts=parts, durable=durable)
            if whole:
                await self._completion.save_completion_record(stored)
            committed(before, stored)
            return stored

        writer, last_step = self._writer(upload, observer, lock, committed)
        return Append(
            upload,
            append_request.source,
            writer,
            self._budget,
            self._options,
            commit,
            sync=sync,
            verification=verification,
            last_step=last_step,
        )

    def _writer(
        self, upload: Upload, observer: Observer | None, lock: Lock, committed: Callable[[Upload, Upload], None]
    ) -> tuple[Writer, LastStep | None]:
        """Return the writer, and how to complete the upload in its thread, where that can be done."""
        if self._in_threads is None:
            return self._storage.writer(
                upload, lock.token, observer, unreleased_predecessors=lock.unreleased_predecessors
            ), None
        state, storage = self._in_threads
        writer = storage.writer(upload, lock.token, observer, unreleased_predecessors=lock.unreleased_predecessors)

        durable = self._options.durability is not Durability.NEVER

        def is_with_records(size: int) -> bool:
            return not durable and size <= MAX_SMALL_BODY

        def run(before: Upload, store: Callable[[], Upload], size: int) -> asyncio.Future[Upload]:
            def finish() -> Upload:
                return self._completion.completed(store(), lock.token)

            def conclude(stored: Upload) -> None:
                self._completion.save_completion_record_in_thread(storage, stored)

            def finish_and_update() -> Upload:
                stored = state.update_in_thread(before, finish(), lock.token, durable=durable)
                conclude(stored)
                return stored

            if is_with_records(size):
                return state.update_after(lambda: (before, finish()), lock.token, conclude)
            return storage.run(finish_and_update)

        return writer, LastStep(writer, run, lambda size: None if is_with_records(size) else self._slots, committed)
