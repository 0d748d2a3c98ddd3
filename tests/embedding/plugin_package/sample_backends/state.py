"""A state store: one table of records as JSON, in a file of SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from tusd_py import (
    BrokenRecord,
    LockLost,
    Page,
    StateUnavailable,
    Status,
    Upload,
    UploadExists,
    UploadFilter,
    UploadKind,
    UploadPart,
)
from tusd_py.core.clock import Clock, SystemClock
from tusd_py.core.listing import EVERYTHING, MAX_SCANNED, next_page

T = TypeVar("T")
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (id TEXT PRIMARY KEY, record TEXT NOT NULL, due REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (id TEXT, number INTEGER, part TEXT, PRIMARY KEY (id, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (partial TEXT, final TEXT, PRIMARY KEY (partial, final)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS texts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class RecordTable:
    """A state store in SQLite with a connection for every call; every transaction is synced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def clock(self) -> Clock:
        return SystemClock()

    async def ping(self) -> None:
        await self.get("")

    async def refresh_clock(self) -> None:
        """Do nothing: the clock is that of this host."""

    async def open(self) -> None:
        def prepare() -> None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._connected() as connection:
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")

        await asyncio.to_thread(prepare)

    async def close(self) -> None:
        """Do nothing: no connection is open between two calls."""

    async def create(self, upload: Upload, *, durable: bool = False) -> None:
        stamped = upload if upload.updated_at is not None else replace(upload, updated_at=self.clock.wall())

        def insert(connection: sqlite3.Connection) -> None:
            try:
                connection.execute("INSERT INTO records VALUES (?, ?, ?)", _row(stamped))
            except sqlite3.IntegrityError:
                raise UploadExists from None

        await self._do(insert)

    async def get(self, upload_id: str) -> Upload | None:
        rows = await self._rows("SELECT id, record FROM records WHERE id = ?", upload_id)
        return _upload(*rows[0]) if rows else None

    async def update(
        self, before: Upload, after: Upload, token: int, *, parts: Sequence[UploadPart] = (), durable: bool = False
    ) -> Upload:
        stored = replace(after, token=token, updated_at=self.clock.wall())

        def change(connection: sqlite3.Connection) -> None:
            found = connection.execute("SELECT id, record FROM records WHERE id = ?", (before.id,)).fetchone()
            current = _upload(*found) if found else None
            if current is None or current.token > token:
                raise LockLost
            if (current.offset, current.status) != (before.offset, before.status):
                raise LockLost
            connection.execute("REPLACE INTO records VALUES (?, ?, ?)", _row(stored))
            rows = [(before.id, part.number, json.dumps(asdict(part))) for part in parts]
            connection.executemany("REPLACE INTO parts VALUES (?, ?, ?)", rows)
            if stored.is_complete:
                connection.execute("DELETE FROM parts WHERE id = ?", (before.id,))

        await self._do(change)
        return stored

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        rows = await self._rows("SELECT part FROM parts WHERE id = ? ORDER BY number", upload_id)
        return [UploadPart(**json.loads(text)) for (text,) in rows]

    async def delete(self, upload_id: str, token: int) -> None:
        def remove(connection: sqlite3.Connection) -> None:
            found = connection.execute("SELECT id, record FROM records WHERE id = ?", (upload_id,)).fetchone()
            with contextlib.suppress(BrokenRecord):
                if found and _upload(*found).token > token:
                    raise LockLost
            connection.execute("DELETE FROM records WHERE id = ?", (upload_id,))
            connection.execute("DELETE FROM parts WHERE id = ?", (upload_id,))

        await self._do(remove)

    async def due(self, now: float, limit: int, *, skip: int = 0) -> Sequence[Upload]:
        rows = await self._rows("SELECT id, record FROM records WHERE due <= ? ORDER BY due, id", now)
        return [upload for row in rows if (upload := _readable(*row)) is not None][skip : skip + limit]

    async def add_waiting(self, partial_id: str, final_id: str) -> None:
        await self._do(
            lambda connection: connection.execute("REPLACE INTO waiting VALUES (?, ?)", (partial_id, final_id))
        )

    async def waiting_for(self, partial_id: str, limit: int) -> Sequence[str]:
        rows = await self._rows("SELECT final FROM waiting WHERE partial = ? LIMIT ?", partial_id, limit)
        return [final_id for (final_id,) in rows]

    async def remove_waiting(self, partial_id: str, final_ids: Sequence[str]) -> None:
        rows = [(partial_id, final_id) for final_id in final_ids]
        statement = "DELETE FROM waiting WHERE partial = ? AND final = ?"
        await self._do(lambda connection: connection.executemany(statement, rows))

    async def read_metadata(self, name: str) -> str | None:
        rows = await self._rows("SELECT value FROM texts WHERE name = ?", name)
        return str(rows[0][0]) if rows else None

    async def write_metadata(self, name: str, value: str, *, before: str | None) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            found = connection.execute("SELECT value FROM texts WHERE name = ?", (name,)).fetchone()
            if (found[0] if found else None) != before:
                return False
            connection.execute("REPLACE INTO texts VALUES (?, ?)", (name, value))
            return True

        return await self._do(write)

    async def list(self, *, after: str = "", limit: int = 100, condition: UploadFilter = EVERYTHING) -> Page:
        count = max(limit + 1, MAX_SCANNED)
        rows = await self._rows("SELECT id, record FROM records WHERE id > ? ORDER BY id LIMIT ?", after, count)
        return next_page([(row[0], _readable(*row)) for row in rows], limit, condition, last=len(rows) < count)

    async def all(self) -> AsyncIterator[Upload]:
        for row in await self._rows("SELECT id, record FROM records"):
            upload = _readable(*row)
            if upload is not None:
                yield upload

    async def broken(self) -> AsyncIterator[BrokenRecord]:
        for row in await self._rows("SELECT id, record FROM records"):
            try:
                _upload(*row)
            except BrokenRecord as error:
                yield error

    async def _rows(self, statement: str, *values: object) -> Sequence[Any]:
        return await self._do(lambda connection: connection.execute(statement, values).fetchall())

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with self._connected() as connection:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
                return result

        return await asyncio.to_thread(run)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            with contextlib.closing(connection):
                yield connection
        except sqlite3.Error as error:
            raise StateUnavailable from error


def _row(upload: Upload) -> tuple[str, str, float | None]:
    due = upload.expires_at
    if upload.status is Status.FINISHING and not upload.is_waiting:
        due = 0.0
    return upload.id, json.dumps(asdict(upload)), due


def _upload(upload_id: str, text: str) -> Upload:
    try:
        values = json.loads(text)
        kind = {"status": Status(values["status"]), "concatenation": UploadKind(values["concatenation"])}
        return Upload(**values | kind | {"partial_ids": tuple(values["partial_ids"])})
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenRecord(upload_id, str(error), Upload(upload_id, 0.0)) from error


def _readable(upload_id: str, text: str) -> Upload | None:
    with contextlib.suppress(BrokenRecord):
        return _upload(upload_id, text)
    return None
