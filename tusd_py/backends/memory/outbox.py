"""The outbox of records in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryPage, DeliveryStatus, OutboxDepth, OutboxEvent


class MemoryOutbox:
    """The stored events of one `MemoryRecords`, see `Outbox`."""

    def __init__(self) -> None:
        self._deliveries: dict[tuple[str, str], Delivery] = {}  # by event id and sink, in the order of the events

    def add(self, events: Sequence[OutboxEvent]) -> None:
        """Store events with a delivery to each of their sinks."""
        for event in events:
            for sink in event.sinks:
                delivery = Delivery(replace(event, sinks=(sink,)), sink)
                self._deliveries[event.id, sink] = delivery

    async def due_deliveries(self, sink: str, now: float, limit: int) -> Sequence[Delivery]:
        """See `Outbox.due_deliveries`."""
        oldest: dict[str, Delivery] = {}
        for delivery in self._deliveries.values():
            if delivery.sink == sink and delivery.status is DeliveryStatus.WAITING:
                oldest.setdefault(delivery.event.upload_id, delivery)
        due = [delivery for delivery in oldest.values() if not now < delivery.next_at <= now + FAR_AHEAD]
        return sorted(due, key=lambda delivery: delivery.next_at)[:limit]

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""
        for event_id in event_ids:
            self._deliveries.pop((event_id, sink), None)

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """See `Outbox.postpone`."""
        self._change(sink, event_id, attempts=attempts, next_at=next_at, error=error)

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """See `Outbox.bury`."""
        self._change(sink, event_id, attempts=attempts, next_at=0.0, error=error, status=DeliveryStatus.DEAD)

    async def deliveries(self, after: str, limit: int) -> DeliveryPage:
        """See `Outbox.deliveries`."""
        keys = sorted(key for key in self._deliveries if " ".join(key) > after)
        cursor = " ".join(keys[limit - 1]) if len(keys) > limit else ""
        return DeliveryPage([self._deliveries[key] for key in keys[:limit]], cursor)

    async def find_event(self, event_id: str) -> Sequence[Delivery]:
        """See `Outbox.find_event`."""
        return [self._deliveries[key] for key in sorted(self._deliveries) if key[0] == event_id]

    async def retry(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        """See `Outbox.retry`."""
        keys = [key for key in self._deliveries if event_ids is None or key[0] in event_ids]
        for key in keys:
            self._deliveries[key] = replace(self._deliveries[key], next_at=0.0, status=DeliveryStatus.WAITING)
        return sorted({event_id for event_id, _ in keys})

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        """See `Outbox.drop`."""
        keys = [key for key in self._deliveries if key[0] in event_ids]
        for key in keys:
            del self._deliveries[key]
        return sorted({event_id for event_id, _ in keys})

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depth`."""
        depths: dict[str, OutboxDepth] = {}
        for sink in {delivery.sink for delivery in self._deliveries.values()}:
            of_sink = [delivery for delivery in self._deliveries.values() if delivery.sink == sink]
            waiting = [delivery.event.time for delivery in of_sink if delivery.status is DeliveryStatus.WAITING]
            depths[sink] = OutboxDepth(len(waiting), len(of_sink) - len(waiting), min(waiting, default=None))
        return depths

    def _change(self, sink: str, event_id: str, **changes: object) -> None:
        delivery = self._deliveries.get((event_id, sink))
        if delivery is not None:
            self._deliveries[event_id, sink] = replace(delivery, **changes)  # type: ignore[arg-type]
