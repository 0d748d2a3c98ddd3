"""Indexes of the uploads by their creation, for administrators: of all, of each owner, of those not complete.

The member `COLLECTING_MARK` of the first one tells every server to add new uploads; a server that is administrated adds
it, then what was created before, then `READY_MARK`. Without a server that is administrated nothing is kept. Entries are
hints, compared with their records when they are read. Those that are missing, of servers of an earlier version, are
added when the records are compared with the index of due uploads (`DueIndex.repair`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.id_index import IdIndex
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import READ_FIELDS
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.upload import Status, Upload

logger = logging.getLogger("tusd_py.state")

COLLECTING_MARK = "."  # no upload has such an id; the script of a creation knows it
READY_MARK = "!"
MARK_SCORE = "-inf"  # before every creation
PAGE_SIZE = 200  # records looked at in one round trip
COMPLETED_INTERVAL = 0.2  # seconds in which completed uploads are gathered, to be taken out with one command
MAX_COMPLETED = 500  # uploads in that command


class CreatedIndex:
    """The indexes below one prefix.

    Attributes:
        is_collecting: whether new uploads are added, as far as this process knows.
    """

    def __init__(self, connection: RedisConnection, keys: Keys, ids: IdIndex) -> None:
        self._redis = connection
        self._keys = keys
        self._ids = ids
        self._sending: dict[asyncio.Task[Any], Sequence[str]] = {}  # corrections, with the ids that they take out
        self._completed: dict[str, None] = {}  # ids of uploads that are still to be taken out, in their order
        self._timer: asyncio.TimerHandle | None = None
        self.is_collecting = False

    async def look(self) -> None:
        """Learn whether new uploads are to be added."""
        mark = await self._redis.command("ZSCORE", self._keys.created, COLLECTING_MARK)
        self.is_collecting = mark is not None

    async def is_ready(self) -> bool:
        """Return whether the indexes have all uploads."""
        return await self._redis.command("ZSCORE", self._keys.created, READY_MARK) is not None

    async def prepare(self) -> None:
        """Have new uploads added from now on, and add all others, unless this was done before."""
        if await self.is_ready():
            self.is_collecting = True
            return
        await self._redis.command("ZADD", self._keys.created, MARK_SCORE, COLLECTING_MARK)
        self.is_collecting = True
        await self._ids.repair()
        last = ""
        while ids := await self._ids.after(last, PAGE_SIZE):
            await self.add(ids)
            last = ids[-1]
        await self._redis.command("ZADD", self._keys.created, MARK_SCORE, READY_MARK)

    async def add(self, ids: Sequence[str]) -> None:
        """Add uploads that the indexes may lack; ids of records that cannot be read are passed over."""
        if not ids:
            return
        records = await read_fields(self._redis, self._keys, ids, ("created_at", "owner", "status"))
        entries: list[Sequence[Any]] = []
        for upload_id, (created_at, owner, status) in zip(ids, records, strict=True):
            if created_at is not None and _is_number(created_at):
                indexes = self._indexes(owner or "", status)
                entries += [("ZADD", index, created_at, upload_id) for index in indexes]
        if entries:
            await self._redis.commands(*entries)

    def _indexes(self, owner: str, status: str | None) -> Sequence[str]:
        """Return the keys of the indexes that an upload belongs in."""
        found = [self._keys.created]
        if status != Status.COMPLETE:
            found.append(self._keys.unfinished)
        if owner:
            found.append(self._keys.created_by(owner))
        return found

    def keys_of(self, upload: Upload) -> Sequence[str]:
        """Return the keys of the indexes of a new upload, the one of all uploads first."""
        return self._indexes(upload.owner, upload.status)

    def entries_of(self, upload: Upload) -> Sequence[Sequence[Any]]:
        """Return the commands that add a new upload, where no script can do it: in a cluster."""
        if not self.is_collecting:
            return ()
        return [("ZADD", index, repr(upload.created_at), upload.id) for index in self.keys_of(upload)]

    def holding(self, owner: str) -> Sequence[str]:
        """Return the keys of the indexes that may hold an upload of an owner."""
        return self._indexes(owner, None) if self.is_collecting else ()

    def completed(self, upload_id: str) -> None:
        """Take an upload out of those that are not complete, soon and without waiting for it."""
        if not self.is_collecting:
            return
        self._completed[upload_id] = None
        if len(self._completed) >= MAX_COMPLETED:
            self._send_completed()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COMPLETED_INTERVAL, self._send_completed)

    def _send_completed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        completed, self._completed = list(self._completed), {}
        self.correct(self._keys.unfinished, completed)

    async def forget(self, upload_id: str) -> None:
        """Forget an earlier upload with the id of one that is to be created: its corrections would concern the new one.

        Waits for those that are under way. Corrections of other processes are not known here.
        """
        self._completed.pop(upload_id, None)
        under_way = [sending for sending, upload_ids in self._sending.items() if upload_id in upload_ids]
        if under_way:
            await asyncio.wait(under_way)

    def correct(self, index: str, upload_ids: Sequence[str]) -> None:
        """Take entries out of an index that they do not belong in, without waiting for it."""
        if upload_ids:
            sending = asyncio.create_task(self._run(("ZREM", index, *upload_ids)))
            self._sending[sending] = upload_ids
            sending.add_done_callback(self._sending.pop)

    async def _run(self, words: Sequence[Any]) -> None:
        try:
            await self._redis.command(*words)
        except StateUnavailable as error:  # the entry is corrected when it is read the next time
            logger.debug("an index of uploads was not corrected: %s", error)

    async def close(self) -> None:
        """Send the corrections that wait, and wait for all that are under way."""
        self._send_completed()
        if self._sending:
            await asyncio.wait(self._sending)


async def read_fields(
    connection: RedisConnection, keys: Keys, upload_ids: Sequence[str], fields: Sequence[str]
) -> Sequence[Sequence[str | None]]:
    """Return some fields of records, None for those that are missing; in a cluster with a call for each record."""
    records = [keys.record(upload_id) for upload_id in upload_ids]
    if connection.is_cluster:
        return await connection.commands(*[("HMGET", record, *fields) for record in records])
    found: Sequence[Sequence[str | None]] = await connection.run(READ_FIELDS, records, [len(fields), *fields])
    return found


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False
