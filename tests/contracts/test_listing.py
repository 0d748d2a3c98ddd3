"""The cost of a page of records (`StateStore.list`), and stores whose records were made before there were pages."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from redis import Redis

from tests.contracts.parts import prefix_of, redis, within
from tests.support.redis_server import shared_redis_url
from tests.support.timing import scaled
from tusd_py.backends.redis.state import RedisState
from tusd_py.contracts.state import StateStore
from tusd_py.core.listing import MAX_SCANNED, UploadFilter
from tusd_py.testing.listing_suite import ids, upload


async def test_a_page_costs_the_same_however_many_records_there_are(state: StateStore) -> None:
    for first in range(0, 10 * MAX_SCANNED, 200):
        await asyncio.gather(*(state.create(upload(number)) for number in range(first, first + 200)))
    started = time.monotonic()
    page = await within(state.list(after="id-01500", limit=50))
    assert [one.id for one in page.uploads] == [upload(number).id for number in range(1501, 1551)]
    rare = await within(state.list(condition=UploadFilter(owner="nobody"), limit=50))
    assert rare.uploads == ()
    assert rare.after == upload(MAX_SCANNED - 1).id
    assert time.monotonic() - started < scaled(2.0)
    assert await ids(state, MAX_SCANNED) == [upload(number).id for number in range(10 * MAX_SCANNED)]


async def test_pages_pass_over_broken_records(state: StateStore, tmp_path: Path) -> None:
    for number in range(1, 6):
        await state.create(upload(number))
    if isinstance(state, RedisState):
        with Redis.from_url(shared_redis_url()) as client:
            client.hset(f"{tmp_path}:{{id-00003}}:record", "status", "garbage")
    else:
        with sqlite3.connect(tmp_path / "uploads.sqlite3") as database:
            database.execute("UPDATE uploads SET status = 'garbage' WHERE id = 'id-00003'")
        database.close()
    expected = [upload(number).id for number in (1, 2, 4, 5)]
    assert await ids(state, 1) == await ids(state, 2) == await ids(state, 100) == expected


async def test_single_id_that_the_index_of_redis_lost_is_listed_after_its_repair(tmp_path: Path) -> None:
    state = RedisState(redis(), prefix_of(tmp_path))
    await state.open()
    for number in range(1, 4):
        await state.create(upload(number))
    assert len(await ids(state, 2)) == 3
    with Redis.from_url(shared_redis_url()) as client:
        client.zrem(f"{tmp_path}:ids", "id-00002")
    assert await ids(state, 2) == ["id-00001", "id-00003"]
    await state.repair_index(0)
    assert await ids(state, 2) == [upload(number).id for number in range(1, 4)]
    await state.close()


async def test_records_of_a_store_that_knew_no_index_are_listed(state: StateStore, tmp_path: Path) -> None:
    for number in range(1, 4):
        await state.create(upload(number))
    if isinstance(state, RedisState):
        with Redis.from_url(shared_redis_url()) as client:
            client.delete(f"{tmp_path}:ids")
    assert await ids(state, 2) == [upload(number).id for number in range(1, 4)]
