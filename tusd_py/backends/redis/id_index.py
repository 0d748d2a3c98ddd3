"""The index of all upload ids (`Keys.ids`): a sorted set whose members all have the score 0, in the order of bytes.

Invariant: an entry is written before its record and removed after it, so every record has an entry. The member
`COMPARISON_MARK`, which is no id, is added once the ids of all records have been; without it (records of an earlier
version, a lost index) they are added before the next list. Single lost entries, and records that a server of an earlier
version adds, are found when the records are compared with the index of due uploads (`DueIndex.repair`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import ADD_IDS

COMPARISON_MARK = "."  # no upload has such an id
PAGE_SIZE = 500  # ids added in one round trip


class IdIndex:
    """The index of the upload ids below one prefix."""

    def __init__(self, connection: RedisConnection, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys
        self._key = keys.ids

    async def after(self, upload_id: str, count: int) -> Sequence[str]:
        """Return up to `count` ids that follow `upload_id`, in order; the first ones if it is empty."""
        start = f"({upload_id}" if upload_id else "-"
        # One more than asked for, in case `COMPARISON_MARK` is among the members.
        page = ("ZRANGE", self._key, start, "+", "BYLEX", "LIMIT", 0, count + 1)
        members: list[str] = await self._redis.command(*page)
        return [member for member in members if member != COMPARISON_MARK][:count]

    async def repair(self) -> None:
        """Add the ids of all records, unless this was done before."""
        if await self._redis.command("ZSCORE", self._key, COMPARISON_MARK) is not None:
            return
        page: list[str] = []
        async for key in self._redis.keys(self._keys.all_records):
            page.append(self._keys.upload_id(key))
            if len(page) == PAGE_SIZE:
                await self.add(page)
                page.clear()
        await self.add([*page, COMPARISON_MARK])

    async def add(self, members: Sequence[str]) -> None:
        """Add ids that the index may lack."""
        await self._redis.run(ADD_IDS, [self._key], members)
