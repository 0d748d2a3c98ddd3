"""Appends of small bodies that have arrived as a whole: one job of one thread, from the record to its change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.state import UpdatesInThreads
from tusd_py.contracts.storage import Buffer, StoresInThreads
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import AppendEnded, AppendStarted, EventBus, UploadProgressed, finish_event
from tusd_py.transfer.budget import ByteBudget
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.options import Durability, UploadOptions
from tusd_py.uploads.validation import AppendRequest

logger = logging.getLogger("tusd_py.uploads")

MAX_SMALL_BODY = 64 << 10  # bytes that the thread of the records may write


class NotSimpleError(Exception):
    """Something speaks against the short way; the long one finds out and tells what it is."""


class SmallAppends:
    """The short way of appends that need no sync. Every special case is left to `Append`, as if it came just now."""

    def __init__(
        self,
        state: UpdatesInThreads,
        storage: StoresInThreads,
        events: EventBus,
        budget: ByteBudget,
        options: UploadOptions,
        completion: Completion,
        refuse_when_draining: Callable[[], None],
    ) -> None:
        self._state = state
        self._storage = storage
        self._events = events
        self._budget = budget
        self._options = options
        self._completion = completion
        self._refuse_when_draining = refuse_when_draining

    async def append(self, lock: Lock, request: AppendRequest) -> Upload | None:
        """Append, while the caller holds the lock; None if that was not to be, and nothing has changed."""
        body = request.source.arrived
        if (
            not body
            or len(body) > MAX_SMALL_BODY
            or request.verification is not None
            or request.length is not None
            or self._options.durability is not Durability.NEVER
            or lock.record is not None
            or not self._budget.try_reserve(len(body))
        ):
            return None
        try:
            before, upload = await self._store(lock, request.offset, body)
        except Exception as error:
            logger.debug("upload %s is appended to the long way: %s", lock.upload_id, error)
            return None
        finally:
            self._budget.release(len(body))
        await request.source.read()  # returns at once: the body is used now
        self._tell(before, upload, request.context)
        return upload

    async def _store(self, lock: Lock, offset: int, body: Buffer) -> tuple[Upload, Upload]:
        """The records before and after."""
        now = self._completion.steady()
        before: Upload | None = None

        def store() -> tuple[Upload, Upload]:
            nonlocal before
            before = self._state.get_in_thread(lock.upload_id)
            if before is None or not _is_simple(before, lock, offset, len(body), now):
                raise NotSimpleError
            self._storage.writer(before, lock.token).finish_in_thread((body,))
            return before, self._changed(before, offset + len(body), lock.token)

        def conclude(stored: Upload) -> None:
            if stored.is_complete:
                self._completion.remember_in_thread(self._storage, stored)

        def run(step: Callable[[], tuple[Upload, Upload]]) -> asyncio.Future[Upload]:
            return self._state.update_after(step, lock.token, conclude)

        self._refuse_when_draining()
        after = await self._storage.elsewhere(run, store)
        assert before is not None
        return before, after

    def _changed(self, before: Upload, offset: int, token: int) -> Upload:
        if offset == before.length:
            return self._completion.completed(replace(before, offset=offset), token)
        return replace(before, offset=offset, expires_at=self._completion.extended(before), token=token)

    def _tell(self, before: Upload, upload: Upload, request: RequestContext | None) -> None:
        self._events.publish(AppendStarted(before))
        self._events.publish(UploadProgressed(upload, upload.offset - before.offset, request))
        self._events.publish(AppendEnded(upload))
        if upload.is_complete:
            self._events.publish(finish_event(upload, request))


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
