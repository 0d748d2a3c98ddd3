"""The index of due uploads (`Keys.due`): an upload's score is the time when the sweeper has to look at it.

The index may be in another slot than the records. An entry is written before the record that it belongs to, and
compared with the record when it is read. That of a finishing upload, which is always due, has minus the time of the
entry as its score.

Redis can lose the index and keep the records: an operator deletes it, a key is evicted, a failover forgets it. Without
its entry an upload would never expire. The index has a member of its own, `COMPARISON_MARK`, whose score is the time of
the last comparison with the records. A lost index lacks that member, and is rebuilt at the next sweep; a single lost
entry is found by the next comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.created_index import CreatedIndex
from tusd_py.backends.redis.id_index import IdIndex
from tusd_py.backends.redis.records import RedisRecords
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import MARK_COMPARED, MOVE_DUE, NOTE_DUE
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.upload import Status, Upload, UploadKind

logger = logging.getLogger("tusd_py.sweeper")

COMPARISON_MARK = "."  # no upload has such an id
NEVER_DUE = 1e12  # seconds, added to the time of the comparison, so that the member is never due
NEW_ENTRY_AGE = 60.0  # seconds within which the record of a new entry may still be missing
ALWAYS_DUE = 0.0  # due time of finishing uploads
PAGE_SIZE = 200  # records looked at in one round trip


class DueIndex:
    """The index of due uploads below one prefix."""

    def __init__(
        self, connection: RedisConnection, keys: Keys, records: RedisRecords, ids: IdIndex, created: CreatedIndex
    ) -> None:
        """Use the index of `keys`; a comparison with the records also adds what `ids` and `created` lack."""
        self._redis = connection
        self._records = records
        self._ids = ids
        self._created = created
        self._keys = keys
        self._key = keys.due

    def score(self, upload: Upload) -> str | None:
        """Return the score of a new entry of an upload; None if it is never due."""
        when = due_at(upload)
        return None if when is None else repr(when or -self._redis.clock.wall())

    async def moved(self, before: Upload, after: Upload) -> None:
        """Add an upload that is about to change, or move it to an earlier time.

        An expiry that a commit moves to later is not written: the sweeper corrects the entry when it is due.
        """
        when, earlier = due_at(after), due_at(before)
        if when is None or (earlier is not None and earlier <= when):
            return
        score = self.score(after)
        if after.has_ended:
            await self._redis.run(NOTE_DUE, [self._key], [score, after.id])
        else:
            await self._redis.command("ZADD", self._key, "LT", score, after.id)  # it may arrive late

    async def due(self, now: float, limit: int, skip: int) -> Sequence[Upload]:
        """Return up to `limit` due uploads after the first `skip` ones, and correct wrong entries."""
        found: list[Upload] = []
        position = skip
        while len(found) < limit:
            count = min(PAGE_SIZE, limit - len(found))
            page = ("ZRANGE", self._key, "-inf", repr(now), "BYSCORE", "LIMIT", position, count, "WITHSCORES")
            entries: list[tuple[str, float]] = await self._redis.command(*page)
            records = await self._records.several([upload_id for upload_id, _ in entries])
            for (upload_id, score), record in zip(entries, records, strict=True):
                if isinstance(record, Upload) and (when := due_at(record)) is not None and when <= now:
                    found.append(record)
                    position += 1
                elif isinstance(record, BrokenRecord) or self._is_new(score):
                    position += 1
                else:
                    await self._correct(upload_id, score, record)
            if len(entries) < count:
                break
        return found

    def _is_new(self, score: float) -> bool:
        """Return whether the record of an entry may still be missing."""
        return score < 0 and -score > self._redis.clock.wall() - NEW_ENTRY_AGE

    async def _correct(self, upload_id: str, score: float, upload: Upload | None) -> None:
        """Move an entry to the time in the record, or remove it."""
        when = None if upload is None else due_at(upload)
        await self._redis.run(MOVE_DUE, [self._key], [upload_id, repr(score), "" if when is None else repr(when)])

    async def repair(self, older_than: float) -> int:
        """Add missing entries, and correct late ones, if the last comparison is more than `older_than` seconds ago.

        Returns their number.
        """
        await self._created.look()
        compared_at = await self._redis.command("ZSCORE", self._key, COMPARISON_MARK)
        now = self._redis.clock.wall()
        if compared_at is not None and 0 <= now - (float(compared_at) - NEVER_DUE) < older_than:
            return 0
        await self._redis.check_memory_policy(refuse=False)
        # If the index is lost during the comparison, so is this member, and the next sweep compares again.
        await self._redis.run(MARK_COMPARED, [self._key], [repr(NEVER_DUE), COMPARISON_MARK, "NX"])
        added = 0
        page: list[str] = []
        async for key in self._redis.keys(self._keys.all_records):
            page.append(key)
            if len(page) == PAGE_SIZE:
                added += await self._repair_page(page, now)
                page.clear()
        added += await self._repair_page(page, now)
        await self._redis.run(MARK_COMPARED, [self._key], [repr(NEVER_DUE + now), COMPARISON_MARK, "XX"])
        if added:
            logger.warning("%d entries of the index of due uploads were lost, and have been restored", added)
        return added

    async def _repair_page(self, keys: Sequence[str], now: float) -> int:
        if not keys:
            return 0
        ids = [self._keys.upload_id(key) for key in keys]
        await self._ids.add(ids)
        if self._created.is_collecting:
            await self._created.add(ids)
        records = await self._redis.commands(
            *[("HMGET", key, "id", "status", "expires_at", "concatenation") for key in keys]
        )
        due = {}
        for upload_id, status, expires_at, concatenation in records:
            waits = concatenation == UploadKind.FINAL and expires_at is not None
            when = _score_of_fields(None if waits else status, expires_at, now)
            if upload_id and when is not None:
                due[upload_id] = when
        if not due:
            return 0
        known = await self._redis.command("ZMSCORE", self._key, *due)
        missing = [upload_id for upload_id, score in zip(due, known, strict=True) if _is_late(score, due[upload_id])]
        for upload_id in missing:
            await self._redis.run(NOTE_DUE, [self._key], [repr(due[upload_id]), upload_id])
        return len(missing)


def due_at(upload: Upload) -> float | None:
    """Return the time when the sweeper has to look at an upload, in seconds since the epoch; None if never."""
    return ALWAYS_DUE if upload.status is Status.FINISHING and not upload.is_waiting else upload.expires_at


def _is_late(score: str | None, due: float) -> bool:
    """Return whether a record has no entry, or one made after the index was lost, for a later change than its end."""
    return score is None or float(score) > max(due, 0.0)


def _score_of_fields(status: str | None, expires_at: str | None, now: float) -> float | None:
    """Return the score of a record; None if the sweeper never has to look at it, or it cannot be read."""
    if status == Status.FINISHING:
        return -now
    try:
        return None if expires_at is None else float(expires_at)
    except ValueError:
        return None
