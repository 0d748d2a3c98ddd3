"""Records in Redis, shared by any number of hosts.

Everything of one upload is in one hash slot: `{prefix}{<id>}:record`, a hash, and `{prefix}{<id>}:parts`, its ledger.
A change is one script, which looks at the fencing token, the offset and the status before it writes. The locks
(`backends/redis/locker.py`) note in the same record the newest token that they gave out.

Due uploads are found by an index of its own, `{prefix}due`, in another slot: it is a hint, written before the record
it speaks of and checked against the record when it is read.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from tusd_py.backends.redis.connection import RETRY_DEADLINE, RedisConnection, Script
from tusd_py.backends.redis.id_index import IdIndex
from tusd_py.backends.redis.index import NOTE, DueIndex, escaped
from tusd_py.core.clock import Clock
from tusd_py.core.errors import BrokenRecord, LockLost, UploadExists
from tusd_py.core.listing import EVERYTHING, MAX_SCANNED, Page, UploadFilter, next_page
from tusd_py.core.upload import Status, Upload, UploadPart
from tusd_py.core.upload_codec import BrokenRecords, broken, decode, encode

PAGE = 200  # records fetched at once
FRESH = 60.0  # seconds; for so long the record that an entry of the index speaks of may be on its way
ENDED = (Status.TERMINATED, Status.EXPIRED)  # removing works although there is no memory left
REPAIR_INTERVAL = 6 * 3600.0  # seconds between two comparisons of the index with the records
WAITING_TTL = 86400  # seconds; a final upload that waits is looked at, and noted again, every hour
NOW = 0.0  # to be looked at whenever the sweeper comes; in the index, less than that by the time of the entry

CREATE = Script(
    "create",
    """
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'change') == ARGV[1] and 1 or 0
end
redis.call('HSET', KEYS[1], 'change', unpack(ARGV))
return 1
""",
)
# A change that was made already (its answer was lost) is a success. The newest token given out, `fence`, may be larger
# than the record's. New bytes are out of reach of an earlier holder, who is then no longer suspected (locks/redis.py),
# until they are lost.
UPDATE = Script(
    "update",
    """
local record = redis.call('HMGET', KEYS[1], 'id', 'change', 'fence', 'token', 'offset', 'status')
local arguments = cjson.decode(ARGV[1])
if not record[1] then return 0 end
if record[2] == arguments.change then return 1 end
local token = tonumber(arguments.token)
if tonumber(record[3] or 0) > token or tonumber(record[4] or 0) > token then return 0 end
if record[5] ~= arguments.offset or record[6] ~= arguments.status then return 0 end
redis.call('HSET', KEYS[1], 'change', arguments.change, unpack(arguments.set))
if #arguments.remove > 0 then redis.call('HDEL', KEYS[1], unpack(arguments.remove)) end
if arguments.advances then redis.call('HDEL', KEYS[1], 'suspect') end
if arguments.retreats then redis.call('HINCRBY', KEYS[1], 'suspect', 1) end
for _, part in ipairs(arguments.parts) do redis.call('HSET', KEYS[2], part[1], part[2]) end
if arguments.complete then redis.call('DEL', KEYS[2]) end
return 1
""",
)
END = Script("update", UPDATE.text, allow_oom=True)  # the step before the removal of an upload
DELETE = Script(
    "delete",
    """
local record = redis.call('HMGET', KEYS[1], 'fence', 'token')
local token = tonumber(ARGV[1])
if (tonumber(record[1] or 0) or 0) > token or (tonumber(record[2] or 0) or 0) > token then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
""",
    allow_oom=True,
)
# Only if nobody has moved the entry meanwhile.
MOVE = Script(
    "move",
    """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 'nan') ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
""",
    allow_oom=True,
)
# A repeated attempt, whose answer was lost, finds its own value.
WRITE_METADATA = Script(
    "write_metadata",
    """
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if held == ARGV[2] then return 1 end
if held ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
""",
)


class RedisState:
    """The state store of several hosts."""

    def __init__(self, connection: RedisConnection, prefix: str = "tus:", patience: float = RETRY_DEADLINE) -> None:
        """A change is tried for `patience` seconds: so long an append holds out when Redis is away."""
        self._redis = connection
        self._prefix = prefix
        self._patience = patience
        self._index = DueIndex(connection, prefix)
        self._due = self._index.key
        self._ids = IdIndex(connection, prefix)
        self._metadata = f"{prefix}metadata"
        self._broken = BrokenRecords()

    @property
    def clock(self) -> Clock:
        """The clock of Redis."""
        return self._redis.clock

    async def refresh_clock(self) -> None:
        await self._redis.ask_for_time()

    async def open(self) -> None:
        await self._redis.open()

    async def close(self) -> None:
        await self._redis.close()

    def _keys(self, upload_id: str) -> tuple[str, str]:
        return f"{self._prefix}{{{upload_id}}}:record", f"{self._prefix}{{{upload_id}}}:parts"

    async def create(self, upload: Upload, *, durable: bool = False) -> None:
        values = encode(upload)
        arguments = [secrets.token_hex(8), *(word for pair in values.items() for word in pair)]
        await self._index_new(upload)
        if not await self._redis.run(CREATE, self._keys(upload.id)[:1], arguments):
            raise UploadExists

    async def get(self, upload_id: str) -> Upload | None:
        return _upload(upload_id, await self._redis.command("HGETALL", self._keys(upload_id)[0]))

    async def update(
        self, before: Upload, after: Upload, token: int, *, parts: Sequence[UploadPart] = (), durable: bool = False
    ) -> Upload:
        stored = after if after.token == token else replace(after, token=token)
        old, new = encode(before), encode(stored)
        arguments = {
            "change": secrets.token_hex(8),
            "token": str(token),
            "offset": str(before.offset),
            "status": str(before.status),
            "set": [
                word
                for name, value in new.items()
                if old.get(name) != value or name == "token"
                for word in (name, value)
            ],
            "remove": [name for name in old if name not in new],
            "advances": stored.offset > before.offset,
            "retreats": stored.offset < before.offset,
            "parts": [(part.number, json.dumps((part.end, part.etag, part.checksum))) for part in parts],
            "complete": bool(before.layout) and stored.is_complete,
        }
        await self._note_due(before, stored)
        script = END if stored.status in ENDED else UPDATE
        if not await self._redis.run(script, self._keys(before.id), [json.dumps(arguments)], self._patience):
            raise LockLost
        return stored

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        ledger = await self._redis.command("HGETALL", self._keys(upload_id)[1])
        return sorted(
            (UploadPart(int(number), *json.loads(rest)) for number, rest in ledger.items()),
            key=lambda part: part.number,
        )

    async def delete(self, upload_id: str, token: int) -> None:
        if not await self._redis.run(DELETE, self._keys(upload_id), [str(token)]):
            raise LockLost
        await self._redis.commands(("ZREM", self._due, upload_id), ("ZREM", self._ids.key, upload_id))

    async def due(self, now: float, limit: int, *, skip: int = 0) -> Sequence[Upload]:
        found: list[Upload] = []
        passed = skip
        while len(found) < limit:
            count = min(PAGE, limit - len(found))
            page = ("ZRANGE", self._due, "-inf", repr(now), "BYSCORE", "LIMIT", passed, count, "WITHSCORES")
            entries: list[tuple[str, float]] = await self._redis.command(*page)
            uploads = await self._fetch([upload_id for upload_id, _ in entries])
            for (upload_id, score), upload in zip(entries, uploads, strict=True):
                if isinstance(upload, BrokenRecord):
                    self._broken.tell(upload)
                    passed += 1
                elif upload is not None and (when := _due_at(upload)) is not None and when <= now:
                    found.append(upload)
                    passed += 1
                elif score < 0 and -score > self.clock.wall() - FRESH:
                    passed += 1
                else:
                    await self._correct(upload_id, score, upload)
            if len(entries) < count:
                break
        return found

    async def add_waiting(self, partial_id: str, final_id: str) -> None:
        key = self._waiting(partial_id)
        await self._redis.commands(("SADD", key, final_id), ("EXPIRE", key, WAITING_TTL))

    async def waiting_for(self, partial_id: str, limit: int) -> Sequence[str]:
        final_ids: list[str] = await self._redis.command("SRANDMEMBER", self._waiting(partial_id), limit)
        return final_ids

    async def remove_waiting(self, partial_id: str, final_ids: Sequence[str]) -> None:
        if final_ids:
            await self._redis.command("SREM", self._waiting(partial_id), *final_ids)

    def _waiting(self, partial_id: str) -> str:
        return f"{self._prefix}{{{partial_id}}}:finals"

    async def read_metadata(self, name: str) -> str | None:
        value: str | None = await self._redis.command("HGET", self._metadata, name)
        return value

    async def write_metadata(self, name: str, value: str, *, before: str | None) -> bool:
        return bool(await self._redis.run(WRITE_METADATA, [self._metadata], [name, value, before or ""]))

    async def repair_index(self, older_than: float = REPAIR_INTERVAL) -> int:
        return await self._index.repair(older_than)

    async def list(self, *, after: str = "", limit: int = 100, condition: UploadFilter = EVERYTHING) -> Page:
        await self._ids.repair()
        count = limit + 1 if condition == EVERYTHING else max(limit + 1, MAX_SCANNED)
        ids = await self._ids.after(after, count)
        records: list[tuple[str, Upload | None]] = []
        for start in range(0, len(ids), PAGE):
            some = ids[start : start + PAGE]
            for upload_id, record in zip(some, await self._fetch(some), strict=True):
                if isinstance(record, BrokenRecord):
                    self._broken.tell(record)
                records.append((upload_id, None if isinstance(record, BrokenRecord) else record))
        return next_page(records, limit, condition, last=len(ids) < count)

    async def all(self) -> AsyncIterator[Upload]:
        async for record in self._records():
            if isinstance(record, BrokenRecord):
                self._broken.tell(record)
            else:
                yield record

    async def broken(self) -> AsyncIterator[BrokenRecord]:
        async for record in self._records():
            if isinstance(record, BrokenRecord):
                yield record

    async def _records(self) -> AsyncIterator[Upload | BrokenRecord]:
        seen: set[str] = set()
        begin, end = f"{self._prefix}{{", "}:record"
        async for key in self._redis.keys(f"{escaped(self._prefix)}{{*}}:record"):
            if key in seen:
                continue
            seen.add(key)
            upload_id = key.removeprefix(begin).removesuffix(end)
            record = _readable(upload_id, await self._redis.command("HGETALL", key))
            if record is not None:
                yield record

    async def _fetch(self, upload_ids: Sequence[str]) -> Sequence[Upload | BrokenRecord | None]:
        if not upload_ids:
            return []
        commands = [("HGETALL", self._keys(upload_id)[0]) for upload_id in upload_ids]
        records = await self._redis.commands(*commands)
        return [_readable(upload_id, values) for upload_id, values in zip(upload_ids, records, strict=True)]

    async def _index_new(self, upload: Upload) -> None:
        """Name a new upload in the indexes; before its record, so that no record is without its entries."""
        entry = ("ZADD", self._ids.key, 0, upload.id)
        when = _due_at(upload)
        if when is None:
            await self._redis.command(*entry)
        else:
            await self._redis.commands(entry, ("ZADD", self._due, repr(when or -self.clock.wall()), upload.id))

    async def _note_due(self, before: Upload | None, after: Upload) -> None:
        """Put an upload into the index if it has to be looked at earlier than the index knows.

        The expiry that every commit moves ahead is not renewed: the sweeper corrects that when it comes to it.
        """
        when = _due_at(after)
        if when is None or (before is not None and (earlier := _due_at(before)) is not None and earlier <= when):
            return
        score = repr(when or -self.clock.wall())
        if after.status in ENDED:
            await self._redis.run(NOTE, [self._due], [score, after.id])
        else:
            await self._redis.command("ZADD", self._due, score, after.id)

    async def _correct(self, upload_id: str, score: float, upload: Upload | None) -> None:
        """Move an entry of the index to where the record says."""
        when = None if upload is None else _due_at(upload)
        await self._redis.run(MOVE, [self._due], [upload_id, repr(score), "" if when is None else repr(when)])


def _due_at(upload: Upload) -> float | None:
    """When the sweeper has to look at an upload, in seconds since the epoch."""
    return NOW if upload.status is Status.FINISHING and not upload.is_waiting else upload.expires_at


def _upload(upload_id: str, values: Mapping[str, str]) -> Upload | None:
    """The record, None if there is none; raises `BrokenRecord`."""
    try:
        return decode(values)
    except ValueError as error:
        raise broken(upload_id, values, error) from None


def _readable(upload_id: str, values: Mapping[str, str]) -> Upload | BrokenRecord | None:
    try:
        return _upload(upload_id, values)
    except BrokenRecord as error:
        return error
