"""Questions of administrators about the records in Redis (`contracts/queries.py`).

Lists by creation time go along an index. For every other order, and where there are no indexes yet, one field of every
record is read, in slices with pauses between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.created_index import CreatedIndex, read_fields
from tusd_py.backends.redis.id_index import IdIndex
from tusd_py.backends.redis.records import RedisRecords
from tusd_py.backends.redis.schema import Keys
from tusd_py.core.history import MAX_ENTRIES, HistoryEntry, decode_entry
from tusd_py.core.queries import (
    Counting,
    Position,
    QueryPage,
    Share,
    TopUploads,
    Totals,
    UploadQuery,
    follows,
    page_of,
)
from tusd_py.core.upload import Status, Upload, is_upload_id

SLICE = 200  # records read in one round trip
FIELDS_SLICE = 500  # records of which some fields are read in one round trip
QUICK_RECORDS = 10_000  # that are read without pauses
PAUSE = 0.005  # seconds after a slice beyond these
MAX_LOOKED_AT = 2000  # records that are looked at for one page along an index
HISTORY_TTL = 30 * 86400  # seconds after the last entry
NEW_ENTRY_AGE = 60.0  # seconds within which the record of a new entry may still be missing
COUNTED_FIELDS = ("id", "created_at", "status", "owner", "offset")


class RedisQueries:
    """The queries of the records below one prefix."""

    def __init__(
        self, connection: RedisConnection, keys: Keys, records: RedisRecords, ids: IdIndex, created: CreatedIndex
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._records = records
        self._ids = ids
        self._created = created

    async def find(self, query: UploadQuery) -> QueryPage:
        """Return a page of records, see `SupportsQueries.find`."""
        if query.order == "created_at" and await self._created.is_ready():
            return await self._find_by_creation(query)
        top = TopUploads(query)
        fields = tuple(dict.fromkeys(("id", "created_at", "status", "owner", query.order)))
        async for upload in self._all(fields):
            top.add(upload)
        page = top.page()
        return QueryPage(tuple(await self._records.readable([upload.id for upload in page.uploads])), page.next)

    async def totals(self) -> Totals:
        """Count the records, see `SupportsQueries.totals`."""
        counting = Counting()
        async for upload in self._all(COUNTED_FIELDS):
            counting.add(upload.status, upload.owner, Share(1, upload.offset), upload.created_at)
        return counting.totals()

    async def add_history(self, upload_id: str, entry: HistoryEntry) -> None:
        """Add an entry to the history of an upload that has a record, see `SupportsHistory.add_history`."""
        if await self._redis.command("EXISTS", self._keys.record(upload_id)):
            key = self._keys.history(upload_id)
            await self._redis.commands(
                ("RPUSH", key, entry.encode()), ("LTRIM", key, -MAX_ENTRIES, -1), ("EXPIRE", key, HISTORY_TTL)
            )

    async def history(self, upload_id: str) -> Sequence[HistoryEntry]:
        """Return the entries of an upload, see `SupportsHistory.history`."""
        texts: Sequence[str] = await self._redis.command("LRANGE", self._keys.history(upload_id), 0, -1)
        return [entry for text in texts if (entry := decode_entry(text)) is not None]

    async def _all(self, fields: Sequence[str]) -> AsyncIterator[Upload]:
        """Yield every record with these fields; the others have their defaults."""
        await self._ids.repair()
        last, count = "", 0
        while ids := await self._ids.after(last, FIELDS_SLICE):
            for upload_id, values in zip(ids, await read_fields(self._redis, self._keys, ids, fields), strict=True):
                known = {name: value for name, value in zip(fields, values, strict=True) if value is not None}
                if isinstance(upload := self._records.decode(upload_id, known), Upload):
                    yield upload
            last, count = ids[-1], count + len(ids)
            if count > QUICK_RECORDS:
                await asyncio.sleep(PAUSE)

    async def _find_by_creation(self, query: UploadQuery) -> QueryPage:
        """Return a page along an index, a short one after `MAX_LOOKED_AT` records."""
        index, after, looked_at = self._index_of(query), query.after, 0
        found: list[Upload] = []
        while True:
            entries = await self._entries(index, replace(query, after=after), min(query.limit + 1, SLICE))
            if not entries:
                return page_of(found, query)
            found += await self._matching(index, entries, query)
            after, looked_at = entries[-1], looked_at + len(entries)
            if len(found) > query.limit:
                return page_of(found, query)
            if looked_at >= MAX_LOOKED_AT:
                return QueryPage(tuple(found), after)

    def _index_of(self, query: UploadQuery) -> str:
        condition = query.condition
        if condition.owner:
            return self._keys.created_by(condition.owner)
        return self._keys.created if condition.status in (None, Status.COMPLETE) else self._keys.unfinished

    async def _entries(self, index: str, query: UploadQuery, count: int) -> Sequence[Position]:
        """Return up to `count` entries of an index that follow `query.after`; none at the end."""
        low, high = _limits(query)
        limits = (high, low, "BYSCORE", "REV") if query.descending else (low, high, "BYSCORE")
        skip = 0
        while True:
            words = ("ZRANGE", index, *limits, "LIMIT", skip, count + 1, "WITHSCORES")
            entries: list[tuple[str, float]] = await self._redis.command(*words)
            positions = [Position(float(score), upload_id) for upload_id, score in entries if is_upload_id(upload_id)]
            found = [place for place in positions if follows(place, query.after, descending=query.descending)]
            if found or len(entries) <= count:
                return found[:count]
            skip += len(entries)  # many uploads were created at the very time of the last one

    async def _matching(self, index: str, entries: Sequence[Position], query: UploadQuery) -> Sequence[Upload]:
        """Return the records of entries that match the condition; take out entries that are wrong."""
        statuses = await self._statuses(entries)
        wanted = query.condition.status
        ids = [entry.id for entry in entries if statuses[entry.id] is not None]
        if wanted is not None:
            ids = [upload_id for upload_id in ids if statuses[upload_id] == wanted]
        uploads = {upload.id: upload for upload in await self._records.readable(ids)}
        wrong = [entry.id for entry in entries if self._is_wrong(index, entry, statuses[entry.id])]
        self._created.correct(index, wrong)
        found = [uploads[entry.id] for entry in entries if entry.id in uploads]
        return [upload for upload in found if query.condition.matches(upload)]

    async def _statuses(self, entries: Sequence[Position]) -> Mapping[str, str | None]:
        ids = [entry.id for entry in entries]
        found = await read_fields(self._redis, self._keys, ids, ["status"])
        return {upload_id: status for upload_id, (status,) in zip(ids, found, strict=True)}

    def _is_wrong(self, index: str, entry: Position, status: str | None) -> bool:
        """Return whether an entry belongs in its index no more. In a cluster it is older than its record."""
        if status is None:
            return _time_of(entry) < self._redis.clock.wall() - NEW_ENTRY_AGE
        return status == Status.COMPLETE and index == self._keys.unfinished


def _limits(query: UploadQuery) -> tuple[str, str]:
    """Return the lowest and the highest score of the entries that may follow `query.after`."""
    condition = query.condition
    low = "-inf" if condition.created_after is None else f"({condition.created_after!r}"
    high = "+inf" if condition.created_before is None else f"({condition.created_before!r}"
    if query.after is None:
        return low, high
    time = _time_of(query.after)
    if query.descending:
        reached = condition.created_before is None or time < condition.created_before
        return low, repr(time) if reached else high
    reached = condition.created_after is None or time > condition.created_after
    return repr(time) if reached else low, high


def _time_of(position: Position) -> float:
    """Return the creation time in a place of a list by creation."""
    assert isinstance(position.key, int | float)
    return float(position.key)
