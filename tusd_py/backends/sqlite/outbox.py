"""The outbox in the file of the records: events are added in the transaction of the change that they tell of.

A delivery is added to `new_deliveries`, which has only the indexes that every event needs. One that has failed, or that
waits behind such a delivery of its upload, moves to `deliveries`, whose indexes find what is due.

Invariant: a delivery in `new_deliveries` is newer than those of its upload and sink in `deliveries`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryPage, DeliveryStatus, EventType, OutboxDepth, OutboxEvent

COLUMNS = "event_id, upload_id, sequence, type, time, document, sink"
STATE = "attempts, next_at, dead, error"
STATE_OF_NEW = "0, 0, 0, ''"
INSERT = f"INSERT INTO new_deliveries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
SELECT_DUE = (
    f"SELECT {COLUMNS}, {STATE} FROM deliveries AS d "
    "WHERE sink = ? AND dead = 0 AND (next_at <= ? OR next_at > ?) AND NOT EXISTS "
    "(SELECT 1 FROM deliveries AS e WHERE e.upload_id = d.upload_id AND e.sink = d.sink AND e.dead = 0 "
    "AND e.number < d.number) ORDER BY next_at, number LIMIT ?"
)
SELECT_NEW = f"SELECT {COLUMNS}, {STATE_OF_NEW} FROM new_deliveries WHERE sink = ? ORDER BY number"
WAITS = "SELECT 1 FROM deliveries WHERE upload_id = ? AND sink = ? AND dead = 0"
# The signs before `sink` keep SQLite from the index of the sink, which all new deliveries may share.
SELECT_NUMBER = "SELECT number, upload_id FROM new_deliveries WHERE event_id = ? AND +sink = ?"
UP_TO = "FROM new_deliveries WHERE sink = ? AND number <= ? AND upload_id = ?"
MOVE = f"INSERT INTO deliveries ({COLUMNS}) SELECT {COLUMNS} {UP_TO} ORDER BY number"
DELETE_MOVED = f"DELETE {UP_TO}"
TABLES = (("deliveries", STATE), ("new_deliveries", STATE_OF_NEW))
SELECT_AFTER = " UNION ALL ".join(
    f"SELECT {COLUMNS}, {state} FROM {table} WHERE (event_id, sink) > (?1, ?2)" for table, state in TABLES
)
SELECT_AFTER += " ORDER BY event_id, sink LIMIT ?3"
SELECT_EVENT = " UNION ALL ".join(
    f"SELECT {COLUMNS}, {state} FROM {table} WHERE event_id = ?1" for table, state in TABLES
)
SELECT_EVENT += " ORDER BY sink"
SELECT_IDS = "SELECT event_id FROM deliveries UNION SELECT event_id FROM new_deliveries ORDER BY event_id"
IS_NEW = "SELECT 1 FROM new_deliveries WHERE event_id = ?"
DELETE_DELIVERY = [f"DELETE FROM {table} WHERE event_id = ? AND +sink = ?" for table, _ in reversed(TABLES)]
DELETE_EVENT = [f"DELETE FROM {table} WHERE event_id = ?" for table, _ in TABLES]
UPDATE = "UPDATE deliveries SET attempts = ?, next_at = ?, dead = ?, error = ? WHERE event_id = ? AND sink = ?"
RETRY = "UPDATE deliveries SET next_at = 0, dead = 0 WHERE event_id = ?"
SELECT_DEPTH = (
    "SELECT sink, dead, COUNT(*) FROM deliveries GROUP BY sink, dead "
    "UNION ALL SELECT sink, 0, COUNT(*) FROM new_deliveries GROUP BY sink"
)
# The signs keep SQLite from the indexes: in the order of the table the first row that waits is close to its beginning.
SELECT_OLDEST = (
    "SELECT time FROM deliveries WHERE +sink = ? AND +dead = 0 ORDER BY number LIMIT 1",
    "SELECT time FROM new_deliveries WHERE sink = ? ORDER BY number LIMIT 1",
)
MAX_MOVED = 200  # deliveries that are moved in one transaction since they wait


class Submit(Protocol):
    """The way to the thread that writes the records."""

    def __call__(
        self,
        work: Callable[[sqlite3.Connection], Any],
        durable: bool = False,
        *,
        compound: bool = False,
        removes: bool = False,
    ) -> asyncio.Future[Any]:
        """Run work in a transaction; return the future of its result."""


class SQLiteOutbox:
    """The stored events of one file, see `Outbox`."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit

    async def due_deliveries(self, sink: str, now: float, limit: int) -> Sequence[Delivery]:
        """See `Outbox.due_deliveries`; new deliveries that wait behind others of their uploads are moved to those."""
        look = partial(_find_due, sink=sink, now=now, limit=limit)
        rows, waiting = await self._submit(look)
        while waiting:
            await self._submit(partial(_move_all, sink=sink, event_ids=waiting), compound=True)
            rows, waiting = await self._submit(look)
        return [_delivery(*row) for row in rows]

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""

        def remove(connection: sqlite3.Connection) -> None:
            rows, removed = [(event_id, sink) for event_id in event_ids], 0
            for statement in DELETE_DELIVERY:
                if removed < len(rows):
                    removed += connection.executemany(statement, rows).rowcount

        await self._submit(remove, compound=True, removes=True)

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """See `Outbox.postpone`."""
        await self._change(sink, event_id, (attempts, next_at, 0, error))

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """See `Outbox.bury`."""
        await self._change(sink, event_id, (attempts, 0, 1, error))

    async def deliveries(self, after: str, limit: int) -> DeliveryPage:
        """See `Outbox.deliveries`."""
        event_id, _, sink = after.partition(" ")
        found = await self._select(SELECT_AFTER, (event_id, sink, limit + 1))
        last = found[limit - 1] if len(found) > limit else None
        return DeliveryPage(found[:limit], "" if last is None else f"{last.event.id} {last.sink}")

    async def find_event(self, event_id: str) -> Sequence[Delivery]:
        """See `Outbox.find_event`."""
        return await self._select(SELECT_EVENT, (event_id,))

    async def retry(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        """See `Outbox.retry`."""

        def make_due(connection: sqlite3.Connection) -> list[str]:
            chosen = [row[0] for row in connection.execute(SELECT_IDS)] if event_ids is None else event_ids
            return [
                event_id
                for event_id in chosen
                if connection.execute(RETRY, (event_id,)).rowcount
                or connection.execute(IS_NEW, (event_id,)).fetchone() is not None
            ]

        return await self._submit(make_due, compound=True)  # type: ignore[no-any-return]

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        """See `Outbox.drop`."""

        def remove(connection: sqlite3.Connection) -> list[str]:
            return [
                event_id
                for event_id in event_ids
                if sum(connection.execute(statement, (event_id,)).rowcount for statement in DELETE_EVENT)
            ]

        return await self._submit(remove, compound=True, removes=True)  # type: ignore[no-any-return]

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depth`."""
        depths: Mapping[str, OutboxDepth] = await self._submit(_measure)
        return depths

    async def _select(self, statement: str, values: Sequence[Any]) -> Sequence[Delivery]:
        rows: list[Any] = await self._submit(lambda connection: connection.execute(statement, values).fetchall())
        return [_delivery(*row) for row in rows]

    async def _change(self, sink: str, event_id: str, state: tuple[int, float, int, str]) -> None:
        def change(connection: sqlite3.Connection) -> None:
            _move(connection, sink, event_id)
            connection.execute(UPDATE, (*state, event_id, sink))

        await self._submit(change, compound=True)


def add_events(connection: sqlite3.Connection, events: Sequence[OutboxEvent]) -> None:
    """Store a delivery of each event to each of its sinks, in the transaction under way."""
    for event in events:
        values = (event.id, event.upload_id, event.sequence, event.type, event.time, event.document)
        for sink in event.sinks:
            connection.execute(INSERT, (*values, sink))


def _find_due(connection: sqlite3.Connection, sink: str, now: float, limit: int) -> tuple[list[Any], list[str]]:
    """Return the rows that are due, and the ids of events among the new ones that wait behind those in `deliveries`."""
    rows = connection.execute(SELECT_DUE, (sink, now, now + FAR_AHEAD, limit)).fetchall()
    waiting: list[str] = []
    seen: set[str] = set()  # uploads whose oldest new delivery is due
    for row in connection.execute(SELECT_NEW, (sink,)):
        event_id, upload_id = row[:2]
        if upload_id in seen:
            continue
        if connection.execute(WAITS, (upload_id, sink)).fetchone() is not None:
            waiting.append(event_id)
        else:
            seen.add(upload_id)
            rows.append(row)
        if len(seen) == limit or len(waiting) == MAX_MOVED:
            break
    return sorted(rows, key=_next_at)[:limit], waiting


def _move_all(connection: sqlite3.Connection, sink: str, event_ids: Sequence[str]) -> None:
    for event_id in event_ids:
        _move(connection, sink, event_id)


def _move(connection: sqlite3.Connection, sink: str, event_id: str) -> None:
    """Move a new delivery to `deliveries`, after older ones of its upload; do nothing if it is not there."""
    row = connection.execute(SELECT_NUMBER, (event_id, sink)).fetchone()
    if row is not None:
        for statement in (MOVE, DELETE_MOVED):
            connection.execute(statement, (sink, *row))


def _measure(connection: sqlite3.Connection) -> Mapping[str, OutboxDepth]:
    counts: dict[str, list[int]] = {}
    for sink, dead, count in connection.execute(SELECT_DEPTH):
        counts.setdefault(sink, [0, 0])[dead] += count
    return {
        sink: OutboxDepth(waiting, dead, _oldest(connection, sink) if waiting else None)
        for sink, (waiting, dead) in counts.items()
    }


def _oldest(connection: sqlite3.Connection, sink: str) -> float:
    found = [row[0] for statement in SELECT_OLDEST for row in connection.execute(statement, (sink,))]
    return float(min(found))


def _next_at(row: Sequence[Any]) -> float:
    return float(row[8])


def _delivery(
    event_id: str,
    upload_id: str,
    sequence: int,
    kind: str,
    time: float,
    document: str,
    sink: str,
    attempts: int,
    next_at: float,
    dead: int,
    error: str,
) -> Delivery:
    event = OutboxEvent(event_id, upload_id, EventType(kind), sequence, time, document, (sink,))
    status = DeliveryStatus.DEAD if dead else DeliveryStatus.WAITING
    return Delivery(event, sink, attempts, next_at, status, error)
