"""Questions of administrators about the records in SQLite (`contracts/queries.py`).

Lists by creation time go along an index, if there is one that soon finds enough records. Otherwise the records are read
in slices by their ids, of each of which SQLite keeps the first ones, so that no read takes long and the log can be
written back in between.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tusd_py.backends.sqlite.read_thread import ReadThread, ReadTooLong
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.history import MAX_ENTRIES, HistoryEntry, decode_entry
from tusd_py.core.listing import UploadFilter
from tusd_py.core.queries import Counting, Position, QueryPage, Share, TopUploads, Totals, UploadQuery, page_of
from tusd_py.core.quotas import MAX_COUNTED
from tusd_py.core.upload import Status, Upload
from tusd_py.core.upload_codec import FIELDS, BrokenRecords, decode_row

INDEXES = (
    "CREATE INDEX IF NOT EXISTS uploads_by_creation ON uploads (created_at, id)",
    "CREATE INDEX IF NOT EXISTS uploads_by_owner ON uploads (owner, created_at, id) WHERE owner <> ''",
    # Most are complete: for a list of these, the index of all is as good, and a completion adds no entry.
    "CREATE INDEX IF NOT EXISTS uploads_not_complete ON uploads (status, created_at, id) WHERE status <> 'complete'",
    "DROP INDEX IF EXISTS uploads_by_status",
)
HAS_INDEXES = (
    "SELECT count(*) = 3 FROM sqlite_master WHERE name IN ('uploads_by_creation', 'uploads_by_owner', "
    "'uploads_not_complete')"
)
SELECT = f"SELECT {', '.join(FIELDS)} FROM uploads"
# SQLite would prefer the index of an owner or of a status, and go along all of it for every slice.
SELECT_IN_SLICE = f"{SELECT} INDEXED BY sqlite_autoindex_uploads_1"
EXPRESSIONS = {"updated_at": "coalesce(updated_at, created_at)"}  # of orders that are no columns
SLICE = 5000  # records
SLICE_END = f"SELECT id FROM uploads WHERE id > ? ORDER BY id LIMIT 1 OFFSET {SLICE - 1}"
IN_SLICE = "id > ? AND id <= ?"
COUNT_SLICE = (
    f"SELECT status, owner, count(*), sum(min(max(CAST(offset AS INTEGER), 0), {MAX_COUNTED})), min(created_at) "
    f"FROM uploads WHERE {IN_SLICE} GROUP BY status, owner"
)
INSERT_HISTORY = (
    "INSERT INTO history (upload_id, number, entry) "
    "SELECT ?1, coalesce((SELECT max(number) FROM history WHERE upload_id = ?1), 0) + 1, ?2 "
    "WHERE EXISTS (SELECT 1 FROM uploads WHERE id = ?1)"
)
TRIM_HISTORY = (
    "DELETE FROM history WHERE upload_id = ?1 AND number <= (SELECT max(number) FROM history WHERE upload_id = ?1) - ?2"
)
SELECT_HISTORY = "SELECT entry FROM history WHERE upload_id = ? ORDER BY number"
DELETE_HISTORY = "DELETE FROM history WHERE upload_id = ?"
LAST_ID = "\x7f"  # after every id
STATUSES = {status.value: status for status in Status}


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of SQL without its limit, and the values of its places."""

    text: str
    values: tuple[Any, ...] = ()


class SQLiteQueries:
    """The queries of one file."""

    def __init__(self, reads: ReadThread, broken: BrokenRecords) -> None:
        self._reads = reads
        self._broken = broken

    async def find(self, query: UploadQuery) -> QueryPage:
        """Return a page of records, see `SupportsQueries.find`."""
        if query.order == "created_at" and await self._reads.run(_has_indexes):
            with contextlib.suppress(ReadTooLong):  # few of the records along the index fulfil the condition
                return page_of(await self._read_first(_statement(query), query.limit + 1), query)
        top = TopUploads(query)
        async for first, last in self._slices():
            for upload in await self._read_first(_statement(query, (first, last)), query.limit + 1):
                top.add(upload)
        return top.page()

    async def totals(self) -> Totals:
        """Count the records, see `SupportsQueries.totals`."""
        counting = Counting()
        async for limits in self._slices():
            for status, owner, count, size, oldest in await self._reads.run(partial(_fetch, COUNT_SLICE, limits)):
                if status in STATUSES and isinstance(owner, str) and isinstance(oldest, float):
                    counting.add(STATUSES[status], owner, Share(count, size or 0), oldest)
        return counting.totals()

    async def history(self, upload_id: str) -> Sequence[HistoryEntry]:
        """Return the entries of an upload, see `SupportsHistory.history`."""
        rows = await self._reads.run(partial(_fetch, SELECT_HISTORY, (upload_id,)))
        return [entry for (text,) in rows if (entry := decode_entry(str(text))) is not None]

    async def _slices(self) -> AsyncIterator[tuple[str, str]]:
        """Yield the ids before and at the end of slices that hold all records together."""
        last, found = "", True
        while found:
            rows = await self._reads.run(partial(_fetch, SLICE_END, (last,)))
            found, end = bool(rows), rows[0][0] if rows else LAST_ID
            yield last, end
            last = end

    async def _read_first(self, statement: Statement, count: int) -> Sequence[Upload]:
        """Return the first `count` records of a statement that can be read."""
        return await self._reads.run(partial(_read_first, statement=statement, count=count, broken=self._broken))


def add_history(connection: sqlite3.Connection, upload_id: str, entry: HistoryEntry) -> None:
    """Add an entry to the history of an upload that has a record; remove those that are too many."""
    if connection.execute(INSERT_HISTORY, (upload_id, entry.encode())).rowcount:
        connection.execute(TRIM_HISTORY, (upload_id, MAX_ENTRIES))


def _has_indexes(connection: sqlite3.Connection) -> bool:
    return bool(_fetch(HAS_INDEXES, (), connection)[0][0])


def _fetch(statement: str, values: Sequence[Any], connection: sqlite3.Connection) -> list[Any]:
    return connection.execute(statement, values).fetchall()


def _read_first(
    connection: sqlite3.Connection, statement: Statement, count: int, broken: BrokenRecords
) -> Sequence[Upload]:
    """Return the first `count` records that can be read. Runs in the thread of the reads."""
    found: list[Upload] = []
    skip = 0
    with _snapshot(connection):
        while True:
            rows = _fetch(f"{statement.text} LIMIT ? OFFSET ?", (*statement.values, count, skip), connection)
            found += _readable(rows, broken)
            if len(rows) < count or len(found) >= count:
                return found[:count]
            skip += count


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Have all statements of the context read the same records."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _readable(rows: Sequence[Sequence[Any]], broken: BrokenRecords) -> Iterator[Upload]:
    for row in rows:
        try:
            yield decode_row(row)
        except BrokenRecord as error:
            broken.log_once(error)


def _statement(query: UploadQuery, limits: tuple[str, str] | None = None) -> Statement:
    """Return the statement of a query; `limits` are the ids before and at the end of the slice that it reads."""
    field = EXPRESSIONS.get(query.order, query.order)
    direction = "DESC" if query.descending else "ASC"
    conditions = [*_conditions(query.condition)]
    if query.after is not None:
        conditions.append(_following(query.after, field, descending=query.descending))
    if limits is not None:
        conditions.append((IN_SLICE, limits))
    where = f" WHERE {' AND '.join(text for text, _ in conditions)}" if conditions else ""
    order = f"id {direction}" if field == "id" else f"{field} {direction}, id {direction}"
    select = SELECT if limits is None else SELECT_IN_SLICE
    return Statement(f"{select}{where} ORDER BY {order}", tuple(value for _, values in conditions for value in values))


def _conditions(condition: UploadFilter) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if condition.status is not None:
        # SQLite uses a partial index only if the statement repeats its condition without a parameter.
        only = "" if condition.status is Status.COMPLETE else " AND status <> 'complete'"
        yield f"status = ?{only}", (str(condition.status),)
    if condition.owner is not None:
        yield ("owner = ? AND owner <> ''" if condition.owner else "owner = ?"), (condition.owner,)
    if condition.created_after is not None:
        yield "created_at > ?", (condition.created_after,)
    if condition.created_before is not None:
        yield "created_at < ?", (condition.created_before,)


def _following(after: Position, field: str, *, descending: bool) -> tuple[str, tuple[Any, ...]]:
    """Return the condition of records that come after a place; NULL comes before all values."""
    sign = "<" if descending else ">"
    if field == "id":
        return f"id {sign} ?", (after.id,)
    if field == "created_at":
        return f"(created_at, id) {sign} (?, ?)", (after.key, after.id)
    if after.key is None:
        beyond = "" if descending else f" OR {field} IS NOT NULL"
        return f"(({field} IS NULL AND id {sign} ?){beyond})", (after.id,)
    beyond = f" OR {field} IS NULL" if descending else ""
    return f"({field} {sign} ? OR ({field} = ? AND id {sign} ?){beyond})", (after.key, after.key, after.id)
