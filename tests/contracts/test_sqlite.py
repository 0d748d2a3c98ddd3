"""Failures of a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.parts import within
from tusd_py.backends.sqlite.queries import INDEXES, _statement
from tusd_py.backends.sqlite.records import CHANGED, SELECT_DUE, UPDATE
from tusd_py.backends.sqlite.schema import SCHEMA
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.errors import BrokenRecord, StateFull, StateUnavailable
from tusd_py.core.listing import UploadFilter
from tusd_py.core.queries import UploadQuery
from tusd_py.core.upload import Status, Upload

UPLOAD = Upload(id="upload", created_at=1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "uploads.sqlite3"


@pytest.fixture
async def state(path: Path) -> AsyncIterator[SQLiteState]:
    state = SQLiteState(path)
    await state.open()
    yield state
    await state.close()


async def assert_does_not_open(path: Path) -> None:
    state = SQLiteState(path)
    with pytest.raises(StateUnavailable):
        await within(state.open())
    await within(state.close())


async def test_a_missing_directory(tmp_path: Path) -> None:
    await assert_does_not_open(tmp_path / "missing" / "uploads.sqlite3")


async def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    await assert_does_not_open(tmp_path)


@pytest.fixture
def something_else(path: Path) -> Path:
    path.write_bytes(b"this is not a database" * 1000)
    return path


async def test_a_file_that_is_something_else(something_else: Path) -> None:
    await assert_does_not_open(something_else)


async def test_a_full_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def connect_to_little_room(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 16")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_to_little_room)
    state = SQLiteState(path)
    await state.open()
    try:
        await state.create(UPLOAD)
        with pytest.raises(StateFull):
            await within(state.create(replace(UPLOAD, id="large", metadata="m" * (1 << 20))))
        assert await state.get("large") is None
        assert await state.get(UPLOAD.id) == UPLOAD
        await within(state.create(replace(UPLOAD, id="small")))
        assert await state.get("small") is not None
    finally:
        await state.close()


async def test_a_file_that_another_process_keeps_locked(
    path: Path, state: SQLiteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    await state.create(UPLOAD)
    monkeypatch.setattr("tusd_py.backends.sqlite.writer.BUSY_TIMEOUT", 0.1)
    impatient = SQLiteState(path)
    await impatient.open()
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable):
            await within(impatient.create(replace(UPLOAD, id="later")))
        assert await impatient.get(UPLOAD.id) == UPLOAD
        other.execute("ROLLBACK")
        await within(impatient.create(replace(UPLOAD, id="later")))
    finally:
        other.close()
        await impatient.close()


async def test_a_file_that_breaks_while_in_use(path: Path, state: SQLiteState) -> None:
    await state.create(UPLOAD)
    for file in path.parent.iterdir():
        with file.open("r+b") as content:
            content.write(b"x" * max(8192, file.stat().st_size))
    with pytest.raises(StateUnavailable):
        await within(state.get("another"))
    with pytest.raises(StateUnavailable):
        await within(state.create(replace(UPLOAD, id="another")))
    with pytest.raises(StateUnavailable):
        await within(state.due(1.0, 10))


def test_due_uploads_are_found_by_indexes(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {SELECT_DUE}", (1.0, 1.0, 1, 0)).fetchall()
    steps = [row[3] for row in plan if "uploads" in row[3]]
    assert len(steps) == 2
    assert all("uploads_by_expiry" in step or "uploads_to_finish" in step for step in steps), steps


@pytest.mark.parametrize("status", [None, *Status])
def test_lists_of_administrators_go_along_an_index(path: Path, status: Status | None) -> None:
    statement = _statement(UploadQuery(UploadFilter(status=status)))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join((SCHEMA, *INDEXES)))
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", statement.values).fetchall()
    index = "uploads_by_creation" if status in (None, Status.COMPLETE) else "uploads_not_complete"
    assert [index in row[3] for row in plan] == [True], plan


@pytest.mark.parametrize("index", ["uploads_by_creation", "uploads_by_owner"])
def test_change_of_a_record_writes_no_index_of_what_an_upload_keeps(path: Path, index: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join((SCHEMA, *INDEXES)))
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)).fetchone()
        values = [*range(len(CHANGED)), "id", 1, 0, "active"]
        steps = connection.execute(f"EXPLAIN {UPDATE}", values).fetchall()
    written = [step for step in steps if step[1] == "OpenWrite" and step[3] == page]
    assert written == [], written


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path, state: SQLiteState) -> None:
    await state.create(UPLOAD)
    await state.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA user_version = 99")
    newer = SQLiteState(path)
    with pytest.raises(StateUnavailable, match="newer version of tusd-py"):
        await within(newer.open())
    await within(newer.close())
    assert other.execute("PRAGMA user_version").fetchone() == (99,)
    other.close()


async def test_a_file_of_an_older_version_is_read_and_marked(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in OLD_SCHEMA:
            other.execute(statement)
        values: tuple[Any, ...] = ("old", 1.0, 9, 0, 5, "active", None, "", None, "", None, None, 0, 1)
        other.execute(f"INSERT INTO uploads VALUES ({', '.join('?' * len(values))})", values)
        values = ("recording", 1.0, None, 1, 5, "active", None, "", None, "", None, None, 0, 1)
        other.execute(f"INSERT INTO uploads VALUES ({', '.join('?' * len(values))})", values)
    for _ in range(2):
        state = SQLiteState(path)
        await state.open()
        assert await state.get("old") == Upload(id="old", created_at=1.0, length=9, offset=5, token=1)
        recording = Upload(id="recording", created_at=1.0, deferred=True, offset=5, synced=5, token=1)
        assert await state.get("recording") == recording
        await state.close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (1,)


OLD_SCHEMA = (  # of version 0.1
    """CREATE TABLE uploads (
        id TEXT PRIMARY KEY, created_at REAL NOT NULL, length INTEGER, deferred INTEGER NOT NULL,
        offset INTEGER NOT NULL, status TEXT NOT NULL, metadata TEXT, concatenation TEXT NOT NULL, concat_header TEXT,
        partial_ids TEXT NOT NULL, expires_at REAL, completed_at REAL, checkpoint INTEGER NOT NULL,
        token INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE parts (
        upload_id TEXT, number INTEGER, end INTEGER NOT NULL, etag TEXT NOT NULL, checksum TEXT NOT NULL,
        PRIMARY KEY (upload_id, number)
    ) WITHOUT ROWID""",
)


async def test_the_log_is_written_back_before_it_grows_large(path: Path, state: SQLiteState) -> None:
    for number in range(40):
        await asyncio.gather(*(state.create(replace(UPLOAD, id=f"{number}-{other}")) for other in range(50)))
    log = path.with_name(f"{path.name}-wal")
    assert await asyncio.to_thread(os.path.getsize, log) < 8 << 20
    assert await asyncio.to_thread(os.path.getsize, path) > 50_000


# Reading without waiting.


async def test_record_that_is_there_is_read_at_once_as_it_was_committed_last(state: SQLiteState) -> None:
    assert state.get_at_once("upload") is None
    await state.create(UPLOAD)
    assert state.get_at_once("upload") == UPLOAD
    longer = await state.update(UPLOAD, replace(UPLOAD, offset=7), 1)
    assert state.get_at_once("upload") == longer


async def test_record_that_another_process_changed_is_read_at_once_as_it_is_now(state: SQLiteState, path: Path) -> None:
    await state.create(UPLOAD)
    assert state.get_at_once("upload") == UPLOAD
    other = SQLiteState(path)
    await other.open()
    longer = await other.update(UPLOAD, replace(UPLOAD, offset=7), 1)
    await other.close()
    assert state.get_at_once("upload") == longer


@pytest.mark.parametrize(("column", "value"), [("status", "lost"), ("concatenation", "half"), ("offset", "much")])
async def test_record_with_garbage_in_it_is_not_read_at_once(
    state: SQLiteState, path: Path, column: str, value: str
) -> None:
    await state.create(UPLOAD)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE uploads SET {column} = ?", (value,))
    with pytest.raises(BrokenRecord) as caught:
        state.get_at_once("upload")
    assert (value if column != "offset" else "offset") in caught.value.reason


async def test_reads_after_closing_say_that_the_records_cannot_be_used(path: Path) -> None:
    state = SQLiteState(path)
    await state.open()
    await state.create(UPLOAD)
    await state.close()

    assert state.get_at_once(UPLOAD.id) is None
    with pytest.raises(StateUnavailable):
        await state.get(UPLOAD.id)


async def test_a_log_that_an_earlier_process_left_is_written_back_at_the_start(path: Path, tmp_path: Path) -> None:
    killed = SQLiteState(path)
    await killed.open()
    await killed.create(UPLOAD)
    copy = tmp_path / "copy"
    await asyncio.to_thread(shutil.copytree, path.parent, copy)  # as a killed process leaves them
    await killed.close()
    log = copy / f"{path.name}-wal"
    assert log.stat().st_size > 0

    state = SQLiteState(copy / path.name)
    await state.open()

    assert log.stat().st_size == 0
    assert await state.get(UPLOAD.id) == UPLOAD
    await state.close()


HOLD_CHECKPOINT_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shared_memory:
    fcntl.lockf(shared_memory, fcntl.LOCK_EX, 1, 121)  # WAL_CKPT_LOCK
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_first_durable_change_waits_for_a_checkpoint_of_another_process(path: Path) -> None:
    """SQLite refuses a second checkpoint at once, as where processes start together; that is no failed sync."""
    first, second = SQLiteState(path), SQLiteState(path)
    await first.open()
    await first.create(UPLOAD, durable=True)
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", HOLD_CHECKPOINT_LOCK, f"{path}-shm"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    await second.open()
    change = asyncio.create_task(second.write_metadata("name", "value", before=None))
    await asyncio.wait((change,), timeout=0.5)
    assert not change.done()
    await holder.communicate(b"")  # the end of its input
    assert await change
    await second.close()
    await first.close()
