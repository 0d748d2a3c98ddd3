"""The outbox in the file of the records: events are added in the transaction of the change that they tell of."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryPage, DeliveryStatus, EventType, OutboxDepth, OutboxEvent

COLUMNS = "event_id, upload_id, sequence, type, time, document, sink"
INSERT = f"INSERT INTO deliveries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
SELECT = f"SELECT {COLUMNS}, attempts, next_at, dead, error FROM deliveries AS d"
SELECT_DUE = (
    f"{SELECT} WHERE sink = ? AND dead = 0 AND (next_at <= ? OR next_at > ?) AND NOT EXISTS "
    "(SELECT 1 FROM deliveries AS e WHERE e.upload_id = d.upload_id AND e.sink = d.sink AND e.dead = 0 "
    "AND e.number < d.number) ORDER BY next_at, number LIMIT ?"
)
SELECT_AFTER = f"{SELECT} WHERE (event_id, sink) > (?, ?) ORDER BY event_id, sink LIMIT ?"
SELECT_EVENT = f"{SELECT} WHERE event_id = ? ORDER BY sink"
SELECT_IDS = "SELECT DISTINCT event_id FROM deliveries ORDER BY event_id"
DELETE_DELIVERY = "DELETE FROM deliveries WHERE event_id = ? AND sink = ?"
DELETE_EVENT = "DELETE FROM deliveries WHERE event_id = ?"
UPDATE = "UPDATE deliveries SET attempts = ?, next_at = ?, dead = ?, error = ? WHERE event_id = ? AND sink = ?"
RETRY = "UPDATE deliveries SET next_at = 0, dead = 0 WHERE event_id = ?"
SELECT_DEPTH = "SELECT sink, dead, COUNT(*) FROM deliveries GROUP BY sink, dead"
# The signs keep SQLite from the indexes: in the order of the table the first row that waits is close to its beginning.
SELECT_OLDEST = "SELECT time FROM deliveries WHERE +sink = ? AND +dead = 0 ORDER BY number LIMIT 1"


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
        """See `Outbox.due_deliveries`."""
        return await self._select(SELECT_DUE, (sink, now, now + FAR_AHEAD, limit))

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""
        rows = [(event_id, sink) for event_id in event_ids]
        await self._submit(
            lambda connection: connection.executemany(DELETE_DELIVERY, rows).rowcount, compound=True, removes=True
        )

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """See `Outbox.postpone`."""
        await self._change(UPDATE, (attempts, next_at, 0, error, event_id, sink))

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """See `Outbox.bury`."""
        await self._change(UPDATE, (attempts, 0, 1, error, event_id, sink))

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
            return [event_id for event_id in chosen if connection.execute(RETRY, (event_id,)).rowcount]

        return await self._submit(make_due, compound=True)  # type: ignore[no-any-return]

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        """See `Outbox.drop`."""

        def remove(connection: sqlite3.Connection) -> list[str]:
            return [event_id for event_id in event_ids if connection.execute(DELETE_EVENT, (event_id,)).rowcount]

        return await self._submit(remove, compound=True, removes=True)  # type: ignore[no-any-return]

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depth`."""
        depths: Mapping[str, OutboxDepth] = await self._submit(_measure)
        return depths

    async def _select(self, statement: str, values: Sequence[Any]) -> Sequence[Delivery]:
        rows: list[Any] = await self._submit(lambda connection: connection.execute(statement, values).fetchall())
        return [_delivery(*row) for row in rows]

    async def _change(self, statement: str, values: Sequence[Any]) -> None:
        await self._submit(lambda connection: connection.execute(statement, values).rowcount)


def add_events(connection: sqlite3.Connection, events: Sequence[OutboxEvent]) -> None:
    """Store a delivery of each event to each of its sinks, in the transaction under way."""
    for event in events:
        values = (event.id, event.upload_id, event.sequence, event.type, event.time, event.document)
        for sink in event.sinks:
            connection.execute(INSERT, (*values, sink))


def _measure(connection: sqlite3.Connection) -> Mapping[str, OutboxDepth]:
    counts: dict[str, list[int]] = {}
    for sink, dead, count in connection.execute(SELECT_DEPTH):
        counts.setdefault(sink, [0, 0])[dead] = count
    depths = {}
    for sink, (waiting, dead) in counts.items():
        oldest = connection.execute(SELECT_OLDEST, (sink,)).fetchone() if waiting else None
        depths[sink] = OutboxDepth(waiting, dead, None if oldest is None else oldest[0])
    return depths


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
