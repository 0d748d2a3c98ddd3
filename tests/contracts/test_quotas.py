"""The contract suite of quotas against every state store, and what only one of them can meet."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import prefix_of, redis
from tests.support.redis_hosts import Holder, Host
from tests.support.redis_server import RedisNodes, RedisServer
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.errors import QuotaExceeded, StateUnavailable
from tusd_py.core.outbox import EventType, OutboxEvent, new_event_id
from tusd_py.core.quotas import MAX_COUNTED, Usage
from tusd_py.core.upload import Status
from tusd_py.core.upload_codec import FIELDS
from tusd_py.testing.quota_suite import QuotaStore, QuotaSuite, assert_exact, completed, final, partial, upload
from tusd_py.testing.support import TIMEOUT

MAX_INTEGER = (1 << 63) - 1


class TestSQLite(QuotaSuite):
    def make(self, place: Path) -> QuotaStore:
        return SQLiteState(place / "records")


class TestMemory(QuotaSuite):
    def setup_method(self) -> None:
        self.records = MemoryRecords()

    def make(self, place: Path) -> QuotaStore:
        return MemoryState(self.records)


class TestRedis(QuotaSuite):
    def make(self, place: Path) -> QuotaStore:
        return RedisState(redis(), prefix_of(place))


# SQLite.


async def test_usage_that_an_earlier_version_has_counted_is_counted_anew(tmp_path: Path) -> None:
    """The triggers of that version count bytes beyond the most that an upload counts for."""
    path = tmp_path / "records"
    state = SQLiteState(path)
    await state.open()
    await state.create(upload("a", MAX_INTEGER, quota_bytes=None))
    await state.close()
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE usage (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL, open INTEGER NOT NULL)")
        for name, event in (("new", "INSERT"), ("removed", "DELETE"), ("changed", "UPDATE")):
            file.execute(
                f"CREATE TRIGGER usage_of_{name} AFTER {event} ON uploads BEGIN UPDATE usage SET bytes = {1 << 50}; END"
            )
        file.execute("INSERT INTO usage (owner, bytes, open) VALUES ('ann', ?, 1)", (1 << 50,))
    state = SQLiteState(path)
    await state.open()
    assert await state.usage_of("ann") == Usage(MAX_COUNTED, 1)
    await state.create(upload("b", MAX_INTEGER, quota_bytes=None))
    assert await state.usage_of("ann") == Usage(2 * MAX_COUNTED, 2)
    await state.close()
    with contextlib.closing(sqlite3.connect(path)) as file:
        names = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE name LIKE '%usage%'")]
    assert sorted(names) == ["owner_usage", "owner_usage_changed", "owner_usage_new", "owner_usage_removed"]


async def test_file_without_quotas_counts_nothing(tmp_path: Path) -> None:
    state = SQLiteState(tmp_path / "records")
    await state.open()
    await state.create(upload("a", 5, quota_bytes=None))
    await state.close()
    with sqlite3.connect(tmp_path / "records") as file:
        names = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE name LIKE '%usage%'")]
    file.close()
    assert names == []


async def test_largest_lengths_of_thousands_of_uploads_are_counted(tmp_path: Path) -> None:
    """The sum of the declared lengths themselves is no integer of SQLite."""
    state = SQLiteState(tmp_path / "records")
    await state.open()
    await state.create(upload("a", MAX_INTEGER, quota_bytes=None))
    copied = ", ".join("printf('%d', value)" if name == "id" else name for name in FIELDS)
    with sqlite3.connect(tmp_path / "records") as file:
        file.execute(
            "WITH RECURSIVE numbers(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < 9999) "
            f"INSERT INTO uploads ({', '.join(FIELDS)}) SELECT {copied} FROM uploads, numbers WHERE id = 'a'"
        )
    file.close()
    assert await state.usage_of("ann") == Usage(10_000 * MAX_COUNTED, 10_000)
    await state.create(upload("b", MAX_INTEGER, quota_bytes=None))
    await state.delete("1", 1)
    assert await state.usage_of("ann") == Usage(10_000 * MAX_COUNTED, 10_000)
    await state.close()


async def test_broken_record_leaves_its_owner_able_to_upload(tmp_path: Path) -> None:
    state = SQLiteState(tmp_path / "records")
    await state.open()
    await state.create(upload("a", 60))
    await state.create(upload("b", 5))
    with sqlite3.connect(tmp_path / "records") as file:
        file.execute("UPDATE uploads SET length = 'many', status = 'odd' WHERE id = 'a'")
    file.close()
    await state.create(upload("c", 95))
    await state.delete("a", 1)
    assert await state.usage_of("ann") == Usage(100, 2)
    await assert_exact(state)
    await state.close()


# Redis.


async def test_lost_usage_is_counted_again(host: Host, other: Host, prefix: str) -> None:
    state = host.state
    await state.create(upload("a", 60))
    growing = upload("b", None)
    await state.create(growing)
    for number in range(2):
        await state._redis.command("DEL", f"{prefix}usage")
        with pytest.raises(QuotaExceeded):
            await other.state.create(upload("c", 61))
        growing = await state.update(growing, growing.at(10 * (number + 1)), 1)
        await assert_exact(state)
    await state._redis.command("DEL", f"{prefix}usage")
    with pytest.raises(QuotaExceeded):
        await state.update(growing, growing.at(41), 1)
    await state.delete("a", 1)
    await assert_exact(other.state)


async def test_count_that_was_interrupted_is_resumed(host: Host, other: Host, prefix: str) -> None:
    await host.state.create(upload("a", 60, quota_bytes=None))
    await host.state._redis.command("HSET", f"{prefix}usage", ".", "0123abcd counting")
    await host.state.create(upload("b", 20, quota_bytes=None))
    with pytest.raises(QuotaExceeded):
        await other.state.create(upload("c", 21))
    await assert_exact(host.state)


async def test_changes_while_records_are_counted_count_once(host: Host, prefix: str) -> None:
    state, growing = host.state, upload("a", None, quota_bytes=None)
    await state.create(growing)
    await state._redis.command("HSET", f"{prefix}usage", ".", "0123abcd counting")
    growing = await state.update(growing, growing.at(10), 1)
    await state._usage.count()
    growing = await state.update(growing, growing.at(20), 1)
    await assert_exact(state)
    await state.update(growing, replace(growing, status=Status.EXPIRED), 1)
    assert await state.usage_of("ann") == Usage()


async def forget_count(host: Host, prefix: str, upload_id: str, size: int, unfinished: int) -> None:
    """Leave a record as one that the count has missed."""
    await host.connection.command("HDEL", f"{prefix}{{{upload_id}}}:record", "counted")
    await host.connection.command("HINCRBY", f"{prefix}usage", "b ann", -size)
    await host.connection.command("HINCRBY", f"{prefix}usage", "n ann", -unfinished)


async def test_record_that_the_count_has_missed_is_counted_by_its_next_change(host: Host, prefix: str) -> None:
    record = upload("a", 60)
    await host.state.create(record)
    await forget_count(host, prefix, "a", 60, 1)
    assert await host.state.usage_of("ann") == Usage()
    await host.state.update(record, record.at(10), 1)
    assert await host.state.usage_of("ann") == Usage(60, 1)


async def test_final_upload_of_a_partial_one_that_the_count_has_missed_is_not_refused(host: Host, prefix: str) -> None:
    await host.state.create(partial("a", 60))
    await forget_count(host, prefix, "a", 60, 0)
    await host.state.create(upload("other", 60))
    record = final("f", 60, "a")
    await host.state.create(record)
    await host.state.update(record, completed(record, 60), 1)
    assert await host.state.usage_of("ann") == Usage(120, 1)
    await assert_exact(host.state)


@pytest.mark.parametrize("keys_seen", [0, 1])
async def test_count_in_which_another_redis_took_over_is_repeated(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, keys_seen: int
) -> None:
    async with Host(redis.url, "tus:") as host:
        for upload_id in ("a", "b"):
            await host.state.create(upload(upload_id, 30, quota_bytes=None))
        read_keys, passes = host.connection.keys, 0

        async def keys(pattern: str) -> AsyncIterator[str]:
            nonlocal passes
            passes += 1
            found = [key async for key in read_keys(pattern)]
            if passes == 1:
                await asyncio.to_thread(redis.command, "REPLICAOF", "127.0.0.1", "1")
                await asyncio.to_thread(redis.command, "REPLICAOF", "NO", "ONE")
                found = found[:keys_seen]
            for key in found:
                yield key

        monkeypatch.setattr(host.connection, "keys", keys)
        assert await host.state.usage_of("ann") == Usage(60, 2)
        assert passes == 2


async def test_partial_upload_that_was_locked_since_expires_when_it_counts_no_more(host: Host) -> None:
    await host.state.create(partial("a", 60))
    lock = await host.locker.acquire("a", Holder(), TIMEOUT)
    await lock.release()
    whole = final("f", 60, "a")
    await host.state.create(whole)
    await host.state.update(whole, completed(whole, 60), 1, partials_until=100.0)
    assert [record.id for record in await host.state.due(100.0, 10)] == ["a"]


async def test_final_upload_of_thousands_of_partial_ones_changes_with_its_events(host: Host) -> None:
    """Lua passes at most some thousand values to a function."""
    record = final("f", 1, *(f"{number}" for number in range(9000)), quota_bytes=None)
    await host.state.create(record)
    event = OutboxEvent(new_event_id(1_700_000_100.5), "f", EventType.FINISHED, 1, 1_700_000_100.5, "{}", ("sink",))
    done = await host.state.update(record, completed(record, 1), 1, events=[event])
    assert await host.state.get("f") == done


async def test_owner_without_uploads_leaves_nothing_in_the_usage(host: Host, prefix: str) -> None:
    growing = upload("a", None)
    await host.state.create(growing)
    grown = await host.state.update(growing, growing.at(10), 1)
    await host.state.update(grown, replace(grown, status=Status.TERMINATED), 1)
    assert await host.connection.command("HKEYS", f"{prefix}usage") == ["."]
    await host.state.create(upload("b", 100))
    await host.state.delete("b", 1)
    assert await host.connection.command("HKEYS", f"{prefix}usage") == ["."]
    await assert_exact(host.state)


async def test_flushed_redis_starts_with_an_empty_usage(redis: RedisServer) -> None:
    async with Host(redis.url, "tus:") as host:
        await host.state.create(upload("a", 100))
        await host.state._redis.command("FLUSHALL")
        await host.state.create(upload("b", 100))
        await assert_exact(host.state)


async def test_cluster_refuses_quotas(tmp_path: Path) -> None:
    with RedisNodes(tmp_path) as nodes:
        state = RedisState(RedisConnection(nodes.url), "tus:")
        await state.open()
        try:
            await state.create(upload("a", 5, quota_bytes=None))
            with pytest.raises(StateUnavailable, match="cluster"):
                await state.create(upload("b", 5))
            with pytest.raises(StateUnavailable, match="cluster"):
                await state.usage_of("ann")
            await state.delete("a", 1)
        finally:
            await state.close()
