"""Records in Redis, shared by any number of hosts; `schema.py` lists the keys.

All keys of one upload are in one hash slot. A change is one script, which compares the fencing token, the offset and
the status before it writes. The locker keeps the latest token that it gave out in the same record.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from tusd_py.backends.redis.connection import RETRY_DEADLINE, RedisConnection
from tusd_py.backends.redis.created_index import CreatedIndex
from tusd_py.backends.redis.due_index import DueIndex
from tusd_py.backends.redis.id_index import IdIndex
from tusd_py.backends.redis.outbox import RedisOutbox
from tusd_py.backends.redis.queries import RedisQueries
from tusd_py.backends.redis.records import RedisRecords
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import (
    CREATE,
    CREATE_INDEXED,
    DELETE,
    END,
    TAKE_RATE,
    UPDATE,
    WRITE_METADATA,
    Script,
)
from tusd_py.backends.redis.usage import ATTEMPTS, NO_CLUSTER, OwnerUsage
from tusd_py.core.clock import Clock
from tusd_py.core.errors import BrokenRecord, LockLost, StateUnavailable, UploadExists
from tusd_py.core.history import HistoryEntry
from tusd_py.core.listing import EVERYTHING, MAX_SCANNED, Page, UploadFilter, next_page
from tusd_py.core.outbox import OutboxEvent
from tusd_py.core.queries import QueryPage, Totals, UploadQuery
from tusd_py.core.quotas import (
    Usage,
    bytes_exceeded,
    growth,
    has_quota,
    is_open,
    needed_bytes,
    replaces_partials,
    returns_partials,
    uploads_exceeded,
)
from tusd_py.core.upload import Upload, UploadPart, changed
from tusd_py.core.upload_codec import encode_upload

PAGE_SIZE = 200  # records fetched at once
REPAIR_INTERVAL = 6 * 3600.0  # seconds between two comparisons of the index with the records
CREATION_NOTE_TTL = 4000  # milliseconds; longer than Redis takes an attempt of a creation (`deadline.lua`)
WAITING_TTL = 86400  # seconds; the sweeper looks at a waiting final upload, and notes it again, every hour
ALWAYS_SET = ("token", "length")  # the length also where Redis has lost the change that declared it


class RedisState:
    """The state store of several hosts, see `StateStore`."""

    def __init__(self, connection: RedisConnection, prefix: str = "tus:", timeout: float = RETRY_DEADLINE) -> None:
        """Create the store, without I/O.

        Args:
            connection: opened and closed with the store; may be shared.
            prefix: beginning of all keys.
            timeout: seconds for which a change of a record is retried; an append waits as long for Redis.
        """
        self._redis = connection
        self._keys = Keys(prefix)
        self._timeout = timeout
        self._records = RedisRecords(connection, self._keys)
        self._id_index = IdIndex(connection, self._keys)
        self._created_index = CreatedIndex(connection, self._keys, self._id_index)
        self._due_index = DueIndex(connection, self._keys, self._records, self._id_index, self._created_index)
        self._queries = RedisQueries(connection, self._keys, self._records, self._id_index, self._created_index)
        self.outbox = RedisOutbox(connection, self._keys)
        self._usage = OwnerUsage(connection, self._keys)
        self.enforces_quotas = True

    @property
    def clock(self) -> Clock:
        """The clock of Redis."""
        return self._redis.clock

    async def refresh_clock(self) -> None:
        """Ask Redis for the time."""
        await self._redis.ask_for_time()

    async def open(self) -> None:
        """Connect, unless another user of the connection has done so."""
        self._usage = OwnerUsage(self._redis, self._keys)
        await self._redis.open()
        await self._created_index.look()

    async def close(self) -> None:
        """Disconnect, unless the connection has other users."""
        await self._created_index.close()
        await self._redis.close()

    async def ping(self) -> None:
        """Read a key, see `StateStore.ping`."""
        await self._redis.command("EXISTS", self._keys.metadata)

    async def take_rate(self, name: str, seconds: float, burst: float, *, refuse: bool) -> float:
        """Take a share of a rate of all hosts, see `CountsRates.take_rate`."""
        # Rounded up, the last share of a burst would be refused; as nothing, every share would be taken.
        share = max(1, int(seconds * 1e6)) if seconds else 0
        arguments = [share, int(burst * 1e6), int(refuse)]
        return int(await self._redis.run(TAKE_RATE, [self._keys.rate(name)], arguments)) / 1e6

    def _upload_keys(self, upload_id: str) -> list[str]:
        """Return the keys of the scripts that change a record, with the usage unless that is in another slot."""
        keys = [self._keys.record(upload_id), self._keys.parts(upload_id)]
        return keys if self._redis.is_cluster else [*keys, self._keys.usage]

    async def create(self, upload: Upload, *, durable: bool = False, events: Sequence[OutboxEvent] = ()) -> None:
        """Add a record, see `StateStoreWithOutbox.create`."""
        values = {"updated_at": repr(self.clock.wall())} | encode_upload(upload)  # one that is given stays
        arguments: list[Any] = [secrets.token_hex(8), *(word for pair in values.items() for word in pair)]
        arguments.insert(0, repr(upload.created_at))
        keys = [self._keys.record(upload.id), self._keys.removed_creation(upload.id)]
        await self._created_index.forget(upload.id)
        if self._redis.is_cluster:  # the indexes are in other slots than the record
            if self.enforces_quotas and has_quota(upload):
                raise StateUnavailable(NO_CLUSTER)
            await self._index_new(upload)
            added = await self._change(CREATE, keys, arguments, events)
        else:
            score = self._due_index.score(upload)
            keys += [self._keys.ids, self._keys.due, self._keys.usage, *self._created_index.keys_of(upload)]
            arguments = [*self._quota_of(upload), upload.id, score or "", *arguments]
            added = await self._counted_change(upload, CREATE_INDEXED, keys, arguments, events)
        if not added:
            raise UploadExists

    def _quota_of(self, upload: Upload) -> list[Any]:
        """Return the arguments of `CREATE_INDEXED` that it judges the usage by."""
        limits = (upload.quota_bytes, upload.quota_uploads) if self.enforces_quotas else (None, None)
        words = ["" if limit is None else limit for limit in limits]
        return [*words, needed_bytes(upload), int(is_open(upload)), upload.owner]

    async def usage_of(self, owner: str) -> Usage:
        """Return what an owner has, see `SupportsQuotas.usage_of`."""
        return await self._usage.of(owner)

    async def get(self, upload_id: str) -> Upload | None:
        """Return a record, see `StateStore.get`."""
        return await self._records.get(upload_id)

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
        """Replace a record in one script, see `StateStoreWithOutbox.update`, `SupportsQuotas.update`."""
        stored = changed(after, token=token, updated_at=self.clock.wall())
        old, new = encode_upload(before), encode_upload(stored)
        joins = replaces_partials(before, stored)
        arguments = {
            "change_id": secrets.token_hex(8),
            "token": str(token),
            "offset": str(before.offset),
            "status": str(before.status),
            "compares": not stored.has_ended,  # see `update.lua`
            "length": old.get("length", ""),
            "layout": old.get("layout", ""),
            "set": [
                word
                for name, value in new.items()
                if old.get(name) != value or name in ALWAYS_SET
                for word in (name, value)
            ],
            "remove": [name for name in old if name not in new],
            "advances": stored.offset > before.offset,
            "retreats": stored.offset < before.offset,
            "parts": [(part.number, json.dumps((part.end, part.etag, part.checksum))) for part in parts],
            "complete": bool(before.storage_state) and stored.is_complete,
            "grows": growth(before, stored) if self.enforces_quotas and not self._redis.is_cluster else 0,
            "quota": str(stored.quota_bytes),
            "joins": joins,
            "partials_until": "" if partials_until is None else repr(partials_until),
        }
        keys = self._upload_keys(before.id)
        if (joins or returns_partials(before, stored)) and not self._redis.is_cluster:
            partial_ids = list(dict.fromkeys(stored.partial_ids))
            keys += [self._keys.record(partial_id) for partial_id in partial_ids]
            if joins and partials_until is not None:
                entries = [word for partial_id in partial_ids for word in (repr(partials_until), partial_id)]
                await self._redis.command("ZADD", self._keys.due, "LT", *entries)
        await self._due_index.moved(before, stored)
        # END is made even if Redis has no memory left.
        script = END if stored.has_ended else UPDATE
        words = [json.dumps(arguments)]
        if not await self._counted_change(stored, script, keys, words, events, self._timeout):
            raise LockLost
        if stored.is_complete and not before.is_complete:
            self._created_index.completed(stored.id)
        return stored

    async def _counted_change(
        self,
        upload: Upload,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        events: Sequence[OutboxEvent],
        timeout: float = RETRY_DEADLINE,
    ) -> Any:
        """Run the script of a change that a quota may forbid, after all records have been counted if need be."""
        for _ in range(ATTEMPTS):
            result = await self._change(script, keys, arguments, events, timeout)
            if result == "bytes":
                raise bytes_exceeded(upload)
            if result == "uploads":
                raise uploads_exceeded(upload)
            if result != "count":
                return result
            await self._usage.count()
        raise StateUnavailable

    def _change(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        events: Sequence[OutboxEvent],
        timeout: float = RETRY_DEADLINE,
    ) -> Awaitable[Any]:
        """Run the script of a change, which stores events in the same step."""
        if events:
            return self.outbox.change(script, keys, arguments, events, timeout)
        return self._redis.run(script, keys, arguments, timeout)

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """Return the part list of an upload, in the order of the numbers."""
        parts = await self._redis.command("HGETALL", self._keys.parts(upload_id))
        return sorted(
            (UploadPart(int(number), *json.loads(rest)) for number, rest in parts.items()),
            key=lambda part: part.number,
        )

    async def delete(self, upload_id: str, token: int) -> None:
        """Remove a record, see `StateStore.delete`."""
        keys = self._upload_keys(upload_id)
        keys.insert(2, self._keys.removed_creation(upload_id))
        owner = await self._redis.run(DELETE, keys, [str(token), CREATION_NOTE_TTL])
        if not owner:
            raise LockLost
        indexes = [self._keys.due, self._keys.ids, *self._created_index.holding(owner.removeprefix("="))]
        removals: list[tuple[Any, ...]] = [("ZREM", index, upload_id) for index in indexes]
        if self._created_index.is_collecting:
            removals.append(("DEL", self._keys.history(upload_id)))
        await self._redis.commands(*removals)

    async def due(self, now: float, limit: int, *, skip: int = 0) -> Sequence[Upload]:
        """Return due uploads by the index, and correct wrong entries."""
        return await self._due_index.due(now, limit, skip)

    async def add_waiting(self, partial_id: str, final_id: str) -> None:
        """Record for `WAITING_TTL` seconds that a final upload waits for a partial one."""
        key = self._keys.waiting_finals(partial_id)
        await self._redis.commands(("SADD", key, final_id), ("EXPIRE", key, WAITING_TTL))

    async def waiting_for(self, partial_id: str, limit: int) -> Sequence[str]:
        """Return the ids of final uploads that wait for a partial one, any `limit` of them."""
        final_ids: list[str] = await self._redis.command("SRANDMEMBER", self._keys.waiting_finals(partial_id), limit)
        return final_ids

    async def remove_waiting(self, partial_id: str, final_ids: Sequence[str]) -> None:
        """Remove the entries of final uploads that wait."""
        if final_ids:
            await self._redis.command("SREM", self._keys.waiting_finals(partial_id), *final_ids)

    async def read_metadata(self, name: str) -> str | None:
        """Return a text that is kept beside the records."""
        value: str | None = await self._redis.command("HGET", self._keys.metadata, name)
        return value

    async def write_metadata(self, name: str, value: str, *, before: str | None) -> bool:
        """Replace a text, see `StateStore.write_metadata`."""
        return bool(await self._redis.run(WRITE_METADATA, [self._keys.metadata], [name, value, before or ""]))

    async def repair_index(self, older_than: float = REPAIR_INTERVAL) -> int:
        """Restore lost entries of the indexes; return the number of due uploads restored, see `SupportsIndexRepair`."""
        return await self._due_index.repair(older_than)

    async def list(self, *, after: str = "", limit: int = 100, condition: UploadFilter = EVERYTHING) -> Page:
        """Return a page of records in the order of their ids, see `StateStore.list`."""
        await self._id_index.repair()
        count = limit + 1 if condition == EVERYTHING else max(limit + 1, MAX_SCANNED)
        ids = await self._id_index.after(after, count)
        records: list[tuple[str, Upload | None]] = []
        for start in range(0, len(ids), PAGE_SIZE):
            some = ids[start : start + PAGE_SIZE]
            for upload_id, record in zip(some, await self._records.several(some), strict=True):
                records.append((upload_id, record if isinstance(record, Upload) else None))
        return next_page(records, limit, condition, last=len(ids) < count)

    async def prepare_queries(self) -> None:
        """Make the indexes of the queries, see `SupportsQueries.prepare_queries`."""
        await self._created_index.prepare()

    async def find(self, query: UploadQuery) -> QueryPage:
        """Return a page of records, see `SupportsQueries.find`."""
        return await self._queries.find(query)

    async def totals(self) -> Totals:
        """Count the records, see `SupportsQueries.totals`."""
        return await self._queries.totals()

    async def add_history(self, upload_id: str, entry: HistoryEntry) -> None:
        """Add an entry, see `SupportsHistory.add_history`."""
        await self._queries.add_history(upload_id, entry)

    async def history(self, upload_id: str) -> Sequence[HistoryEntry]:
        """Return the entries of an upload, see `SupportsHistory.history`."""
        return await self._queries.history(upload_id)

    async def all(self) -> AsyncIterator[Upload]:
        """Iterate over the records that can be read."""
        async for record in self._records.all():
            if isinstance(record, Upload):
                yield record

    async def broken(self) -> AsyncIterator[BrokenRecord]:
        """Iterate over the records that cannot be read."""
        async for record in self._records.all():
            if isinstance(record, BrokenRecord):
                yield record

    async def _index_new(self, upload: Upload) -> None:
        """Add a new upload to the indexes; call before its record is written, so that no record lacks its entries."""
        entries: list[tuple[Any, ...]] = [("ZADD", self._keys.ids, 0, upload.id)]
        score = self._due_index.score(upload)
        if score is not None:
            entries.append(("ZADD", self._keys.due, score, upload.id))
        await self._redis.commands(*entries, *self._created_index.entries_of(upload))
