"""A sink that does what a test says, and events to send to it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from tusd_py.core.errors import StateUnavailable
from tusd_py.core.outbox import Delivery, DeliveryPage, DeliveryStatus, EventType, OutboxDepth, OutboxEvent

SINK = "https://app.example.org/hook"


def event_of(upload: str, sequence: int = 1, *, time: float = 1e9, sinks: tuple[str, ...] = (SINK,)) -> OutboxEvent:
    """Return an event of an upload; its id says which one it is."""
    kind = EventType.CREATED if sequence == 1 else EventType.FINISHED
    return OutboxEvent(f"{upload}-{sequence}", upload, kind, sequence, time, "{}", sinks)


class FakeSink:
    """A sink that records what it took; `behave` decides about each attempt, and may raise or hang."""

    def __init__(self, name: str = SINK) -> None:
        self.name = name
        self.taken: list[str] = []
        self.attempts: dict[str, int] = defaultdict(int)
        self.at_once = 0
        self.most_at_once = 0
        self.uploads_at_once: set[str] = set()
        self.opened = 0
        self.closed = 0
        self.behave: Callable[[OutboxEvent], Awaitable[object]] = self.accept

    async def accept(self, event: OutboxEvent) -> None: ...

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1

    async def send(self, event: OutboxEvent) -> None:
        self.attempts[event.id] += 1
        assert event.upload_id not in self.uploads_at_once, "two events of one upload at the same time"
        self.uploads_at_once.add(event.upload_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.behave(event)
            await asyncio.sleep(0)
            self.taken.append(event.id)
        finally:
            self.at_once -= 1
            self.uploads_at_once.discard(event.upload_id)


class MemoryOutbox:
    """An outbox in memory that can be made to fail."""

    def __init__(self) -> None:
        self.events: dict[str, OutboxEvent] = {}
        self.deliveries_of: dict[tuple[str, str], Delivery] = {}  # by sink and event id
        self.failing = False
        self.reads = 0

    def add(self, *events: OutboxEvent) -> None:
        for event in events:
            self.events[event.id] = event
            for sink in event.sinks:
                self.deliveries_of[sink, event.id] = Delivery(event, sink)

    def _check(self) -> None:
        if self.failing:
            raise StateUnavailable

    def waiting(self, sink: str = SINK) -> list[Delivery]:
        return [
            delivery
            for (name, _), delivery in self.deliveries_of.items()
            if name == sink and delivery.status is DeliveryStatus.WAITING
        ]

    async def due_deliveries(self, sink: str, now: float, limit: int) -> Sequence[Delivery]:
        self._check()
        self.reads += 1
        oldest: dict[str, Delivery] = {}
        for delivery in sorted(self.waiting(sink), key=lambda delivery: delivery.event.sequence):
            oldest.setdefault(delivery.event.upload_id, delivery)
        return [delivery for delivery in oldest.values() if delivery.next_at <= now][:limit]

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        self._check()
        for event_id in event_ids:
            self.deliveries_of.pop((sink, event_id), None)

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        self._check()
        before = self.deliveries_of[sink, event_id]
        self.deliveries_of[sink, event_id] = replace(before, attempts=attempts, next_at=next_at, error=error)

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        self._check()
        before = self.deliveries_of[sink, event_id]
        self.deliveries_of[sink, event_id] = replace(before, attempts=attempts, status=DeliveryStatus.DEAD, error=error)

    async def deliveries(self, after: str, limit: int) -> DeliveryPage:
        return DeliveryPage(list(self.deliveries_of.values()), "")

    async def find_event(self, event_id: str) -> Sequence[Delivery]:
        return [found for (_, known), found in self.deliveries_of.items() if known == event_id]

    async def retry(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        raise NotImplementedError

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        raise NotImplementedError

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        self._check()
        depths = {}
        for sink in {name for name, _ in self.deliveries_of}:
            waiting = self.waiting(sink)
            count = sum(name == sink for name, _ in self.deliveries_of)
            oldest = min((delivery.event.time for delivery in waiting), default=None)
            depths[sink] = OutboxDepth(len(waiting), count - len(waiting), oldest)
        return depths
