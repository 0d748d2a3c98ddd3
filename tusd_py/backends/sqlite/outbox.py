"""The outbox in the file of the records: events are added in the transaction of the change that they tell of.

A delivery is added to `new_deliveries`, which has only the index that every event needs, that of the sink: the place of
an event there is known since it was found to be due, and else the table is read. A delivery that has failed, or that
waits behind such a delivery of its upload, moves to `deliveries`, whose indexes find what is due.

Invariant: a delivery in `new_deliveries` is newer than those of its upload and sink in `deliveries`.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryPage, DeliveryStatus, EventType, OutboxDepth, OutboxEvent

COLUMNS = "event_id, upload_id, sequence, type, time, document, sink"
STATE = "attempts, next_at, dead, error"
STATE_OF_NEW = "0, 0, 0, ''"
SELECT_DUE = (
    f"SELECT {COLUMNS}, {STATE} FROM deliveries AS d "
    "WHERE sink = ? AND dead = 0 AND (next_at <= ? OR next_at > ?) AND NOT EXISTS "
    "(SELECT 1 FROM deliveries AS e WHERE e.upload_id = d.upload_id AND e.sink = d.sink AND e.dead = 0 "
    "AND e.number < d.number) ORDER BY next_at, number LIMIT ?"
)
SELECT_NEW = (
    f"SELECT {COLUMNS}, {STATE_OF_NEW}, number, EXISTS (SELECT 1 FROM deliveries AS e "
    "WHERE e.upload_id = n.upload_id AND e.sink = n.sink AND e.dead = 0) "
    "FROM new_deliveries AS n WHERE sink = ? ORDER BY number"
)
UP_TO = "FROM new_deliveries WHERE sink = ? AND number <= ? AND upload_id = ?"
MOVE = f"INSERT INTO deliveries ({COLUMNS}) SELECT {COLUMNS} {UP_TO} ORDER BY number"
DELETE_MOVED = f"DELETE {UP_TO}"
TABLES = (("new_deliveries", STATE_OF_NEW), ("deliveries", STATE))
SELECT_AFTER = [
    f"SELECT {COLUMNS}, {state}, number FROM {table} WHERE number > ? ORDER BY number LIMIT ?"
    for table, state in TABLES
]
CURSOR = re.compile(r"([0-9]) ([0-9]{1,18})")
SELECT_EVENT = " UNION ALL ".join(
    f"SELECT {COLUMNS}, {state} FROM {table} WHERE event_id = ?1" for table, state in TABLES
)
SELECT_EVENT += " ORDER BY sink"
SELECT_IDS = "SELECT event_id FROM deliveries UNION SELECT event_id FROM new_deliveries"
SELECT_PLACES = "SELECT number, event_id, sink FROM new_deliveries WHERE event_id IN "  # reads the table
AT = "FROM new_deliveries WHERE number = ? AND event_id = ? AND sink = ?"
SELECT_AT = f"SELECT upload_id {AT}"
DELETE_AT = f"DELETE {AT}"
DELETE_DELIVERY = "DELETE FROM deliveries WHERE event_id = ? AND sink = ?"
DELETE_EVENT = "DELETE FROM deliveries WHERE event_id = ?"
UPDATE = "UPDATE deliveries SET attempts = ?, next_at = ?, dead = ?, error = ? WHERE event_id = ? AND sink = ?"
RETRY_ALL = "UPDATE deliveries SET next_at = 0, dead = 0"
RETRY = f"{RETRY_ALL} WHERE event_id = ?"
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
MAX_PLACES = 4096  # of new deliveries that are known
MAX_ROWS = 16  # that one statement adds
MAX_IDS = 500  # of events that one statement looks for


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
        self._places: dict[tuple[str, str], int] = {}  # numbers of new deliveries, by sink and id of the event

    async def due_deliveries(self, sink: str, now: float, limit: int) -> Sequence[Delivery]:
        """See `Outbox.due_deliveries`; new deliveries that wait behind others of their uploads are moved to those."""
        look = partial(_find_due, sink=sink, now=now, limit=limit)
        due: _Due = await self._submit(look)
        while due.waiting:
            await self._submit(partial(_move_all, rows=due.waiting), compound=True)
            due = await self._submit(look)
        if len(self._places) > MAX_PLACES:
            self._places.clear()
        self._places |= {(sink, event_id): number for event_id, number in due.places.items()}
        return [_delivery(*row) for row in due.rows]

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""
        places = [(number, one, sink) for one in event_ids if (number := self._places.get((sink, one))) is not None]

        def remove(connection: sqlite3.Connection) -> None:
            removed = connection.executemany(DELETE_AT, places).rowcount if places else 0
            if removed < len(event_ids):
                rows = [(event_id, sink) for event_id in event_ids]
                removed += connection.executemany(DELETE_DELIVERY, rows).rowcount
            if removed < len(event_ids):
                found = [place for place in _find_places(connection, event_ids) if place[2] == sink]
                connection.executemany(DELETE_AT, found)

        await self._submit(remove, compound=True, removes=True)
        self._forget(sink, event_ids)

    def _forget(self, sink: str, event_ids: Sequence[str]) -> None:
        for event_id in event_ids:
            self._places.pop((sink, event_id), None)

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """See `Outbox.postpone`."""
        await self._change(sink, event_id, (attempts, next_at, 0, error))

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """See `Outbox.bury`."""
        await self._change(sink, event_id, (attempts, 0, 1, error))

    async def deliveries(self, after: str, limit: int) -> DeliveryPage:
        """See `Outbox.deliveries`."""
        table, number = _parse_cursor(after)
        found: list[tuple[int, Any]] = await self._submit(partial(_list, table=table, number=number, limit=limit + 1))
        cursor = ""
        if len(found) > limit:
            last_table, row = found[limit - 1]
            cursor = f"{last_table} {row[-1]}"
        return DeliveryPage([_delivery(*row[:-1]) for _, row in found[:limit]], cursor)

    async def find_event(self, event_id: str) -> Sequence[Delivery]:
        """See `Outbox.find_event`."""
        return await self._select(SELECT_EVENT, (event_id,))

    async def retry(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        """See `Outbox.retry`."""

        def make_due(connection: sqlite3.Connection) -> list[str]:
            if event_ids is None:
                connection.execute(RETRY_ALL)
                return [row[0] for row in connection.execute(SELECT_IDS)]
            new = {place[1] for place in _find_places(connection, event_ids)}
            return [one for one in event_ids if connection.execute(RETRY, (one,)).rowcount or one in new]

        return await self._submit(make_due, compound=True)  # type: ignore[no-any-return]

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        """See `Outbox.drop`."""

        def remove(connection: sqlite3.Connection) -> list[str]:
            places = _find_places(connection, event_ids)
            connection.executemany(DELETE_AT, places)
            new = {place[1] for place in places}
            return [one for one in event_ids if connection.execute(DELETE_EVENT, (one,)).rowcount or one in new]

        return await self._submit(remove, compound=True, removes=True)  # type: ignore[no-any-return]

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depth`."""
        depths: Mapping[str, OutboxDepth] = await self._submit(_measure)
        return depths

    async def _select(self, statement: str, values: Sequence[Any]) -> Sequence[Delivery]:
        rows: list[Any] = await self._submit(lambda connection: connection.execute(statement, values).fetchall())
        return [_delivery(*row) for row in rows]

    async def _change(self, sink: str, event_id: str, state: tuple[int, float, int, str]) -> None:
        number = self._places.get((sink, event_id))

        def change(connection: sqlite3.Connection) -> None:
            if number is not None:
                _move(connection, sink, event_id, number)
            if connection.execute(UPDATE, (*state, event_id, sink)).rowcount == 0:
                for place, *_ in _find_places(connection, (event_id,)):
                    _move(connection, sink, event_id, place)
                connection.execute(UPDATE, (*state, event_id, sink))

        await self._submit(change, compound=True)
        self._forget(sink, (event_id,))


def add_events(connection: sqlite3.Connection, events: Sequence[OutboxEvent]) -> None:
    """Store a delivery of each event to each of its sinks, in the transaction under way.

    Each statement lets go of the interpreter lock, so that one adds several rows.
    """
    rows = [
        (event.id, event.upload_id, event.sequence, event.type, event.time, event.document, sink)
        for event in events
        for sink in event.sinks
    ]
    for start in range(0, len(rows), MAX_ROWS):
        some = rows[start : start + MAX_ROWS]
        connection.execute(_insertion(len(some)), tuple(chain.from_iterable(some)))


@cache
def _insertion(count: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * count)
    return f"INSERT INTO new_deliveries ({COLUMNS}) VALUES {values}"


class _Due(NamedTuple):
    """The rows that are due, and what was found out about the new deliveries on the way."""

    rows: Sequence[Any]
    places: Mapping[str, int]  # numbers of the new deliveries among them, by the ids of their events
    waiting: Sequence[tuple[str, int, str]]  # sink, number and upload of new ones that wait behind `deliveries`


def _find_due(connection: sqlite3.Connection, sink: str, now: float, limit: int) -> _Due:
    rows = connection.execute(SELECT_DUE, (sink, now, now + FAR_AHEAD, limit)).fetchall()
    places: dict[str, int] = {}
    waiting: list[tuple[str, int, str]] = []
    seen: set[str] = set()  # uploads whose oldest new delivery is due
    for *row, number, waits in connection.execute(SELECT_NEW, (sink,)):
        event_id, upload_id = row[:2]
        if upload_id in seen:
            continue
        if waits:
            waiting.append((sink, number, upload_id))
        else:
            seen.add(upload_id)
            rows.append(row)
            places[event_id] = number
        if len(seen) == limit or len(waiting) == MAX_MOVED:
            break
    return _Due(sorted(rows, key=_next_at)[:limit], places, waiting)


def _find_places(connection: sqlite3.Connection, event_ids: Sequence[str]) -> list[Any]:
    """Return number, event id and sink of new deliveries. Reads the whole table."""
    places: list[Any] = []
    for start in range(0, len(event_ids), MAX_IDS):
        some = event_ids[start : start + MAX_IDS]
        places += connection.execute(f"{SELECT_PLACES} ({', '.join('?' * len(some))})", some)
    return places


def _move_all(connection: sqlite3.Connection, rows: Sequence[tuple[str, int, str]]) -> None:
    """Move the new deliveries of uploads to a sink, up to given numbers, to `deliveries`."""
    for row in rows:
        for statement in (MOVE, DELETE_MOVED):
            connection.execute(statement, row)


def _move(connection: sqlite3.Connection, sink: str, event_id: str, number: int) -> None:
    """Move a new delivery to `deliveries`, after older ones of its upload; do nothing if it is not there."""
    row = connection.execute(SELECT_AT, (number, event_id, sink)).fetchone()
    if row is not None:
        _move_all(connection, [(sink, number, row[0])])


def _parse_cursor(text: str) -> tuple[int, int]:
    """Return the table and the number in a cursor; raises `ValueError`."""
    if not text:
        return 0, 0
    match = CURSOR.fullmatch(text)
    if match is None or int(match[1]) >= len(TABLES):
        raise ValueError("it is no cursor of this list")
    return int(match[1]), int(match[2])


def _list(connection: sqlite3.Connection, table: int, number: int, limit: int) -> list[tuple[int, Any]]:
    """Return rows after a number of a table and those of the tables after it, each with its table.

    New deliveries come first: one that is moved meanwhile is listed twice, but not passed over.
    """
    found: list[tuple[int, Any]] = []
    for index in range(table, len(TABLES)):
        rows = connection.execute(SELECT_AFTER[index], (number if index == table else 0, limit - len(found)))
        found += [(index, row) for row in rows]
    return found


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
