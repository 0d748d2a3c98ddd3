"""Records in the memory of one process, for tests and examples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from tusd_py.backends.memory.outbox import MemoryOutbox
from tusd_py.core.clock import Clock, SystemClock
from tusd_py.core.errors import BrokenRecord, LockLost, UploadExists
from tusd_py.core.listing import EVERYTHING, MAX_SCANNED, Page, UploadFilter, next_page
from tusd_py.core.outbox import OutboxEvent
from tusd_py.core.quotas import (
    Usage,
    check_growth,
    check_new,
    counted_bytes,
    growth,
    has_quota,
    is_open,
    replaces_partials,
    returns_partials,
)
from tusd_py.core.upload import Status, Upload, UploadPart


@dataclass(slots=True)
class MemoryRecords:
    """The content of a store; stores that share this object have the same records."""

    uploads: dict[str, Upload] = field(default_factory=dict)
    parts: dict[str, dict[int, UploadPart]] = field(default_factory=dict)  # by upload id, then by number
    waiting: dict[str, dict[str, None]] = field(default_factory=dict)  # ids of final uploads by that of a partial one
    metadata: dict[str, str] = field(default_factory=dict)
    outbox: MemoryOutbox = field(default_factory=MemoryOutbox)


class MemoryState:
    """A state store in the memory of this process.

    Example::

        tus = TusServer(storage=MemoryStorage(), state=MemoryState(), locker=MemoryLocker())

    Invariant: no method waits between reading a record and changing it, so that changes are atomic.
    """

    def __init__(self, records: MemoryRecords | None = None, clock: Clock | None = None) -> None:
        """Keep the records in `records` if given; stores with the same object have the same records."""
        self._records = MemoryRecords() if records is None else records
        self.enforces_quotas = True
        self.clock: Clock = clock or SystemClock()

    async def ping(self) -> None:
        """See `StateStore.ping`."""

    async def refresh_clock(self) -> None:
        """See `StateStore.refresh_clock`."""

    async def open(self) -> None:
        """See `StateStore.open`."""

    async def close(self) -> None:
        """See `StateStore.close`."""

    @property
    def outbox(self) -> MemoryOutbox:
        """See `SupportsOutbox.outbox`."""
        return self._records.outbox

    async def create(self, upload: Upload, *, durable: bool = False, events: Sequence[OutboxEvent] = ()) -> None:
        """See `StateStoreWithOutbox.create`."""
        if upload.id in self._records.uploads:
            raise UploadExists
        if self.enforces_quotas and has_quota(upload):
            check_new(upload, self._usage_of(upload.owner))
        stamped = upload if upload.updated_at is not None else replace(upload, updated_at=self.clock.wall())
        self._records.uploads[upload.id] = stamped
        self._records.outbox.add(events)

    async def get(self, upload_id: str) -> Upload | None:
        """See `StateStore.get`."""
        return self._records.uploads.get(upload_id)

    async def update(
        self,
        before: Upload,
        after: Upload,
        token: int,
        *,
        parts: Sequence[UploadPart] = (),
        durable: bool = False,
        events: Sequence[OutboxEvent] = (),
        partials_until: float | None = None,
    ) -> Upload:
        """See `StateStoreWithOutbox.update`, `SupportsQuotas.update`."""
        found = self._records.uploads.get(before.id)
        if found is None or found.token > token:
            raise LockLost
        if (found.offset, found.status) != (before.offset, before.status):
            raise LockLost
        joins = replaces_partials(before, after)
        partials = self._partials_of(after) if joins or returns_partials(before, after) else []
        grows = growth(before, after) - sum(counted_bytes(one) for one in partials if one.owner == after.owner)
        if grows > 0 and self.enforces_quotas:
            check_growth(after, grows, self._usage_of(after.owner))
        for partial in partials:
            expires_at = _earlier(partial.expires_at, partials_until) if joins else partial.expires_at
            self._records.uploads[partial.id] = replace(partial, uncounted=joins, expires_at=expires_at)
        uncounted = after.uncounted or (found.uncounted and found.is_partial)
        stored = replace(after, token=token, uncounted=uncounted, updated_at=self.clock.wall())
        self._records.uploads[before.id] = stored
        if stored.is_complete:
            self._records.parts.pop(before.id, None)
        elif parts:
            self._records.parts.setdefault(before.id, {}).update((part.number, part) for part in parts)
        self._records.outbox.add(events)
        return stored

    async def usage_of(self, owner: str) -> Usage:
        """See `SupportsQuotas.usage_of`. Adds up all records, which a store of many records must not."""
        return self._usage_of(owner)

    def _usage_of(self, owner: str) -> Usage:
        uploads = [upload for upload in self._records.uploads.values() if upload.owner == owner]
        return Usage(sum(map(counted_bytes, uploads)), sum(map(is_open, uploads)))

    def _partials_of(self, final: Upload) -> list[Upload]:
        found = [self._records.uploads.get(partial_id) for partial_id in dict.fromkeys(final.partial_ids)]
        return [partial for partial in found if partial is not None and partial.is_partial]

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """See `StateStore.parts`."""
        parts = self._records.parts.get(upload_id, {})
        return [parts[number] for number in sorted(parts)]

    async def delete(self, upload_id: str, token: int) -> None:
        """See `StateStore.delete`."""
        found = self._records.uploads.get(upload_id)
        if found is not None and found.token > token:
            raise LockLost
        self._records.uploads.pop(upload_id, None)
        self._records.parts.pop(upload_id, None)

    async def due(self, now: float, limit: int, *, skip: int = 0) -> Sequence[Upload]:
        """See `StateStore.due`."""
        due = [upload for upload in self._records.uploads.values() if _is_due(upload, now)]
        return due[skip : skip + limit]

    async def add_waiting(self, partial_id: str, final_id: str) -> None:
        """See `StateStore.add_waiting`."""
        self._records.waiting.setdefault(partial_id, {})[final_id] = None

    async def waiting_for(self, partial_id: str, limit: int) -> Sequence[str]:
        """See `StateStore.waiting_for`."""
        return [*self._records.waiting.get(partial_id, ())][:limit]

    async def remove_waiting(self, partial_id: str, final_ids: Sequence[str]) -> None:
        """See `StateStore.remove_waiting`."""
        waiting = self._records.waiting.get(partial_id, {})
        for final_id in final_ids:
            waiting.pop(final_id, None)
        if not waiting:
            self._records.waiting.pop(partial_id, None)

    async def read_metadata(self, name: str) -> str | None:
        """See `StateStore.read_metadata`."""
        return self._records.metadata.get(name)

    async def write_metadata(self, name: str, value: str, *, before: str | None) -> bool:
        """See `StateStore.write_metadata`."""
        if self._records.metadata.get(name) != before:
            return False
        self._records.metadata[name] = value
        return True

    async def list(self, *, after: str = "", limit: int = 100, condition: UploadFilter = EVERYTHING) -> Page:
        """See `StateStore.list`. Sorts all ids, which a store of many records must not."""
        ids = sorted(self._records.uploads)
        start = bisect_right(ids, after)
        end = start + max(limit + 1, MAX_SCANNED)
        records = ((upload_id, self._records.uploads[upload_id]) for upload_id in ids[start:end])
        return next_page(records, limit, condition, last=end >= len(ids))

    async def all(self) -> AsyncIterator[Upload]:
        """See `StateStore.all`."""
        for upload in [*self._records.uploads.values()]:
            yield upload

    async def broken(self) -> AsyncIterator[BrokenRecord]:
        """See `StateStore.broken`; no record in memory is broken."""
        errors: tuple[BrokenRecord, ...] = ()
        for error in errors:
            yield error


def _earlier(one: float | None, other: float | None) -> float | None:
    """Return the earlier of two times, of which None is never."""
    return min((time for time in (one, other) if time is not None), default=None)


def _is_due(upload: Upload, now: float) -> bool:
    if upload.expires_at is not None and upload.expires_at <= now:
        return True
    return upload.status is Status.FINISHING and not upload.is_waiting
