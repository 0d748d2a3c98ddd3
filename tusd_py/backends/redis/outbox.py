"""The outbox in Redis: a hash of the events of each upload, in its hash slot, and indexes over all uploads.

Fields of the hash `Keys.events`:

    number                the number of the newest event among those of the upload, which gives their order
    e <event id>          "type sequence time document"
    d <event id> <sink>   a delivery, "number attempts next-at dead error"; `dead` is 1 for a dead letter, else 0

A delivery that the sink has taken is removed, an event with its last delivery, and the hash with its last event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tusd_py.backends.redis.connection import RETRY_DEADLINE, RedisConnection
from tusd_py.backends.redis.outbox_index import (
    NEW_ENTRY_AGE,
    DueEntry,
    OutboxIndex,
    due_score,
    sinks_of,
    together,
)
from tusd_py.backends.redis.schema import Keys
from tusd_py.backends.redis.scripts import NEXT_EVENT, SETTLE_EVENT, Script
from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryPage, DeliveryStatus, EventType, OutboxDepth, OutboxEvent

Action = Literal["remove", "postpone", "bury", "retry"]

MAX_ENTRIES = 200  # of an index, read at once
MAX_KNOWN = 1000  # events whose uploads are remembered
JUST_NOTED = 1.0  # seconds; an entry stays where it is for so long, although an earlier event of its upload waits


@dataclass(frozen=True, slots=True)
class _Settlement:
    """A change of a delivery."""

    action: Action
    attempts: int = 0
    next_at: float = 0.0
    error: str = ""


REMOVAL = _Settlement("remove")


class RedisOutbox:
    """The stored events below one prefix, see `Outbox`."""

    def __init__(self, connection: RedisConnection, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys
        self._index = OutboxIndex(connection, keys)
        self._uploads: dict[str, str] = {}  # upload id by the id of an event that was returned as due

    async def change(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        events: Sequence[OutboxEvent],
        timeout: float = RETRY_DEADLINE,
    ) -> Any:
        """Run the script of a change of a record, and store events of its upload in the same step.

        Returns the result of the script; nothing is stored unless it is true.
        """
        upload_id, sinks = events[0].upload_id, sinks_of(events)
        change_keys = [*keys, self._keys.events(upload_id)]
        if self._redis.is_cluster:  # the indexes are in another slot than the record
            await self._index.note(events, without_room=script.allow_oom)
        else:
            change_keys += self._index.keys_of(sinks)
        given = {
            "keys": len(keys),
            "upload": upload_id,
            "score": due_score(self._redis.clock.wall()),
            "sinks": sinks,
            "events": [{"id": event.id, "sinks": [sinks.index(sink) + 1 for sink in event.sinks]} for event in events],
        }
        values = [f"{event.type} {event.sequence} {event.time!r} {event.document}" for event in events]
        result = await self._redis.run(
            script.with_events, change_keys, [json.dumps(given), *values, *arguments], timeout
        )
        if not result and self._redis.is_cluster:
            await self._index.forget(events)
        return result

    async def due_deliveries(self, sink: str, now: float, limit: int) -> Sequence[Delivery]:
        """See `Outbox.due_deliveries`; wrong entries of the index are corrected."""
        found: dict[str, Delivery] = {}
        oldest: dict[str, Delivery | None] = {}
        position, count = 0, min(2 * limit + 1, MAX_ENTRIES)
        while len(found) < limit:
            page = await self._index.due(sink, now, position, count)
            entries = [*page.entries, *page.far_ahead]
            await self._find_oldest(sink, entries, oldest)
            position += len(page.entries) - await self._correct(sink, entries, oldest, now)
            for entry in entries:
                delivery = oldest[entry.upload_id]
                if delivery is not None and is_due(delivery, now) and len(found) < limit:
                    found.setdefault(entry.upload_id, delivery)
            if len(page.entries) < count:
                break
        self._remember(found.values())
        return list(found.values())

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""
        await self._settle(sink, event_ids, REMOVAL)

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """See `Outbox.postpone`."""
        await self._settle(sink, [event_id], _Settlement("postpone", attempts, next_at, error))

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """See `Outbox.bury`."""
        await self._settle(sink, [event_id], _Settlement("bury", attempts, 0.0, error))

    async def deliveries(self, after: str, limit: int) -> DeliveryPage:
        """See `Outbox.deliveries`; in the order of the sinks, then of the event ids."""
        after_id, _, after_sink = after.partition(" ")
        found: list[Delivery] = []
        for sink in await self._sinks():
            if sink < after_sink:
                continue
            start = after_id if sink == after_sink else ""
            while len(found) <= limit:
                places = await self._places_after(sink, start, limit + 1)
                found += await self._read(sink, places)
                if len(places) <= limit:
                    break
                start = places[-1][0]
        last = found[limit - 1] if len(found) > limit else None
        return DeliveryPage(found[:limit], "" if last is None else f"{last.event.id} {last.sink}")

    async def find_event(self, event_id: str) -> Sequence[Delivery]:
        """See `Outbox.find_event`."""
        found: list[Delivery] = []
        for sink in await self._sinks():
            found += await self._read(sink, await self._locate(sink, [event_id]))
        return found

    async def retry(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        """See `Outbox.retry`."""
        settlement = _Settlement("retry")
        if event_ids is not None:
            return await self._settle_everywhere(event_ids, settlement)
        changed: dict[str, None] = {}
        for sink in await self._sinks():
            start = ""
            while places := await self._places_after(sink, start, MAX_ENTRIES):
                changed.update(dict.fromkeys(await self._settle_places(sink, places, settlement)))
                start = places[-1][0]
        return list(changed)

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        """See `Outbox.drop`."""
        return await self._settle_everywhere(event_ids, REMOVAL)

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depth`; the event with the smallest id counts as the oldest."""
        depths = {}
        for sink in await self._sinks():
            keys = self._keys.of_sink(sink)
            waiting, dead, first = await self._redis.commands(
                ("ZLEXCOUNT", keys.waiting, "(.", "+"),
                ("ZLEXCOUNT", keys.dead, "(.", "+"),
                ("ZRANGE", keys.waiting, "(.", "+", "BYLEX", "LIMIT", 0, 1),
            )
            if waiting or dead:
                depths[sink] = OutboxDepth(waiting, dead, await self._time_of(first[0]) if first else None)
        return depths

    async def _sinks(self) -> list[str]:
        return sorted(await self._redis.command("SMEMBERS", self._keys.sinks))

    async def _time_of(self, member: str) -> float:
        """Return the time of an event; that in its id if it is gone meanwhile."""
        event_id, _, upload_id = member.partition(" ")
        value = await self._redis.command("HGET", self._keys.events(upload_id), f"e {event_id}")
        return float(value.split(" ", 3)[2]) if value else int(event_id[:12], 16) / 1000

    # The deliveries that are due.

    async def _find_oldest(self, sink: str, entries: Sequence[DueEntry], oldest: dict[str, Delivery | None]) -> None:
        """Add to `oldest` the oldest delivery that waits of each upload of the entries."""
        upload_ids = list(dict.fromkeys(entry.upload_id for entry in entries if entry.upload_id not in oldest))
        answers = await together(
            self._redis.run(NEXT_EVENT, [self._keys.events(upload_id)], [sink]) for upload_id in upload_ids
        )
        for upload_id, answer in zip(upload_ids, answers, strict=True):
            oldest[upload_id] = _delivery(upload_id, answer[0], sink, *answer[1:]) if answer else None

    async def _correct(
        self, sink: str, entries: Sequence[DueEntry], oldest: Mapping[str, Delivery | None], now: float
    ) -> int:
        """Move or remove wrong entries; return how many of them are no longer due."""
        wall = self._redis.clock.wall()
        corrections = [
            (entry, score)
            for entry in entries
            if (score := right_score(entry, oldest[entry.upload_id], now, wall)) != entry.score
        ]
        await together(self._index.move(sink, entry, score) for entry, score in corrections)
        return sum(entry.score <= now for entry, _ in corrections)

    def _remember(self, deliveries: Iterable[Delivery]) -> None:
        if len(self._uploads) > MAX_KNOWN:
            self._uploads.clear()
        self._uploads.update((delivery.event.id, delivery.event.upload_id) for delivery in deliveries)

    # Events by their ids. A place is an event id with the id of its upload.

    async def _locate(self, sink: str, event_ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return the places of the events that wait for a sink, or are its dead letters."""
        keys = self._keys.of_sink(sink)
        unknown = [event_id for event_id in event_ids if event_id not in self._uploads]
        queries = [
            ("ZRANGE", key, f"[{event_id} ", f"({event_id}!", "BYLEX", "LIMIT", 0, 1)
            for event_id in unknown
            for key in (keys.waiting, keys.dead)
        ]
        answers = await self._redis.commands(*queries) if queries else []
        found = dict(member.split(" ", 1) for members in answers for member in members)
        known = {event_id: self._uploads[event_id] for event_id in event_ids if event_id in self._uploads}
        return [(event_id, (found | known)[event_id]) for event_id in event_ids if event_id in found | known]

    async def _places_after(self, sink: str, event_id: str, count: int) -> list[tuple[str, str]]:
        """Return places that follow an event id, in order; the first ones if it is empty."""
        keys, start = self._keys.of_sink(sink), f"({event_id}!" if event_id else "(."
        pages = await self._redis.commands(
            *[("ZRANGE", key, start, "+", "BYLEX", "LIMIT", 0, count) for key in (keys.waiting, keys.dead)]
        )
        members = sorted({member for members in pages for member in members})[:count]
        return [(event_id, upload_id) for event_id, _, upload_id in (member.partition(" ") for member in members)]

    async def _read(self, sink: str, places: Sequence[tuple[str, str]]) -> list[Delivery]:
        if not places:
            return []
        answers = await self._redis.commands(
            *[("HMGET", self._keys.events(upload), f"d {event_id} {sink}", f"e {event_id}")
              for event_id, upload in places]
        )  # fmt: skip
        return [
            _delivery(upload_id, event_id, sink, state, value)
            for (event_id, upload_id), (state, value) in zip(places, answers, strict=True)
            if state and value
        ]

    # Changes.

    async def _settle_everywhere(self, event_ids: Sequence[str], settlement: _Settlement) -> list[str]:
        """Change the deliveries of events to every sink; return the ids of those that were there."""
        changed: set[str] = set()
        for sink in await self._sinks():
            changed.update(await self._settle(sink, event_ids, settlement))
        return [event_id for event_id in event_ids if event_id in changed]

    async def _settle(self, sink: str, event_ids: Sequence[str], settlement: _Settlement) -> list[str]:
        return await self._settle_places(sink, await self._locate(sink, event_ids), settlement)

    async def _settle_places(self, sink: str, places: Sequence[tuple[str, str]], settlement: _Settlement) -> list[str]:
        """Change deliveries; return the ids of the events that were there."""
        found = await together(
            self._settle_one(sink, event_id, upload_id, settlement) for event_id, upload_id in places
        )
        for event_id, _ in places:
            self._uploads.pop(event_id, None)
        return [event_id for (event_id, _), was_there in zip(places, found, strict=True) if was_there]

    async def _settle_one(self, sink: str, event_id: str, upload_id: str, settlement: _Settlement) -> bool:
        events, index = self._keys.events(upload_id), self._keys.of_sink(sink).all
        next_at = repr(settlement.next_at) if settlement.next_at else "0"
        arguments = [settlement.action, event_id, upload_id, sink, settlement.attempts, next_at,
                     due_score(self._redis.clock.wall()), settlement.error]  # fmt: skip
        if not self._redis.is_cluster:
            answer = await self._redis.run(SETTLE_EVENT, [events, *index], ["both", *arguments])
            return bool(answer[0])
        answer = await self._redis.run(SETTLE_EVENT, [events], ["event", *arguments])
        if answer[0] or settlement.action == "remove":
            await self._redis.run(SETTLE_EVENT, index, ["index", *arguments, *answer[1:]])
        return bool(answer[0])


def is_due(delivery: Delivery, now: float) -> bool:
    """Return whether a delivery, the oldest of its upload, is to be made."""
    return not now < delivery.next_at <= now + FAR_AHEAD


def right_score(entry: DueEntry, oldest: Delivery | None, now: float, wall: float) -> float | None:
    """Return the score that an entry of the index should have; None if there should be no entry.

    Args:
        entry: the entry as it was read.
        oldest: the oldest delivery to the sink that waits, of the entry's upload.
        now: the time by which deliveries are due.
        wall: the clock of Redis, by which entries are noted.
    """
    age = entry.age(wall)
    if oldest is None:
        return entry.score if age is not None and age < NEW_ENTRY_AGE else None
    if is_due(oldest, now):
        return entry.score  # an event after it is due as soon as it is settled
    if entry.event_id != oldest.event.id and age is not None and age < JUST_NOTED:
        return entry.score
    return oldest.next_at


def _delivery(upload_id: str, event_id: str, sink: str, state: str, value: str) -> Delivery:
    _, attempts, next_at, dead, error = state.split(" ", 4)
    kind, sequence, time, document = value.split(" ", 3)
    event = OutboxEvent(event_id, upload_id, EventType(kind), int(sequence), float(time), document, (sink,))
    status = DeliveryStatus.DEAD if dead == "1" else DeliveryStatus.WAITING
    return Delivery(event, sink, int(attempts), float(next_at), status, error)
