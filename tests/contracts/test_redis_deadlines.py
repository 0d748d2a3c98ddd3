"""Calls that reach Redis after their sender has given them up: Redis refuses them, by its own clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis import Redis

from tests.contracts.parts import within
from tests.support.redis_hosts import LONG, UPLOAD, Holder, Host
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tusd_py.backends.redis import scripts
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.outbox import EventType, OutboxEvent

TOKEN = 1 << 60  # larger than all that Redis gives out
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
