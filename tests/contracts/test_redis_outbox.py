"""Particulars of stored events in Redis: indexes that are lost or wrong, a Redis in trouble, every kind of Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from tests.contracts.parts import TIMEOUT, within
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisNodes, RedisSentinels, RedisServer
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.outbox import right_score
from tusd_py.backends.redis.outbox_index import COMPARED, DUE_NOW, MARK, NEW_ENTRY_AGE, DueEntry
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.state import RedisState
from tusd_py.core.errors import LockLost, StateFull, StateUnavailable, UploadExists
from tusd_py.core.outbox import Delivery, DeliveryStatus, EventType, OutboxEvent, new_event_id
from tusd_py.core.upload import Status, Upload

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=100)
SINK, OTHER = "https://a.example/hook", "redis://b.example/0?stream=events"
NOW = 1_700_000_100.5


def event(upload_id: str = UPLOAD.id, sequence: int = 1, *sinks: str, size: int = 2) -> OutboxEvent:
    document = "{" + " " * (size - 2) + "}"
    return OutboxEvent(new_event_id(NOW), upload_id, EventType.CREATED, sequence, NOW, document, sinks or (SINK,))


@contextlib.asynccontextmanager
async def opened(url: str, prefix: str) -> AsyncIterator[RedisState]:
    state = RedisState(RedisConnection(url), prefix)
    await state.open()
    try:
        yield state
    finally:
        await within(state.close())


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}:"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def state(redis: RedisServer, prefix: str) -> AsyncIterator[RedisState]:
    async with opened(redis.url, prefix) as one:
        yield one


@pytest.fixture
def network(redis: RedisServer) -> Iterator[FaultyNetwork]:
    with FaultyNetwork(redis.port) as proxy:
        yield proxy


async def create(state: RedisState, *events: OutboxEvent) -> Upload:
    upload = replace(UPLOAD, id=events[0].upload_id, event_sequence=len(events))
    await state.create(upload, events=events)
    return upload


async def due(state: RedisState, now: float = NOW, limit: int = 1000, sink: str = SINK) -> list[str]:
    return [delivery.event.id for delivery in await state.outbox.due_deliveries(sink, now, limit)]


async def listed(state: RedisState) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    after = ""
    while True:
        page = await state.outbox.deliveries(after, 100)
        found += [(one.event.id, one.sink, str(one.status)) for one in page.deliveries]
        after = page.after
        if not after:
            return found


def keys_of(redis: RedisServer, prefix: str) -> set[str]:
    return set(redis.command("KEYS", f"{prefix}*"))


# Keys.


async def test_changes_without_events_leave_no_key_of_the_outbox(
    state: RedisState, redis: RedisServer, prefix: str
) -> None:
    await state.create(UPLOAD)
    await state.update(UPLOAD, UPLOAD.at(100), 1)
    assert keys_of(redis, prefix) == {f"{prefix}{{upload}}:record", f"{prefix}ids"}


async def test_nothing_but_the_marks_of_the_indexes_stays_when_all_is_delivered(
    state: RedisState, redis: RedisServer, prefix: str
) -> None:
    first, second = event("upload", 1, SINK, OTHER), event("upload", 2, OTHER)
    await create(state, first, second)
    assert key_slot(Keys(prefix).events(UPLOAD.id).encode()) == key_slot(UPLOAD.id.encode())
    for sink in (SINK, OTHER):
        assert await due(state, sink=sink) == [first.id]
        await state.outbox.delivered(sink, [first.id, second.id])
    assert f"{prefix}{{upload}}:events" not in keys_of(redis, prefix)
    for sink in (SINK, OTHER):
        for key in Keys(prefix).of_sink(sink).all:
            assert redis.command("ZRANGE", key, 0, -1) == [MARK]


async def test_two_prefixes_do_not_share_events(state: RedisState, redis: RedisServer, prefix: str) -> None:
    await create(state, event())
    async with opened(redis.url, prefix + "another:") as stranger:
        assert await due(stranger) == []
        assert await listed(stranger) == []
        assert await stranger.outbox.outbox_depth() == {}


# Retries: the answer to a call is lost after the script ran, and the call is made again.


async def test_a_change_whose_answer_is_lost_stores_its_events_once(
    state: RedisState, redis: RedisServer, prefix: str, network: FaultyNetwork
) -> None:
    created, changed = event(), event(sequence=2)
    async with opened(f"redis://127.0.0.1:{network.port}/0", prefix) as troubled:
        await create(troubled, event("warm"))  # the scripts are known to Redis now
        warm = replace(UPLOAD, id="warm", event_sequence=1)
        await troubled.update(warm, warm.at(1), 1, events=[event("warm", 2)])
        network.lose_answer_to(UPLOAD.id.encode())
        upload = await within(create(troubled, created))
        network.lose_answer_to(UPLOAD.id.encode())
        await within(troubled.update(upload, upload.at(10), 1, events=[changed]))
        assert network.lost_answers == 2
        network.lose_answer_to(UPLOAD.id.encode())
        await within(troubled.outbox.delivered(SINK, [created.id]))
    numbers = redis.command("HGET", f"{prefix}{{upload}}:events", "number")
    assert numbers == "2"
    assert changed.id in await due(state)
    assert created.id not in await due(state)


@pytest.mark.parametrize("kind", ["create", "update"])
async def test_a_repeated_change_does_not_store_what_was_delivered_since(
    state: RedisState, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    first = event()
    upload = await create(state, first)
    again = event() if kind == "update" else event("another")
    run, calls = state.outbox._redis.run, []

    async def recorded(*arguments: Any) -> Any:
        calls.append(arguments)
        return await run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(state.outbox._redis, "run", recorded)
        if kind == "update":
            await state.update(upload, upload.at(10), 1, events=[again])
        else:
            await create(state, again)
    await state.outbox.delivered(SINK, [again.id])
    assert await run(*calls[-1])
    assert [event_id for event_id, _, _ in await listed(state)] == [first.id]


# Order.


async def test_the_event_after_a_retried_one_is_due_as_soon_as_that_is_delivered(state: RedisState) -> None:
    first, second = event(), event(sequence=2)
    await create(state, first, second)
    await state.outbox.postpone(SINK, first.id, 1, NOW + 60, "away")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tusd_py.backends.redis.outbox.JUST_NOTED", -1.0)
        assert await due(state) == []  # the entry of the second one is moved behind the first one
    await state.outbox.retry([first.id])
    assert await due(state) == [first.id]
    await state.outbox.delivered(SINK, [first.id])
    assert await due(state) == [second.id]


async def test_many_events_behind_a_postponed_one_are_looked_at_once(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [event(sequence=number) for number in range(1, 31)]
    await create(state, *events)
    await state.outbox.postpone(SINK, events[0].id, 1, NOW + 60, "away")
    monkeypatch.setattr("tusd_py.backends.redis.outbox.JUST_NOTED", -1.0)
    assert await due(state) == []
    page = await state.outbox._index.due(SINK, NOW, 0, 100)
    assert list(page.entries) == []
    assert await due(state, now=NOW + 60) == [events[0].id]


async def test_the_uploads_with_the_oldest_events_come_first(state: RedisState) -> None:
    events = [event(f"upload-{number}") for number in range(50)]
    for one in events:
        await create(state, one, event(one.upload_id, 2))
    assert await due(state, limit=20) == [one.id for one in events[:20]]
    await state.outbox.delivered(SINK, [one.id for one in events[:20]])
    assert await due(state, limit=30) == [one.id for one in events[20:]]


# Indexes that are lost or wrong.


def age_marks(redis: RedisServer, prefix: str) -> None:
    """Make the last comparison of the indexes of `SINK` one of long ago."""
    redis.command("ZADD", Keys(prefix).of_sink(SINK).by_time, "XX", COMPARED + NOW - 1e6, MARK)


async def lose(state: RedisState, redis: RedisServer, prefix: str, lost: str, of: OutboxEvent) -> None:
    keys = Keys(prefix).of_sink(SINK)
    if lost == "everything":
        redis.command("DEL", *keys.all, *Keys(prefix).of_sink(OTHER).all, Keys(prefix).sinks)
    elif lost == "one entry":
        redis.command("ZREM", keys.by_time, f"{of.id} {of.upload_id}")
        age_marks(redis, prefix)
    else:
        redis.command("DEL", getattr(keys, lost))


@pytest.mark.parametrize("lost", ["everything", "by_time", "waiting", "dead", "one entry"])
async def test_lost_indexes_are_restored_from_the_events(
    state: RedisState, redis: RedisServer, prefix: str, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    events = [event(f"upload-{number}", 1, SINK, OTHER) for number in range(120)]
    for one in events:
        await create(state, one)
    await state.delete(events[0].upload_id, 1)  # events outlive their records
    await state.outbox.bury(SINK, events[1].id, 3, "refused")
    await state.outbox.postpone(SINK, events[2].id, 1, NOW + 60, "away")
    await due(state)
    before, depth = sorted(await listed(state)), await state.outbox.outbox_depth()
    await lose(state, redis, prefix, lost, events[3])
    assert set(await due(state)) == {one.id for one in (events[0], *events[3:])}
    assert "have been restored" in caplog.text
    assert sorted(await listed(state)) == before
    assert await state.outbox.outbox_depth() == depth
    assert set(await due(state, sink=OTHER)) == {one.id for one in events}
    assert events[2].id in await due(state, now=NOW + 60)


async def test_indexes_that_are_whole_are_not_compared_again(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = event()
    await create(state, one)
    assert await due(state) == [one.id]
    monkeypatch.setattr(state.outbox._redis, "keys", None)
    assert await due(state) == [one.id]


async def test_an_index_that_is_lost_while_it_is_compared_is_compared_again(
    state: RedisState, redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = event()
    await create(state, one)
    index = state.outbox._index
    restore = index._restore

    async def restore_and_lose(keys: Any) -> int:
        restored = await restore(keys)
        await state.outbox._redis.command("DEL", Keys(prefix).of_sink(SINK).by_time)
        return restored

    with monkeypatch.context() as patch:
        patch.setattr(index, "_restore", restore_and_lose)
        assert await due(state) == []
    assert await due(state) == [one.id]


async def test_an_entry_without_an_event_is_removed_when_it_is_old(
    state: RedisState, redis: RedisServer, prefix: str
) -> None:
    keys, one = Keys(prefix).of_sink(SINK), event("upload-b")
    await create(state, one)
    now = state.clock.wall()
    for name, age in (("young", 1), ("old", NEW_ENTRY_AGE + 30)):
        redis.command("ZADD", keys.by_time, now - age - DUE_NOW, f"{name} upload-a")
        redis.command("ZADD", keys.waiting, 0, f"{name} upload-a")
    assert await due(state) == [one.id]
    for key in (keys.by_time, keys.waiting):
        assert set(redis.command("ZRANGE", key, 0, -1)) == {MARK, "young upload-a", f"{one.id} upload-b"}
    assert [event_id for event_id, _, _ in await listed(state)] == [one.id]


def entry(event_id: str, score: float) -> DueEntry:
    return DueEntry(event_id, "upload", score)


@pytest.mark.parametrize(
    ("of", "score", "next_at", "expected"),
    [
        ("first", NOW - DUE_NOW, 0.0, NOW - DUE_NOW),
        ("first", NOW - DUE_NOW, NOW + 9, NOW + 9),
        ("first", NOW - 5, NOW + 9, NOW + 9),
        ("first", NOW + 9, NOW + 9, NOW + 9),
        ("second", NOW - DUE_NOW, NOW + 9, NOW - DUE_NOW),  # it was noted just now, and may be the oldest soon
        ("second", NOW - 5 - DUE_NOW, NOW + 9, NOW + 9),
        ("second", NOW - 5 - DUE_NOW, 0.0, NOW - 5 - DUE_NOW),
        ("first", NOW - 5 - DUE_NOW, None, NOW - 5 - DUE_NOW),  # its event may still be on its way
        ("first", NOW + 500 - DUE_NOW, None, NOW + 500 - DUE_NOW),  # the clock of Redis went back
        ("first", NOW - 100 - DUE_NOW, None, None),
        ("first", NOW - 5, None, None),
    ],
)
def test_right_score_follows_the_oldest_delivery_of_the_upload(
    of: str, score: float, next_at: float | None, expected: float | None
) -> None:
    oldest = OutboxEvent("first", "upload", EventType.CREATED, 1, NOW, "{}", (SINK,))
    delivery = None if next_at is None else Delivery(oldest, SINK, 1, next_at)
    assert right_score(entry(of, score), delivery, NOW, NOW) == expected


# Redis in trouble.


async def test_a_redis_without_memory_left_refuses_events_and_delivers_those_it_has(
    state: RedisState, redis: RedisServer
) -> None:
    events = [event(f"upload-{number}", size=1000) for number in range(4)]
    for one in events:
        await create(state, one)
    upload = replace(UPLOAD, id="upload-0", event_sequence=1)
    redis.command("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(StateFull):
        await create(state, event("another", size=1000))
    with pytest.raises(StateFull):
        await state.update(upload, upload.at(10), 1, events=[event("upload-0", 2)])
    ended = event("upload-0", 2)
    await state.update(upload, replace(upload, status=Status.TERMINATED), 1, events=[ended])
    await state.delete("upload-0", 1)
    assert set(await due(state)) == {one.id for one in events}
    await state.outbox.delivered(SINK, [events[0].id])
    await state.outbox.postpone(SINK, events[1].id, 1, NOW + 60, "away")
    await state.outbox.bury(SINK, events[2].id, 1, "refused")
    assert set(await due(state)) == {ended.id, events[3].id}
    assert list(await state.outbox.retry([events[2].id])) == [events[2].id]
    assert list(await state.outbox.drop([events[3].id])) == [events[3].id]
    assert set(await due(state)) == {ended.id, events[2].id}


async def test_a_refused_change_leaves_no_event(state: RedisState) -> None:
    upload = await create(state, event())
    with pytest.raises(UploadExists):
        await create(state, event())
    with pytest.raises(LockLost):
        await state.update(upload.at(5), upload.at(10), 1, events=[event(sequence=2)])
    assert len(await listed(state)) == 1


async def test_a_redis_that_goes_back_in_time_has_the_events_of_that_time(
    state: RedisState, redis: RedisServer, tmp_path: Path
) -> None:
    kept, gone = event(), event(sequence=2)
    upload = await create(state, kept)
    redis.save_snapshot(tmp_path / "snapshot")
    await state.update(upload, upload.at(10), 1, events=[gone])
    await state.outbox.delivered(SINK, [kept.id])
    redis.restore_snapshot(tmp_path / "snapshot")
    async with asyncio.timeout(TIMEOUT):
        while True:
            with contextlib.suppress(StateUnavailable):
                assert await state.get(upload.id) == upload
                break
    assert await due(state) == [kept.id]
    assert await listed(state) == [(kept.id, SINK, "waiting")]


@pytest.mark.parametrize("leave", [RedisServer.pause, RedisServer.kill], ids=["hanging", "stopped"])
async def test_calls_fail_in_bounded_time_while_redis_is_away(
    state: RedisState, redis: RedisServer, leave: Callable[[RedisServer], None]
) -> None:
    one = event()
    await create(state, one)
    leave(redis)
    for call in (
        lambda: state.outbox.due_deliveries(SINK, NOW, 10),
        lambda: state.outbox.delivered(SINK, [one.id]),
        lambda: state.outbox.outbox_depth(),
    ):
        with pytest.raises(StateUnavailable):
            await within(call())
    redis.resume()


# Every kind of Redis.


async def exercise(state: RedisState) -> None:
    """Make every kind of call of the outbox, for uploads in different slots."""
    events = [event(f"upload-{number}", 1, SINK, OTHER) for number in range(12)]
    for one in events:
        upload = await create(state, one)
        after = event(one.upload_id, 2)
        await state.update(upload, upload.at(10), 1, events=[after])
        with pytest.raises(LockLost):
            await state.update(upload, upload.at(10), 1, events=[event(one.upload_id, 2)])
    assert set(await due(state)) == {one.id for one in events}
    await state.outbox.delivered(SINK, [one.id for one in events])
    seconds = await due(state)
    assert len(seconds) == len(events)
    await state.outbox.postpone(SINK, seconds[0], 1, NOW + 60, "away")
    await state.outbox.bury(SINK, seconds[1], 1, "refused")
    assert set(await due(state)) == set(seconds[2:])
    [dead] = await state.outbox.find_event(seconds[1])
    assert dead.status is DeliveryStatus.DEAD
    depths = await state.outbox.outbox_depth()
    assert {sink: (depth.waiting, depth.dead) for sink, depth in depths.items()} == {SINK: (11, 1), OTHER: (12, 0)}
    assert set(await state.outbox.retry(None)) == {*seconds, *(one.id for one in events)}
    assert len(await listed(state)) == 24
    assert set(await due(state)) == set(seconds)
    everything = [*seconds, *(one.id for one in events)]
    assert set(await state.outbox.drop(everything)) == set(everything)
    assert await state.outbox.outbox_depth() == {}


async def test_one_server(state: RedisState, redis: RedisServer) -> None:
    await exercise(state)
    redis.command("SCRIPT", "FLUSH")
    await create(state, event("other"))
    assert len(await due(state)) == 1


async def test_a_user_with_the_fewest_rights() -> None:
    rights = "+@read +@write +@scripting +@pubsub +@connection +time"
    with RedisServer(password="another", users=[f"uploads on >secret ~tus:* &tus:* -@all {rights}"]) as redis:
        async with opened(redis.url_for("uploads", "secret"), "tus:") as state:
            await exercise(state)


async def test_a_cluster(tmp_path: Path, prefix: str) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with opened(nodes.url, prefix) as state:
            await exercise(state)
            await look_for_wrong_entries(state, prefix)


async def look_for_wrong_entries(state: RedisState, prefix: str) -> None:
    """Die between the steps of a change, which a cluster makes one after the other."""
    noted, stored = event("upload-noted"), event("upload-stored")
    await state.outbox._index.note([noted], without_room=False)
    assert await due(state) == []
    assert await listed(state) == []
    await create(state, noted)
    await create(state, stored)
    assert set(await due(state)) == {noted.id, stored.id}
    await state.outbox._redis.command("HDEL", Keys(prefix).events("upload-noted"), f"d {noted.id} {SINK}")
    assert await due(state) == [stored.id]
    for key in Keys(prefix).of_sink(SINK).all:
        await state.outbox._redis.command("DEL", key)
    assert await due(state) == [stored.id]


async def test_events_outlive_a_failover_by_sentinels(tmp_path: Path, prefix: str) -> None:
    with RedisSentinels(tmp_path / "sentinels") as group:
        async with opened(group.url, prefix) as state:
            await exercise(state)
            one = event("kept")
            await create(state, one)
            group.first.command("WAIT", 1, 5000)
            group.first.kill()
            async with asyncio.timeout(TIMEOUT):
                while True:
                    with contextlib.suppress(StateUnavailable):
                        assert await due(state) == [one.id]
                        break
                    await asyncio.sleep(0.1)
            await state.outbox.delivered(SINK, [one.id])
            assert await listed(state) == []
