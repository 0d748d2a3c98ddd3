"""The suite of questions of administrators against every state store; broken records; the cost among 100,000."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.contracts.parts import STATE_STORES, prefix_of, redis, within
from tests.support.redis_server import shared_redis_url
from tests.support.timing import scaled
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.sqlite import queries as queries_module, read_thread
from tusd_py.backends.sqlite.queries import SLICE, SLICE_END, Statement
from tusd_py.backends.sqlite.records import INSERT
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.listing import UploadFilter
from tusd_py.core.metadata import encode_metadata
from tusd_py.core.queries import UploadQuery
from tusd_py.core.upload import Status, Upload
from tusd_py.core.upload_codec import encode_row, encode_upload
from tusd_py.testing.query_suite import QuerySuite, everything, ids, upload
from tusd_py.uploads.queries import RecordQueries

COUNT = 100_000
PAGE_TIME = 0.05  # seconds


class TestSQLite(QuerySuite):
    def make(self, place: Path) -> StateStore:
        return STATE_STORES["sqlite"](place)


class TestRedis(QuerySuite):
    def make(self, place: Path) -> StateStore:
        return STATE_STORES["redis"](place)


class TestStoreWithoutQueries(QuerySuite):
    def setup_method(self) -> None:
        self.records = MemoryRecords()

    def make(self, place: Path) -> StateStore:
        return MemoryState(self.records)


@pytest.fixture
async def queries(state: StateStore) -> RecordQueries:
    queries = RecordQueries(state)
    await queries.prepare()
    return queries


@pytest.mark.parametrize("field", ["status", "created_at", "offset"])
@pytest.mark.parametrize("order", ["created_at", "offset", "status", "filename"])
async def test_pages_pass_over_broken_records(
    state: StateStore, queries: RecordQueries, tmp_path: Path, order: str, field: str
) -> None:
    for number in range(1, 9):
        await state.create(upload(number, offset=number, metadata=encode_metadata({"filename": f"{number}"})))
    damaged = ["id-00003", "id-00004", "id-00008"]
    if isinstance(state, RedisState):
        with Redis.from_url(shared_redis_url()) as client:
            for upload_id in damaged:
                client.hset(f"{tmp_path}:{{{upload_id}}}:record", field, "garbage")
    else:
        with contextlib.closing(sqlite3.connect(tmp_path / "uploads.sqlite3")) as database:
            for upload_id in damaged:
                database.execute(f"UPDATE uploads SET {field} = 'garbage' WHERE id = ?", (upload_id,))
            database.commit()
    expected = [f"id-{number:05}" for number in (7, 6, 5, 2, 1)]
    for limit in (1, 2, 100):
        assert ids(await everything(queries, UploadQuery(order=order, limit=limit))) == expected
        ascending = UploadQuery(order=order, descending=False, limit=limit)
        assert ids(await everything(queries, ascending)) == expected[::-1]
    await queries.totals()


@pytest.mark.parametrize("is_sent", [False, True], ids=["waits", "under-way"])
async def test_upload_with_the_id_of_a_completed_one_is_among_the_unfinished_ones(
    state: StateStore, queries: RecordQueries, is_sent: bool
) -> None:
    """Redis takes completed uploads out of an index in groups, a moment later."""
    first = upload(1)
    await state.create(first)
    done = await state.update(first, replace(first, offset=100, status=Status.COMPLETE), 1)
    if is_sent and isinstance(state, RedisState):
        state._created_index._send_completed()
    await state.delete(done.id, 1)
    await state.create(upload(1))
    if isinstance(state, RedisState):
        await state._created_index.close()  # sends what waits
    assert ids(await everything(queries, UploadQuery(UploadFilter(status=Status.ACTIVE)))) == [first.id]


def many() -> list[Upload]:
    """Return records as a busy server has them."""
    return [
        Upload(
            f"{number * 7919 % COUNT:032x}",
            created_at=1_700_000_000.0 + number,
            length=1 << 20,
            offset=1 << 20 if number % 10 else number,
            status=Status.COMPLETE if number % 10 else Status.ACTIVE,
            owner=f"owner-{number % 40}",
            metadata=encode_metadata({"filename": f"talk {number}.webm", "filetype": "video/webm"}),
            expires_at=None if number % 10 else 1_800_000_000.0 + number,
            completed_at=1_700_000_001.0 + number if number % 10 else None,
            location="2026/01/31",
            client="192.0.2.17",
            updated_at=1_700_000_001.0 + number,
        )
        for number in range(COUNT)
    ]


@pytest.fixture(params=["sqlite", "redis"])
async def crowded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RecordQueries]:
    """The queries of 100,000 records."""
    state: SQLiteState | RedisState
    if request.param == "sqlite":
        state = SQLiteState(tmp_path / "uploads.sqlite3")
        await state.open()
        rows = [encode_row(record) for record in many()]
        await asyncio.to_thread(insert_rows, tmp_path / "uploads.sqlite3", rows)
    else:
        state = RedisState(redis(), prefix_of(tmp_path))
        await state.open()
        await asyncio.to_thread(insert_hashes, f"{tmp_path}:", many())
    queries = RecordQueries(state)
    await queries.prepare()
    yield queries
    await state.close()
    if request.param == "redis":
        await asyncio.to_thread(remove_keys, f"{tmp_path}:")


def insert_rows(path: Path, rows: list[tuple[object, ...]]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executemany(INSERT, rows)
        database.commit()


def insert_hashes(prefix: str, records: list[Upload]) -> None:
    with Redis.from_url(shared_redis_url()) as client:
        for start in range(0, len(records), 1000):
            with client.pipeline(transaction=False) as pipeline:
                for record in records[start : start + 1000]:
                    pipeline.hset(f"{prefix}{{{record.id}}}:record", mapping=encode_upload(record))
                pipeline.execute()


def remove_keys(prefix: str) -> None:
    with Redis.from_url(shared_redis_url()) as client:
        keys = client.scan_iter(match=f"{prefix}*", count=5000)
        while some := [key for key, _ in zip(keys, range(5000), strict=False)]:
            client.unlink(*some)


async def test_page_among_many_records_takes_milliseconds(crowded: RecordQueries) -> None:
    lists = {
        "newest": UploadQuery(),
        "oldest": UploadQuery(descending=False),
        "of an owner": UploadQuery(UploadFilter(owner="owner-7")),
        "active": UploadQuery(UploadFilter(status=Status.ACTIVE)),
        "complete": UploadQuery(UploadFilter(status=Status.COMPLETE)),
        "of a time": UploadQuery(UploadFilter(created_after=1_700_050_000.0, created_before=1_700_060_000.0)),
    }
    for name, query in lists.items():
        times = []
        for _ in range(20):
            started = time.perf_counter()
            page = await crowded.find(query)
            times.append(time.perf_counter() - started)
            assert len(page.uploads) == 100, name
            assert page.next is not None
            query = UploadQuery(query.condition, query.order, query.descending, after=page.next)
        print(f"{name}: median {statistics.median(times) * 1000:.1f} ms, longest {max(times) * 1000:.1f} ms")
        assert statistics.median(times) < scaled(PAGE_TIME), name


async def test_query_without_an_index_lets_the_event_loop_turn(crowded: RecordQueries) -> None:
    longest = 0.0

    async def turn() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    turning = asyncio.create_task(turn())
    for query, text in ((UploadQuery(order="offset"), ""), (UploadQuery(), "talk 77"), (UploadQuery(), "%")):
        started = time.perf_counter()
        page = await crowded.find(query, text)
        print(f"{query.order} {text!r}: {time.perf_counter() - started:.3f} s, {len(page.uploads)} uploads")
    started = time.perf_counter()
    totals = (await crowded.totals()).totals
    print(f"totals: {time.perf_counter() - started:.3f} s; longest turn {longest * 1000:.0f} ms")
    turning.cancel()
    assert sum(share.count for share in totals.by_status.values()) == COUNT
    assert longest < scaled(0.25)


async def test_read_that_takes_too_long_is_ended(state: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(state, SQLiteState):
        pytest.skip("reads of Redis have deadlines")
    await asyncio.gather(*(state.create(upload(number)) for number in range(300)))
    monkeypatch.setattr(read_thread, "MAX_READ_TIME", 0.0)
    monkeypatch.setattr(read_thread, "STEPS_BETWEEN_LOOKS", 100)
    with pytest.raises(StateUnavailable):
        await state.find(UploadQuery(order="offset"))
    monkeypatch.undo()
    assert len((await state.find(UploadQuery(order="offset"))).uploads) == 100
    assert len([one async for one in state.all()]) == 300


RARE = {
    "owner": UploadFilter(owner="ann"),
    "no owner": UploadFilter(owner=""),
    "status": UploadFilter(status=Status.ACTIVE),
    "status of an owner": UploadFilter(owner="bob", status=Status.ACTIVE),
}


@pytest.mark.parametrize("condition", RARE.values(), ids=RARE)
async def test_rare_records_are_found_in_slices_where_an_index_leads_past_too_many(
    state: StateStore, queries: RecordQueries, monkeypatch: pytest.MonkeyPatch, condition: UploadFilter
) -> None:
    if not isinstance(state, SQLiteState):
        pytest.skip("reads of Redis have deadlines")
    rare: dict[int, dict[str, Any]] = {1: {"owner": "ann"}, 30: {"owner": ""}, 299: {"status": Status.ACTIVE}}
    changes = [{"owner": "bob", "status": Status.COMPLETE, **rare.get(number, {})} for number in range(300)]
    await asyncio.gather(*(state.create(upload(number, **one)) for number, one in enumerate(changes)))
    reads: list[str] = []
    read_first = queries_module._read_first

    def ended_along_an_index(connection: sqlite3.Connection, statement: Statement, **rest: Any) -> Any:
        reads.append(statement.text)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", statement.values).fetchall()
        if "PRIMARY KEY" not in plan[0][3]:
            assert len(reads) == 1, f"a slice that goes along an index: {plan}"
            error = sqlite3.OperationalError("interrupted")
            error.sqlite_errorcode = sqlite3.SQLITE_INTERRUPT
            raise error
        return read_first(connection, statement, **rest)

    monkeypatch.setattr(queries_module, "_read_first", ended_along_an_index)
    monkeypatch.setattr(queries_module, "SLICE_END", SLICE_END.replace(str(SLICE - 1), "49"))
    for descending in (False, True):
        reads.clear()
        page = await queries.find(UploadQuery(condition, descending=descending))
        assert len(page.uploads) == 1
        assert condition.matches(page.uploads[0])
        assert page.next is None
        assert len(reads) == 8  # along the index, in six slices, and after the last one


async def test_changes_are_made_while_long_reads_go_on(state: StateStore, queries: RecordQueries) -> None:
    await state.create(upload(0))
    stop = asyncio.Event()

    async def read() -> int:
        count = 0
        while not stop.is_set():
            await queries.find(UploadQuery(order="offset"))
            count += 1
        return count

    reading = asyncio.create_task(read())
    for number in range(1, 300):
        await state.create(upload(number))
    stop.set()
    assert await reading > 0
    assert len(await everything(queries, UploadQuery())) == 300


async def test_records_are_changed_after_a_failed_sync_although_an_administrator_pages_for_ever(
    state: StateStore, queries: RecordQueries
) -> None:
    """The log is then written back as a whole, for which no reader may be in the middle of it."""
    if not isinstance(state, SQLiteState):
        pytest.skip("Redis syncs by itself")
    for number in range(300):
        await state.create(upload(number))
    stop = asyncio.Event()

    async def read() -> None:
        while not stop.is_set():
            await everything(queries, UploadQuery(order="offset", limit=50))

    reading = [asyncio.create_task(read()) for _ in range(4)]
    for number in range(300, 310):
        assert state._writer is not None
        state._writer._log_unsynced = True  # as after the failure of a sync
        await within(state.create(upload(number), durable=True))
        assert not state._writer.is_in_doubt
    stop.set()
    await asyncio.gather(*reading)
    assert len(await everything(queries, UploadQuery())) == 310
