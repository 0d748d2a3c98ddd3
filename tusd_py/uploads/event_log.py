"""The events of uploads that are stored with the changes that they tell of, for the sinks of the operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tusd_py.core.event_document import document_of
from tusd_py.core.outbox import EventType, OutboxEvent, new_event_id
from tusd_py.core.quotas import replaces_partials
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.uploads.components import Components


class EventLog:
    """Changes of records together with the events that tell of them; without sinks for them, changes alone."""

    def __init__(self, components: Components) -> None:
        self._state = components.state
        self._outbox = components.outbox
        self._places = components.places
        self._clock = components.clock
        self._limits_partials = components.usage is not None
        self._partial_retention = components.options.partial_retention
        self._sinks = components.options.sinks_by_event()
        self._observers: list[Callable[[], object]] = []

    def observe(self, observer: Callable[[], object]) -> None:
        """Call `observer` in the event loop after a change that has stored events."""
        self._observers.append(observer)

    def stores(self, kind: EventType) -> bool:
        """Return whether a sink wants events of this kind."""
        return kind in self._sinks

    def number(self, kind: EventType | None, stored: int = 0) -> int:
        """Return the `event_sequence` of a record that is changed with an event of a kind.

        Args:
            kind: the kind of the event; None for a change without one.
            stored: the `event_sequence` before the change; 0 for a new record.
        """
        return stored + (kind in self._sinks)

    def events_of(self, kind: EventType, upload: Upload, request: RequestContext | None) -> Sequence[OutboxEvent]:
        """Return the event to be stored in the same step as a change; nothing if no sink wants it.

        Args:
            kind: the kind of the event.
            upload: the record as the change leaves it, with the `number` of the event.
            request: the request that causes the change, if there is one.
        """
        sinks = self._sinks.get(kind)
        if sinks is None:
            return ()
        document, now = document_of(upload, self._place(upload), request), self._clock.wall()
        return (OutboxEvent(new_event_id(now), upload.id, kind, upload.event_sequence, now, document, sinks),)

    async def create(self, upload: Upload, request: RequestContext | None) -> Upload:
        """Add a record, with the `number` of its event, and its event of the kind `CREATED`; return the record."""
        events = self.events_of(EventType.CREATED, upload, request)
        if not events or self._outbox is None:
            await self._state.create(upload)
            return upload
        await self._outbox.create(upload, events=events)
        self.notify()
        return upload

    async def update(
        self,
        before: Upload,
        after: Upload,
        token: int,
        kind: EventType | None,
        request: RequestContext | None,
        *,
        parts: Sequence[UploadPart] = (),
        durable: bool = False,
    ) -> Upload:
        """Replace a record as `StateStore.update` does, with an event of a kind, unless `kind` is None.

        The record `after` has the `number` of the event. The completion of a final upload lets its partial ones expire
        after the setting `partial_retention`, if the store can do that in the same step.
        """
        limits: dict[str, Any] = {}
        if self._limits_partials and replaces_partials(before, after):
            limits["partials_until"] = self._clock.wall() + self._partial_retention
        events = () if kind is None else self.events_of(kind, after, request)
        if not events or self._outbox is None:
            return await self._state.update(before, after, token, parts=parts, durable=durable, **limits)
        stored = await self._outbox.update(before, after, token, parts=parts, durable=durable, events=events, **limits)
        self.notify()
        return stored

    def notify(self) -> None:
        """Tell the observers that events may have been stored."""
        for observer in self._observers:
            observer()

    def _place(self, upload: Upload) -> Mapping[str, str]:
        return {} if self._places is None else self._places.describe(upload)
