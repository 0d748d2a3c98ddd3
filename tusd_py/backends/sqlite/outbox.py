"""The outbox in the file of the records: events are added in the transaction of the change that they tell of."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryPage, DeliveryStatus, EventType, OutboxDepth, OutboxEvent

INSERT_EVENT = "INSERT INTO outbox (id, upload_id, sequence, type, time, document) VALUES (?, ?, ?, ?, ?, ?)"
INSERT_DELIVERY = "INSERT INTO deliveries (sink, number, upload_id) VALUES (?, ?, ?)"
SELECT = (
    "SELECT o.id, o.upload_id, o.sequence, o.type, o.time, o.document, d.sink, d.attempts, d.next_at, d.dead, d.error "
    "FROM deliveries AS d JOIN outbox AS o ON o.number = d.number"
)
SELECT_DUE = (
    f"{SELECT} WHERE d.sink = ? AND d.dead = 0 AND (d.next_at <= ? OR d.next_at > ?) AND NOT EXISTS "
    "(SELECT 1 FROM deliveries AS e WHERE e.upload_id = d.upload_id AND e.sink = d.sink "
    "AND e.number < d.number AND e.dead = 0) "
    "ORDER BY d.next_at, d.number LIMIT ?"
)
SELECT_AFTER = f"{SELECT} WHERE (o.id, d.sink) > (?, ?) ORDER BY o.id, d.sink LIMIT ?"
SELECT_EVENT = f"{SELECT} WHERE o.id = ? ORDER BY d.sink"
NUMBER = "(SELECT number FROM outbox WHERE id = ?)"
DELETE_DELIVERY = f"DELETE FROM deliveries WHERE number = {NUMBER} AND sink = ?"
DELETE_DELIVERIES = f"DELETE FROM deliveries WHERE number = {NUMBER}"
DELETE_DELIVERED = (
    "DELETE FROM outbox WHERE id = ? AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.number = outbox.number)"
)
UPDATE_DELIVERY = (
    f"UPDATE deliveries SET attempts = ?, next_at = ?, dead = ?, error = ? WHERE number = {NUMBER} AND sink = ?"
)
RETRY = f"UPDATE deliveries SET next_at = 0, dead = 0 WHERE number = {NUMBER}"
SELECT_IDS = "SELECT id FROM outbox ORDER BY id"
SELECT_DEPTH = (
    "SELECT d.sink, SUM(d.dead = 0), SUM(d.dead), MIN(CASE WHEN d.dead = 0 THEN o.time END) "
    "FROM deliveries AS d JOIN outbox AS o ON o.number = d.number GROUP BY d.sink"
)


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

        def remove(connection: sqlite3.Connection) -> None:
            connection.executemany(DELETE_DELIVERY, [(event_id, sink) for event_id in event_ids])
            connection.executemany(DELETE_DELIVERED, [(event_id,) for event_id in event_ids])

        await self._submit(remove, compound=True, removes=True)

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """See `Outbox.postpone`."""
        await self._change(UPDATE_DELIVERY, (attempts, next_at, 0, error, event_id, sink))

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """See `Outbox.bury`."""
        await self._change(UPDATE_DELIVERY, (attempts, 0, 1, error, event_id, sink))

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
            connection.executemany(DELETE_DELIVERIES, [(event_id,) for event_id in event_ids])
            return [event_id for event_id in event_ids if connection.execute(DELETE_DELIVERED, (event_id,)).rowcount]

        return await self._submit(remove, compound=True, removes=True)  # type: ignore[no-any-return]

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depth`."""
        rows: list[Any] = await self._submit(lambda connection: connection.execute(SELECT_DEPTH).fetchall())
        return {sink: OutboxDepth(waiting, dead, oldest) for sink, waiting, dead, oldest in rows}

    async def _select(self, statement: str, values: Sequence[Any]) -> Sequence[Delivery]:
        rows: list[Any] = await self._submit(lambda connection: connection.execute(statement, values).fetchall())
        return [_delivery(*row) for row in rows]

    async def _change(self, statement: str, values: Sequence[Any]) -> None:
        await self._submit(lambda connection: connection.execute(statement, values).rowcount)


def add_events(connection: sqlite3.Connection, events: Sequence[OutboxEvent]) -> None:
    """Store events with a delivery to each of their sinks, in the transaction under way."""
    for event in events:
        values = (event.id, event.upload_id, event.sequence, event.type, event.time, event.document)
        number = connection.execute(INSERT_EVENT, values).lastrowid
        for sink in event.sinks:
            connection.execute(INSERT_DELIVERY, (sink, number, event.upload_id))


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
