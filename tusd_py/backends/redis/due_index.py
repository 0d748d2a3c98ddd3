"""Repair of the index of due uploads (`Keys.due`) from the records.

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
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import MARK_COMPARED, NOTE_DUE
from tusd_py.core.upload import Status, UploadKind

logger = logging.getLogger("tusd_py.sweeper")

COMPARISON_MARK = "."  # no upload has such an id
NEVER_DUE = 1e12  # seconds, added to the time of the comparison, so that the member is never due
PAGE_SIZE = 200  # records looked at in one round trip


class DueIndex:
    """The index of due uploads below one prefix."""

    def __init__(self, connection: RedisConnection, keys: Keys, ids: IdIndex, created: CreatedIndex) -> None:
        """Use the index of `keys`; a comparison with the records also adds what `ids` and `created` lack."""
        self._redis = connection
        self._ids = ids
        self._created = created
        self._keys = keys
        self._key = keys.due

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
            when = _due_at(None if waits else status, expires_at, now)
            if upload_id and when is not None:
                due[upload_id] = when
        if not due:
            return 0
        known = await self._redis.command("ZMSCORE", self._key, *due)
        missing = [upload_id for upload_id, score in zip(due, known, strict=True) if _is_late(score, due[upload_id])]
        for upload_id in missing:
            await self._redis.run(NOTE_DUE, [self._key], [repr(due[upload_id]), upload_id])
        return len(missing)


def _is_late(score: str | None, due: float) -> bool:
    """Return whether a record has no entry, or one made after the index was lost, for a later change than its end."""
    return score is None or float(score) > max(due, 0.0)


def _due_at(status: str | None, expires_at: str | None, now: float) -> float | None:
    """Return the score of a record; None if the sweeper never has to look at it, or it cannot be read."""
    if status == Status.FINISHING:
        return -now
    try:
        return None if expires_at is None else float(expires_at)
    except ValueError:
        return None
