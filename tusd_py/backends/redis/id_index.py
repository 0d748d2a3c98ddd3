"""The index of all upload ids, `{prefix}ids`: a sorted set whose members all have the score 0, in the order of bytes.

The index is a hint: an entry is written before its record and removed after it. A member that is no id, `WHOLE`, tells
that the records were compared with the index once; without it (records of an earlier version, a lost index) they are
compared before the first list.
"""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.index import escaped

WHOLE = "."  # no upload has such an id
PAGE_SIZE = 500  # ids added in one round trip


class IdIndex:
    """The ids below one prefix."""

    def __init__(self, connection: RedisConnection, prefix: str) -> None:
        self._redis = connection
        self._prefix = prefix
        self.key = f"{prefix}ids"

    async def after(self, upload_id: str, count: int) -> Sequence[str]:
        """Return up to `count` ids that follow this one."""
        start = f"({upload_id}" if upload_id else "-"
        # One more than asked for, in case `WHOLE` is among them.
        page = ("ZRANGE", self.key, start, "+", "BYLEX", "LIMIT", 0, count + 1)
        members: list[str] = await self._redis.command(*page)
        return [member for member in members if member != WHOLE][:count]

    async def repair(self) -> None:
        """Add the ids of all records, unless that was done before."""
        if await self._redis.command("ZSCORE", self.key, WHOLE) is not None:
            return
        begin, end = f"{self._prefix}{{", "}:record"
        page: list[str] = []
        async for key in self._redis.keys(f"{escaped(self._prefix)}{{*}}:record"):
            page.append(key.removeprefix(begin).removesuffix(end))
            if len(page) == PAGE_SIZE:
                await self._add(page)
                page.clear()
        await self._add([*page, WHOLE])

    async def _add(self, members: Sequence[str]) -> None:
        await self._redis.command("ZADD", self.key, *(word for member in members for word in (0, member)))
