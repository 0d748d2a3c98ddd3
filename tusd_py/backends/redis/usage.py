"""The usage of each owner in Redis: a hash that the scripts of changes keep in step with the records.

A change of a record and of the usage is one script, so that no crash leaves them apart; a failover or a restart that
loses one loses the other. Counting begins when a quota is first asked about: the usage gets a generation, and every
record is counted once in it (`scripts/tally.lua`), while changes go on. A usage that was lost begins a new generation.
A record that the count has missed is counted by the next change of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import END_COUNT, TALLY_RECORDS, WRITE_METADATA
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.quotas import Usage

MARK = "."  # field of the usage with its generation, and whether all records have been counted in it
PAGE_SIZE = 200  # records counted in one script
ATTEMPTS = 3  # to count all records, if the usage is lost or another Redis takes over meanwhile
NO_CLUSTER = "quotas need one Redis, not a cluster"


class OwnerUsage:
    """The usage of the owners below one prefix, for one event loop."""

    def __init__(self, connection: RedisConnection, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys
        self._counting = asyncio.Lock()  # of this process: many requests may find the usage lost

    async def of(self, owner: str) -> Usage:
        """Return the usage of an owner; count all records first if that has not been done.

        Raises:
            StateUnavailable: also for a cluster, where records and usage cannot change in one step.
        """
        for _ in range(ATTEMPTS):
            if self._redis.is_cluster:
                raise StateUnavailable(NO_CLUSTER)
            mark, size, unfinished = await self._redis.command(
                "HMGET", self._keys.usage, MARK, f"b {owner}", f"n {owner}"
            )
            if mark is not None and mark.endswith(" ready"):
                return Usage(int(size or 0), int(unfinished or 0))
            await self.count()
        raise StateUnavailable

    async def count(self) -> None:
        """Count all records, unless they are counted. Several processes may do so at the same time."""
        if self._redis.is_cluster:
            raise StateUnavailable(NO_CLUSTER)
        async with self._counting:
            await self._count()

    async def _count(self) -> None:
        generation = secrets.token_hex(8)
        await self._redis.run(WRITE_METADATA, [self._keys.usage], [MARK, f"{generation} counting", ""])
        mark: str | None = await self._redis.command("HGET", self._keys.usage, MARK)
        if mark is None or mark.endswith(" ready"):
            return
        history = await self._tally([])
        page: list[str] = []
        async for key in self._redis.keys(self._keys.all_records):
            page.append(key)
            if len(page) == PAGE_SIZE:
                await self._tally(page)
                page.clear()
        await self._tally(page)
        # The cursor of SCAN means nothing to another Redis, which may have lost the last records counted besides.
        ready = f"{mark.partition(' ')[0]} ready"
        await self._redis.run(END_COUNT, [self._keys.usage], [mark, ready, history])

    async def _tally(self, records: Sequence[str]) -> str:
        """Count the records with these keys; return the replication id of Redis, empty if it is not known."""
        history: str = await self._redis.run(TALLY_RECORDS, [self._keys.usage, *records], [])
        return history
