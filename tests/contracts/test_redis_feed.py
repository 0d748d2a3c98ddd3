"""The change feed over a real Redis, which restarts, and over connections that break."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.timing import TIMEOUT
from tusd_py.backends.redis import feed as feed_module
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.feed import RedisFeed
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.core.progress import NO_INTERESTS, Change, Interests, ProgressKind, change_of
from tusd_py.core.upload import Upload

CHANGE = change_of(Upload("a", 1.25, length=100, offset=7, owner="ann", token=3), ProgressKind.PROGRESS, 2.5)
OF_A = Interests(ids=frozenset({"a"}))
PREFIX = "feed:"
POLL = 0.02  # seconds


class Process:
    """One process of several, all of which run in the test; each has its own connections."""

    def __init__(self, url: str) -> None:
        connection = RedisConnection(url)
        self.locker = RedisLocker(connection, PREFIX)
        self.feed = RedisFeed(connection, PREFIX, self.locker.messages)
        self.changes: list[Change] = []
        self.lost = 0

    def changed(self, change: Change) -> None:
        self.changes.append(change)

    def lost_changes(self) -> None:
        self.lost += 1

    def interest_changed(self) -> None:
        """Take note of nothing: the tests ask the feed."""

    def publish_until_heard(self, listener: Process) -> Callable[[], bool]:
        """Return a condition that holds once a change has arrived; each look at it sends the change again."""

        def is_heard() -> bool:
            self.feed.publish(CHANGE)
            return CHANGE in listener.changes

        return is_heard


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, which may act when it is looked at."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            if condition():
                return
            await asyncio.sleep(POLL)


@contextlib.asynccontextmanager
async def running(*urls: str) -> AsyncIterator[list[Process]]:
    several = [Process(url) for url in urls]
    async with contextlib.AsyncExitStack() as stack:
        for process in several:
            await process.locker.open()
            stack.push_async_callback(process.locker.close)
            await process.feed.open(process)
            stack.push_async_callback(process.feed.close)
        yield several


def through(network: FaultyNetwork, redis: RedisServer) -> str:
    """Return the URL of Redis behind a network that fails."""
    parts = urlsplit(redis.url)
    return parts._replace(netloc=parts.netloc.replace(f":{redis.port}", f":{network.port}")).geturl()


async def test_change_goes_to_those_that_want_it(redis: RedisServer) -> None:
    async with running(redis.url, redis.url, redis.url) as (publisher, listener, other):
        assert not publisher.feed.is_wanted
        listener.feed.want(OF_A)
        other.feed.want(Interests(ids=frozenset({"b"})))
        await until(lambda: publisher.feed.wants("a", "") and publisher.feed.wants("b", ""))
        publisher.feed.publish(CHANGE)
        publisher.feed.publish(replace(CHANGE, id="b"))
        await until(lambda: bool(listener.changes and other.changes))
    assert listener.changes == [CHANGE]
    assert other.changes == [replace(CHANGE, id="b")]


async def test_interests_end_with_their_process(redis: RedisServer) -> None:
    async with running(redis.url) as (publisher,):
        async with running(redis.url) as (listener,):
            listener.feed.want(OF_A)
            await until(lambda: publisher.feed.is_wanted)
        await until(lambda: not publisher.feed.is_wanted)


async def test_feed_that_is_closed_wants_nothing_more(redis: RedisServer) -> None:
    async with running(redis.url, redis.url) as (publisher, closed):
        await closed.feed.close()
        closed.feed.want(OF_A)
        closed.feed.want(NO_INTERESTS)
        assert closed.feed._listener is None
        assert closed.feed._timer is None
        assert closed.feed._leave_timer is None
        assert not publisher.feed.is_wanted


@pytest.mark.parametrize("kill", [False, True])
async def test_changes_go_on_after_a_restart_of_redis(redis: RedisServer, *, kill: bool) -> None:
    async with running(redis.url, redis.url) as (publisher, listener):
        listener.feed.want(OF_A)
        await until(publisher.publish_until_heard(listener))
        await until(lambda: listener.lost == 1)
        await asyncio.to_thread(redis.restart, kill=kill, keep=False)
        await until(lambda: listener.lost > 1)
        listener.changes.clear()
        await until(publisher.publish_until_heard(listener))


async def test_listener_whose_connection_breaks_compares_and_hears_again(
    redis: RedisServer, network: FaultyNetwork
) -> None:
    async with running(redis.url, through(network, redis)) as (publisher, listener):
        listener.feed.want(OF_A)
        await until(publisher.publish_until_heard(listener))
        await until(lambda: listener.lost == 1)
        await asyncio.to_thread(network.cut)
        await until(lambda: listener.lost == 2)
        listener.changes.clear()
        await until(publisher.publish_until_heard(listener))


async def test_listener_notices_a_connection_that_delivers_nothing(
    redis: RedisServer, network: FaultyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LISTEN_TIMEOUT", 0.5)
    async with running(redis.url, through(network, redis)) as (publisher, listener):
        listener.feed.want(OF_A)
        await until(publisher.publish_until_heard(listener))
        await until(lambda: listener.lost == 1)
        await asyncio.to_thread(network.stall)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(network.cut)
        await asyncio.to_thread(network.resume)
        await until(lambda: listener.lost > 1)
        listener.changes.clear()
        await until(publisher.publish_until_heard(listener))


async def test_publisher_whose_connection_was_away_learns_of_new_interests(
    redis: RedisServer, network: FaultyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "REPEAT_INTERVAL", 3600.0)
    async with running(through(network, redis), redis.url) as (publisher, listener):
        await asyncio.to_thread(network.refuse)
        listener.feed.want(OF_A)
        await until(lambda: listener.lost == 1)  # the interests have been told, which follows the subscription
        assert not publisher.feed.is_wanted
        await asyncio.to_thread(network.resume)
        await until(lambda: publisher.feed.wants("a", ""))
        await until(publisher.publish_until_heard(listener))
