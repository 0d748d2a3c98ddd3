"""Calls that reach Redis after their sender has given them up: Redis refuses them, by its own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from tests.contracts.parts import within
from tests.support.redis_hosts import LONG, UPLOAD, Holder, Host
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tusd_py.backends.redis import scripts
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.schema import Keys
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.outbox import EventType, OutboxEvent
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import encode_upload

TOKEN = 1 << 60  # larger than all that Redis gives out
YOUNG = replace(UPLOAD, created_at=time.time() + 3600)  # at any moment of a test
NAME, BEFORE, AFTER = "name", "before", "after"
EVENT = OutboxEvent("0" * 32, UPLOAD.id, EventType.CREATED, 1, 5.0, "{}", ("sink",))

CALLS: dict[str, Callable[[Host], Awaitable[object]]] = {
    "creation": lambda host: host.state.create(UPLOAD),
    "creation with an event": lambda host: host.state.create(UPLOAD, events=[EVENT]),
    "change": lambda host: host.state.update(UPLOAD, UPLOAD.at(10), TOKEN),
    "deletion": lambda host: host.state.delete(UPLOAD.id, TOKEN),
    "acquisition": lambda host: host.locker.acquire(UPLOAD.id, Holder(), 0),
    "acquisition to remove": lambda host: host.locker.acquire(UPLOAD.id, Holder(), 0, to_remove=True),
    "metadata": lambda host: host.state.write_metadata(NAME, AFTER, before=BEFORE),
}


def load_scripts(redis: RedisServer) -> None:
    known = [script for script in vars(scripts).values() if isinstance(script, scripts.Script)]
    for script in [*known, scripts.CREATE_INDEXED.with_events]:
        redis.command("SCRIPT", "LOAD", script.source)


def refusals(redis: RedisServer) -> int:
    return int(redis.command("INFO", "errorstats").get("errorstat_LATE", {}).get("count", 0))


def contents(redis: RedisServer, prefix: str) -> dict[bytes, bytes]:
    """Return every key with its value, as Redis dumps them."""
    with Redis.from_url(redis.url) as client:
        return {key: client.dump(key) for key in sorted(client.keys(f"{prefix}*"))}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_given_up_while_redis_stood_still_changes_nothing(
    redis: RedisServer, prefix: str, name: str
) -> None:
    load_scripts(redis)
    async with Host(redis.url, prefix, LONG) as host:
        if not name.startswith("creation"):
            await host.state.create(UPLOAD)
        await host.state.write_metadata(NAME, BEFORE, before=None)
        before = contents(redis, prefix)
        redis.pause()
        call = asyncio.ensure_future(CALLS[name](host))
        with pytest.raises(StateUnavailable):
            await within(call)
        redis.resume()
        await asyncio.to_thread(wait_until, lambda: refusals(redis) > 0, "Redis refuses the call")
        assert contents(redis, prefix) == before


@pytest.mark.parametrize("name", ["creation", "creation with an event", "acquisition", "metadata"])
@pytest.mark.parametrize("error", [-86400.0, -10.0, -0.5, 0.5, 10.0, 86400.0])
async def test_a_call_is_made_however_wrong_its_sender_knows_the_clock_of_redis(
    redis: RedisServer, prefix: str, name: str, error: float
) -> None:
    async with Host(redis.url, prefix, LONG) as host:
        await host.state.write_metadata(NAME, BEFORE, before=None)
        clock = host.connection.clock
        clock.synchronize(clock.wall() + error, clock.monotonic())
        before = contents(redis, prefix)
        await within(asyncio.ensure_future(CALLS[name](host)))
        assert contents(redis, prefix) != before


async def test_a_refused_call_tells_its_sender_the_time(redis: RedisServer, prefix: str) -> None:
    async with Host(redis.url, prefix) as host:
        clock = host.connection.clock
        right = clock.wall() - clock.monotonic()
        clock.synchronize(clock.wall() + 86400, clock.monotonic())
        await host.state.create(UPLOAD)
        assert abs(clock.wall() - clock.monotonic() - right) < 60


# A creation whose first attempt is overtaken.


async def removed(host: Host, upload: Upload, prefix: str) -> None:
    """Remove an upload, and keep what Redis notes of its creation for as long as the test takes."""
    await host.state.delete(upload.id, TOKEN)
    assert await host.connection.command("PERSIST", Keys(prefix).removed_creation(upload.id)) == 1


async def test_an_attempt_of_a_creation_after_the_removal_of_the_upload_makes_no_record(
    host: Host, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Any, ...]] = []
    run = RedisConnection.run

    async def noted(connection: RedisConnection, *call: Any) -> Any:
        sent.append(call)
        return await run(connection, *call)

    with monkeypatch.context() as patch:
        patch.setattr(RedisConnection, "run", noted)
        await host.state.create(YOUNG)
    await removed(host, YOUNG, prefix)

    [attempt] = sent
    await run(host.connection, *attempt)

    assert await host.state.get(YOUNG.id) is None
    assert [upload async for upload in host.state.all()] == []
    again = replace(YOUNG, created_at=YOUNG.created_at + 0.5)
    await host.state.create(again)
    assert await host.state.get(YOUNG.id) == again


async def test_an_attempt_of_a_creation_in_a_cluster_after_the_removal_makes_no_record(host: Host, prefix: str) -> None:
    keys = [Keys(prefix).record(YOUNG.id), Keys(prefix).removed_creation(YOUNG.id)]
    fields = [word for pair in encode_upload(YOUNG).items() for word in pair]
    attempt = (scripts.CREATE, keys, [repr(YOUNG.created_at), "change", *fields])
    assert await host.connection.run(*attempt) == 1
    assert await host.connection.run(*attempt) == 2
    await removed(host, YOUNG, prefix)

    assert await host.connection.run(*attempt) == 2

    assert await host.state.get(YOUNG.id) is None


async def test_of_an_upload_that_was_created_long_ago_nothing_is_noted_after_its_removal(
    host: Host, prefix: str
) -> None:
    old = replace(YOUNG, created_at=time.time() - 3600)
    await host.state.create(old)
    await host.state.delete(old.id, TOKEN)
    assert await host.connection.command("EXISTS", Keys(prefix).removed_creation(old.id)) == 0
