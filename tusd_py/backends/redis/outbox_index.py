"""The indexes of the stored events, which find the deliveries to a sink among all uploads (`Keys.of_sink`).

The truth is in the hashes of the events (`Keys.events`). Invariant: an entry is written in the same step as its event,
or in a cluster, whose slots keep them apart, before it; so every delivery has its entries. An entry without a delivery
is removed once it is `NEW_ENTRY_AGE` old.

A delivery that has not failed is due since it was noted: its score is that time minus `DUE_NOW`, so that it is due
whatever the clock says later, the oldest first. The score of one that has failed is the time of the next attempt.

The member `MARK` of each index tells when the index was last compared with all events; its score is that time plus
`COMPARED`. An index that was lost lacks it, and all are then restored from the events.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import (
    DUE_EVENTS,
    FORGET_EVENTS,
    LIST_EVENTS,
    MARK_EVENTS,
    MOVE_EVENT,
    NOTE_EVENTS,
    NOTE_EVENTS_WITHOUT_ROOM,
    RESTORE_EVENTS,
)
from tusd_py.core.outbox import FAR_AHEAD, OutboxEvent

logger = logging.getLogger("tusd_py.outbox")

T = TypeVar("T")

DUE_NOW = 1e10  # seconds, subtracted from the time at which a delivery became due
COMPARED = -2e10  # seconds, added to the time of the last comparison: before every other score
MARK = "."  # no event has such an id
COMPARE_INTERVAL = 6 * 3600.0  # seconds between two comparisons of the indexes with the events
CLUSTER_INTERVAL = 600.0  # the same in a cluster, where a failover can lose entries whose events are on other nodes
NEW_ENTRY_AGE = 60.0  # seconds within which the event of a new entry may still be missing
PAGE_SIZE = 100  # uploads whose events are read at once


@dataclass(frozen=True, slots=True)
class DueEntry:
    """An entry of the deliveries to a sink by time."""

    event_id: str
    upload_id: str
    score: float

    @property
    def member(self) -> str:
        """The member of the sorted set."""
        return f"{self.event_id} {self.upload_id}"

    def age(self, now: float) -> float | None:
        """Return the seconds since the entry was noted; None if it was moved since."""
        return None if self.score >= 0 else now - (self.score + DUE_NOW)


@dataclass(frozen=True, slots=True)
class DuePage:
    """Some entries that are due, and those, on the first page only, that are due only since a clock went back."""

    entries: Sequence[DueEntry]
    far_ahead: Sequence[DueEntry]


def due_score(since: float) -> str:
    """Return the score of a delivery that is due since a time, in seconds since the epoch."""
    return repr(since - DUE_NOW)


class OutboxIndex:
    """The indexes of the events below one prefix."""

    def __init__(self, connection: RedisConnection, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys
        self._interval = CLUSTER_INTERVAL if connection.is_cluster else COMPARE_INTERVAL
        self._known: dict[tuple[str, ...], list[str]] = {}  # keys by sinks, of which the settings have few

    async def note(self, events: Sequence[OutboxEvent], *, without_room: bool) -> None:
        """Add events that are about to be stored; also to a Redis that is full if `without_room`."""
        sinks = sinks_of(events)
        entries = [
            {"member": f"{event.id} {event.upload_id}", "sinks": [sinks.index(sink) + 1 for sink in event.sinks]}
            for event in events
        ]
        given = {"sinks": sinks, "score": due_score(self._redis.clock.wall()), "entries": entries}
        script = NOTE_EVENTS_WITHOUT_ROOM if without_room else NOTE_EVENTS
        await self._redis.run(script, self.keys_of(sinks), [json.dumps(given)])

    async def forget(self, events: Sequence[OutboxEvent]) -> None:
        """Remove events that were noted and then not stored."""
        members = [f"{event.id} {event.upload_id}" for event in events]
        await self._redis.run(FORGET_EVENTS, self.keys_of(sinks_of(events))[1:], members)

    def keys_of(self, sinks: Sequence[str]) -> list[str]:
        """Return the keys that new deliveries to sinks are added to: the names, then two of each sink."""
        known = self._known.get(tuple(sinks))
        if known is None:
            indexes = map(self._keys.of_sink, sinks)
            known = [self._keys.sinks, *(key for index in indexes for key in (index.by_time, index.waiting))]
            self._known[tuple(sinks)] = known
        return known

    async def due(self, sink: str, now: float, skip: int, count: int) -> DuePage:
        """Return a page of the entries that are due, the oldest first, after a comparison if it is time for one."""
        compared_at, page = await self._due(sink, now, skip, count)
        if skip == 0 and not 0 <= self._redis.clock.wall() - compared_at < self._interval:
            await self._compare(sink)
            _, page = await self._due(sink, now, skip, count)
        return page

    async def _due(self, sink: str, now: float, skip: int, count: int) -> tuple[float, DuePage]:
        """Return the time of the last comparison (negative: none), and a page of entries."""
        arguments = [repr(now), repr(now + FAR_AHEAD), skip, count, MARK]
        mark, entries, far_ahead = await self._redis.run(DUE_EVENTS, self._keys.of_sink(sink).all, arguments)
        return (float(mark) - COMPARED if mark else -1.0), DuePage(_entries(entries), _entries(far_ahead))

    async def move(self, sink: str, entry: DueEntry, score: float | None) -> None:
        """Move an entry as it was read to another time, or remove it for None."""
        arguments = [entry.member, repr(entry.score), "" if score is None else repr(score)]
        await self._redis.run(MOVE_EVENT, self._keys.of_sink(sink).all[:2], arguments)

    async def _compare(self, sink: str) -> None:
        """Restore what the indexes of all sinks lack, and mark those of one sink as compared."""
        keys, now = self._keys.of_sink(sink).all, self._redis.clock.wall()
        # If an index is lost during the comparison, so is this member, and the next look compares again.
        await self._redis.run(MARK_EVENTS, keys, [repr(COMPARED), MARK, "NX"])
        restored = 0
        page: list[str] = []
        async for key in self._redis.keys(self._keys.all_events):
            page.append(key)
            if len(page) == PAGE_SIZE:
                restored += await self._restore(page)
                page.clear()
        restored += await self._restore(page)
        await self._redis.run(MARK_EVENTS, keys, [repr(COMPARED + now), MARK, "XX"])
        if restored:
            logger.warning("%d entries of the index of events were lost, and have been restored", restored)

    async def _restore(self, keys: Sequence[str]) -> int:
        """Add the deliveries of some uploads that the indexes lack; return their number."""
        found = await together(self._redis.run(LIST_EVENTS, [key], []) for key in keys)
        of_sinks: dict[str, list[str]] = defaultdict(list)
        for key, words in zip(keys, found, strict=True):
            for event_id, sink, state in zip(words[::3], words[1::3], words[2::3], strict=True):
                _, _, next_at, dead, _ = state.split(" ", 4)
                score = due_score(self._redis.clock.wall()) if float(next_at) <= 0 else next_at
                of_sinks[sink] += [f"{event_id} {self._keys.upload_id(key)}", "" if dead == "1" else score]
        missing = await together(
            self._redis.run(RESTORE_EVENTS, [self._keys.sinks, *self._keys.of_sink(sink).all], [sink, *members])
            for sink, members in of_sinks.items()
        )
        return sum(missing)


def sinks_of(events: Sequence[OutboxEvent]) -> list[str]:
    """Return the names of the sinks that have to take one of the events."""
    return list(dict.fromkeys(sink for event in events for sink in event.sinks))


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of calls that are made at the same time; raise the first error when all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    values: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values


def _entries(words: Sequence[str]) -> list[DueEntry]:
    entries = []
    for member, score in zip(words[::2], words[1::2], strict=True):
        event_id, _, upload_id = member.partition(" ")
        if member != MARK:
            entries.append(DueEntry(event_id, upload_id, float(score)))
    return entries
