"""The history of uploads for administrators: what happened to them, written after it happened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tusd_py.contracts.queries import SupportsHistory
from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import UploadError
from tusd_py.core.history import HistoryEntry
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.interruptions import Interruptions
from tusd_py.events.types import AppendEnded, UploadExpired, UploadProgressed, UploadTerminated

logger = logging.getLogger("tusd_py.uploads")

MAX_WAITING = 1000  # entries that are not written yet; the oldest are dropped
CLOSE_TIMEOUT = 1.0  # seconds


class HistoryRecorder:
    """The writer of the entries of one server. An entry may be lost, as the last ones are in a crash."""

    def __init__(self, events: EventBus, state: StateStore) -> None:
        self._events = events
        self._clock = state.clock
        self._store = state if isinstance(state, SupportsHistory) else None
        self._waiting: deque[tuple[str, HistoryEntry]] = deque(maxlen=MAX_WAITING)
        self._writing: asyncio.Task[None] | None = None
        self._interruptions = Interruptions()
        self._observers: Sequence[tuple[Any, Callable[[Any], object]]] = (
            (UploadProgressed, self._progressed),
            (AppendEnded, self._append_ended),
            (UploadTerminated, self._terminated),
            (UploadExpired, self._expired),
        )

    def open(self) -> None:
        """Observe uploads from now on; do nothing more if this was called before."""
        if self._store is not None:
            for kind, observer in self._observers:
                self._events.unobserve(kind, observer)
                self._events.observe(kind, observer)

    async def close(self) -> None:
        """Observe no more, and write what waits, as far as that is quick."""
        if self._store is not None:
            for kind, observer in self._observers:
                self._events.unobserve(kind, observer)
        if self._writing is not None:
            await asyncio.wait((self._writing,), timeout=CLOSE_TIMEOUT)
            self._writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing

    async def of(self, upload: Upload) -> Sequence[HistoryEntry]:
        """Return the history of an upload, in order of time: what its record tells, and what was written."""
        known = [HistoryEntry("created", upload.created_at, 0, upload.owner, upload.client)]
        if upload.completed_at is not None:
            known.append(HistoryEntry("finished", upload.completed_at, upload.length or 0))
        if self._store is not None:
            known += [entry for entry in await self._store.history(upload.id) if entry.time >= upload.created_at]
        return sorted(known, key=lambda entry: entry.time)

    def add(self, event: str, upload: Upload, request: RequestContext | None = None, code: str = "") -> None:
        """Have an entry written soon."""
        if self._store is None:
            return
        actor, client = ("", "") if request is None else (request.principal or "", request.client)
        entry = HistoryEntry(event, self._clock.wall(), upload.offset, actor, client, code)
        self._waiting.append((upload.id, entry))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        assert self._store is not None
        while self._waiting:
            upload_id, entry = self._waiting.popleft()
            try:
                await self._store.add_history(upload_id, entry)
            except UploadError as error:
                logger.debug("the history of upload %s lacks an entry: %s", upload_id, error.message)

    def _progressed(self, event: UploadProgressed) -> None:
        if event.received and self._interruptions.take(event.upload.id):
            self.add("resumed", replace(event.upload, offset=event.upload.offset - event.received))

    def _append_ended(self, event: AppendEnded) -> None:
        if event.interrupted:
            self._interruptions.add(event.upload.id)
            self.add("interrupted", event.upload)

    def _terminated(self, event: UploadTerminated) -> None:
        self.add("failed" if event.code else "terminated", event.upload, event.request, event.code)

    def _expired(self, event: UploadExpired) -> None:
        self.add("expired", event.upload, event.request)
