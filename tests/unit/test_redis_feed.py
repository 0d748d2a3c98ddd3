"""The change feed over Redis, alone."""

from __future__ import annotations

from typing import Any

from tusd_py.backends.redis.feed import RedisFeed
from tusd_py.core.progress import NO_INTERESTS, Change, Interests


class Redis:
    """A connection that notes what is published; nobody subscribes by it."""

    def __init__(self) -> None:
        self.published: list[str] = []

    async def command(self, *words: str, timeout: float) -> int:
        self.published.append(words[-1])
        return 0


class Messages:
    """The channel of the locks, without messages."""

    def observe(self, told: object) -> None:
        """Take what is called with messages."""


class Receiver:
    """A process that nothing is told."""

    def changed(self, change: Change) -> None:
        raise AssertionError(change)

    def lost_changes(self) -> None:
        raise AssertionError

    def interest_changed(self) -> None:
        raise AssertionError


async def test_feed_that_is_closed_wants_nothing_more() -> None:
    redis: Any = Redis()
    messages: Any = Messages()
    feed = RedisFeed(redis, "tus:", messages)
    await feed.open(Receiver())
    await feed.close()
    feed.want(Interests(ids=frozenset({"a"})))
    assert feed._listener is None
    feed.want(NO_INTERESTS)
    assert feed._timer is None
    assert feed._leave_timer is None
