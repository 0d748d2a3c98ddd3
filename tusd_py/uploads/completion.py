"""The completion of uploads, in the one place where a record becomes `complete`.

Four steps, in this order: the bytes are stored and, unless the durability is `never`, synced; the record is changed,
which fails if the lock was lost; the completion record is saved; the event is published. An append, a small append, a
recovery and a concatenation come here with their bytes stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tusd_py.contracts.hooks import HookType
from tusd_py.core.errors import (
    CompletionDelayed,
    OffsetMismatch,
    PartBehind,
    PartialLost,
    StorageBehind,
    UploadError,
    UploadNotFound,
)
from tusd_py.core.outbox import EventType, OutboxEvent
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadPart, changed
from tusd_py.events.types import finish_event
from tusd_py.uploads.components import Components, ThreadPair
from tusd_py.uploads.concatenation import is_part, with_length
from tusd_py.uploads.content_checks import ContentChecks
from tusd_py.uploads.decisions import Decisions
from tusd_py.uploads.event_log import EventLog
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.record_reader import RecordReader

logger = logging.getLogger("tusd_py.uploads")

REOPEN_TIMEOUT = 1.0  # seconds that a completion waits for the lock of a partial upload that has lost bytes


class Completion:
    """The commits of appends and the completion of uploads. The caller holds the lock, and gives its token."""

    def __init__(
        self,
        components: Components,
        lifetimes: Lifetimes,
        records: RecordReader,
        event_log: EventLog,
        decisions: Decisions,
        checks: ContentChecks,
        quotas: Quotas,
    ) -> None:
        self._decisions = decisions
        self._quotas = quotas
        self.checks = checks
        # Whether the application decides about every completion: appends end in `finishing`, and `finish` asks.
        self._asks_first = decisions.asks(HookType.PRE_FINISH)
        self._components = components
        self._state = components.state
        self._storage = components.storage
        self._syncs = components.syncs_completion
        self._clock = components.clock
        self._lifetimes = lifetimes
        self._records = records
        self.event_log = event_log

    def decides(self, upload: Upload) -> bool:
        """Return whether an upload with all its bytes may be rejected, by the application or by a check."""
        return self._asks_first or self.checks.applies_to(upload)

    # The records.

    def ended(self, upload: Upload, token: int, *, offset: int | None = None, synced: int | None = None) -> Upload:
        """Return the record of an upload that an append has ended, and for which the storage has nothing left to do.

        Args:
            upload: the upload.
            token: the token of the lock.
            offset: its offset, if that is another one.
            synced: its number of synced bytes, if that is another one once it is complete.

        Returns:
            The record of a complete upload, which counts the event of its completion, or of one in `finishing` if its
            bytes are to be checked, or the application to be asked first.
        """
        if self.decides(upload):
            return changed(
                upload, offset=upload.offset if offset is None else offset, status=Status.FINISHING, token=token
            )
        return self._completed(upload, token, offset=offset, synced=synced)

    def _completed(self, upload: Upload, token: int, *, offset: int | None = None, synced: int | None = None) -> Upload:
        now = self._clock.wall()
        return changed(
            upload,
            offset=upload.offset if offset is None else offset,
            synced=upload.synced if synced is None else synced,
            status=Status.COMPLETE,
            completed_at=now,
            expires_at=self._lifetimes.of_complete(upload, now),
            token=token,
            event_sequence=self.event_log.number(EventType.FINISHED, upload.event_sequence),
        )

    def advanced(self, upload: Upload, before: Upload, token: int) -> Upload:
        """Return the record of an upload after an append that has not completed it.

        An upload that has lost bytes is active again, also if all of them were committed before.
        """
        if upload.has_all_bytes:
            return changed(upload, status=Status.FINISHING, token=token)
        return changed(upload, status=Status.ACTIVE, expires_at=self._lifetimes.extended(before), token=token)

    # The steps.

    async def commit(
        self,
        before: Upload,
        after: Upload,
        token: int,
        parts: Sequence[UploadPart] = (),
        *,
        finished: bool,
        sync: bool,
        request: RequestContext | None,
    ) -> Upload:
        """Replace the record `before` by `after`, for an append; return it as committed.

        Args:
            before: the record as committed.
            after: the upload with the bytes that are stored now.
            token: the token of the lock.
            parts: new parts of the part list.
            finished: whether the storage has finished, so that the upload becomes complete, see `ended`.
            sync: let the change survive a power cut, even if the upload does not become complete.
            request: the request that brought the bytes, if there is one.
        """
        after = self.ended(after, token) if finished else self.advanced(after, before, token)
        if after.is_complete:
            return await self._commit_complete(before, after, token, parts, request)
        return await self._state.update(before, after, token, parts=parts, durable=sync)

    async def _commit_complete(
        self,
        before: Upload,
        complete: Upload,
        token: int,
        parts: Sequence[UploadPart],
        request: RequestContext | None,
    ) -> Upload:
        complete = await self.event_log.update(
            before, complete, token, EventType.FINISHED, request, parts=parts, durable=self._syncs
        )
        await self.save_completion_record(complete)
        return complete

    async def save_completion_record(self, complete: Upload) -> None:
        """Save the completion record of a complete upload, if the storage keeps one.

        Call it after the state store has accepted the complete upload: that change fails if the lock was lost.
        """
        records = self._components.completion_records
        if records is not None and not complete.is_partial:
            try:
                await records.save_completion_record(complete)
            except UploadError as error:  # the upload is complete all the same
                _warn_of_missing_completion_record(complete, error)

    def publish(self, complete: Upload, request: RequestContext | None) -> None:
        """Publish the event of a complete upload, and tell the delivery that it may have been stored."""
        self.event_log.notify()
        self._components.events.publish(finish_event(complete, request))

    async def conclude(self, upload: Upload, token: int, request: RequestContext | None) -> Upload:
        """Publish the completion of an upload after an append, or finish the upload; return it."""
        if upload.is_complete:
            self.publish(upload, request)
        elif upload.status is Status.FINISHING:
            return await self.finish(upload, token, request)
        return upload

    async def finish(self, upload: Upload, token: int, request: RequestContext | None = None) -> Upload:
        """Complete an upload in `finishing`, whose bytes are all stored; it stays in `finishing` if that fails.

        Raises:
            CompletionDelayed: a sync has failed, and no byte is lost.
            ContentRefused: the upload does not fulfil its conditions, and has been removed.
            HookRejected: the application does not want the upload, which has been removed.
            HookUnavailable: the application could not be asked, or the upload not be scanned.
            OffsetMismatch: bytes were lost; the upload is active again at the offset where they end.
        """
        try:
            finished = await (
                self._assemble(upload, token, request)
                if upload.is_final and not upload.storage_state  # with one it was found, perhaps without its parts
                else self._finish_in_storage(upload, token, request)
            )
        except StorageBehind as error:
            if error.stored >= upload.offset:  # no byte is lost, as they were synced before: the next one tries again
                raise CompletionDelayed from error
            back = replace(upload.at(error.stored), status=Status.ACTIVE, expires_at=self._lifetimes.extended(upload))
            await self._state.update(upload, back, token)
            raise OffsetMismatch(error.stored) from error
        complete = await self._commit_complete(upload, self._completed(finished, token), token, (), request)
        self.checks.ended(complete)
        if complete.is_final:
            await self._limit_lifetimes(complete)
        await self._storage.discard_superseded(upload)
        self.publish(complete, request)
        return complete

    async def _finish_in_storage(self, upload: Upload, token: int, request: RequestContext | None) -> Upload:
        was_judged = await self.checks.judge_seen(upload, token, request)
        parts = await self._state.parts(upload.id) if upload.storage_state else ()
        storage_state = await self._storage.finish(upload, parts, sync=self._syncs)
        if storage_state == upload.storage_state:
            upload = await self._note_sync(upload, token)
        finished = replace(upload, storage_state=storage_state)
        if not was_judged:
            await self.checks.judge_stored(upload, finished, token, request)
        await self.checks.scan(upload, finished, token, request)
        await self._decisions.on_completion(upload, finished, token, request, self._storage.read)
        return finished

    async def _note_sync(self, upload: Upload, token: int) -> Upload:
        """Record that all bytes of an upload in `finishing` are synced, where a power cut takes others; return it.

        The answer of the application, or of the scanner, may take hours.
        """
        if not self._syncs or upload.synced == upload.offset or self._components.whole_syncs is None:
            return upload
        return await self._state.update(upload, replace(upload, synced=upload.offset), token)

    # Final uploads.

    async def _assemble(self, final: Upload, token: int, request: RequestContext | None) -> Upload:
        """Concatenate the partial uploads; return the final one with its length.

        The application is asked first: what was put together is not kept until the record is complete.
        """
        concatenation = self._components.concatenation
        assert concatenation is not None
        found = {partial_id: await self._part_of(final, partial_id) for partial_id in dict.fromkeys(final.partial_ids)}
        partials = [found[partial_id] for partial_id in final.partial_ids]
        stored, final = final, with_length(final, partials, self._components.options)
        await self._quotas.admit_final(final, partials)
        await self.checks.judge_parts(stored, final, partials, token, request)
        await self._decisions.on_completion(stored, final, token, request)
        try:
            storage_state = await concatenation.concatenate(final, partials, sync=self._syncs)
        except PartBehind as error:
            await self._reopen(error, partials)
            raise PartialLost(error.upload_id, error.stored) from error
        return replace(final, storage_state=storage_state)

    async def _part_of(self, final: Upload, partial_id: str) -> Upload:
        partial = await self._records.get(partial_id)
        if not is_part(final, partial):
            raise UploadNotFound
        return partial

    async def _limit_lifetimes(self, final: Upload) -> None:
        """Let the partial uploads of a final one expire after `partial_retention`, unless the state store has done so.

        One that counts no more is limited in the step that completes the final upload (`SupportsQuotas.update`).
        """
        grace_end = self._clock.wall() + self._components.options.partial_retention
        for partial_id in dict.fromkeys(final.partial_ids):
            with contextlib.suppress(UploadError):  # the partial upload was terminated, or is about to be
                partial = await self._state.get(partial_id)
                if partial is not None and (partial.expires_at is None or partial.expires_at > grace_end):
                    await self._state.update(partial, replace(partial, expires_at=grace_end), partial.token)

    async def _reopen(self, error: PartBehind, partials: Sequence[Upload]) -> None:
        """Reopen a complete partial upload at the offset where its bytes end, since its storage has lost the rest."""
        partial = next(partial for partial in partials if partial.id == error.upload_id)
        back = replace(
            partial.at(error.stored),
            status=Status.ACTIVE,
            completed_at=None,
            expires_at=self._lifetimes.extended(partial),
        )
        with contextlib.suppress(UploadError):  # another request uses, or has changed, the partial upload
            # Under its lock: each lock since its completion has made the token of its record too old for a change.
            lock = await self._components.locker.acquire(partial.id, NonInterruptibleHolder(), REOPEN_TIMEOUT)
            try:
                await lock.raise_token(partial.token)
                await self._state.update(partial, back, lock.token)
            finally:
                await lock.release()


@dataclass(frozen=True, slots=True)
class RecordChange:
    """The circumstances of a change of a record, as far as they are known before the bytes are stored.

    Attributes:
        token: the token of the lock.
        request: the request that brings the bytes, if there is one.
        new: a record to add before the change; None if the record exists.
        new_events: events to store with the record `new`.
    """

    token: int
    request: RequestContext | None
    new: Upload | None = None
    new_events: Sequence[OutboxEvent] = ()


class ThreadedCompletion:
    """Commits in the thread that has stored the bytes: the same steps, without the event."""

    def __init__(self, pair: ThreadPair, completion: Completion, *, syncs: bool) -> None:
        """Sync complete uploads if `syncs` is set."""
        self.state = pair.state
        self.storage = pair.storage
        self.syncs = syncs
        self.completion = completion

    def commit(self, before: Upload, after: Upload, change: RecordChange) -> Upload:
        """Replace the record `before`, which exists, by `after`. Blocks."""
        events = self._events_of(after, change.request)
        durable = self.syncs and after.is_complete
        upload = self.state.update_in_thread(before, after, change.token, durable=durable, events=events)
        self._save_completion_record(upload)
        return upload

    def commit_after(self, store: Callable[[], tuple[Upload, Upload]], change: RecordChange) -> asyncio.Future[Upload]:
        """Call `store` in a thread of the state store, and replace its first record by its second.

        The new record of the change, if there is one, is added before that.
        """

        def store_and_tell() -> tuple[Upload, Upload, Sequence[OutboxEvent]]:
            before, after = store()
            return before, after, self._events_of(after, change.request)

        return self.state.update_after(
            store_and_tell,
            change.token,
            self._save_completion_record,
            new=change.new,
            new_events=change.new_events,
            durable=self.syncs,
        )

    def _events_of(self, after: Upload, request: RequestContext | None) -> Sequence[OutboxEvent]:
        """Return the event of the completion of a record, if it is complete and a sink gets such events."""
        return self.completion.event_log.events_of(EventType.FINISHED, after, request) if after.is_complete else ()

    def _save_completion_record(self, upload: Upload) -> None:
        if upload.is_complete and not upload.is_partial:
            try:
                self.storage.save_completion_record_in_thread(upload)
            except UploadError as error:  # the upload is complete all the same
                _warn_of_missing_completion_record(upload, error)


def _warn_of_missing_completion_record(complete: Upload, error: UploadError) -> None:
    logger.warning("completion record of upload %s could not be saved: %s", complete.id, error.message)
