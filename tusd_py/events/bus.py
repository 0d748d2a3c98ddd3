"""The event bus: delivers events within the process to the observers of the server and to subscribers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias, TypeVar

from tusd_py.events.subscribers import Deliveries
from tusd_py.events.types import AppendStarted, Event, JobFinished, LockWaited, RequestFinished, UploadProgressed

logger = logging.getLogger("tusd_py.events")

E = TypeVar("E")
Observer: TypeAlias = Callable[[E], object]
Subscriber: TypeAlias = Callable[[E], Awaitable[None] | None]

# Delivered while a request holds the lock; all other events are delivered after its release.
DURING_WORK = (UploadProgressed, AppendStarted)
MAX_REQUESTS_WAITING = 10_000  # queued events about requests and jobs; the bus drops further ones
REQUESTS = ""  # key of their queue; no upload has an empty id


class EventBus:
    """A bus that calls observers (parts of the server) at once, and subscribers (functions of the user) soon.

    The bus calls subscribers in the order in which they subscribed, and for one upload in the order of its events.

    Invariant: no subscriber runs while the request that published the event holds the lock of the upload, except for
    the events in `DURING_WORK`. A subscriber that fails, blocks or never ends cannot undo a change.

    The process loses an event if it dies between the change of a record and the delivery. Every method runs in the
    event loop.
    """

    def __init__(self) -> None:
        self._observers: dict[type[Any], list[Observer[Any]]] = {}
        self._subscribers: dict[type[Any], list[Subscriber[Any]]] = {}
        self._deliveries = Deliveries()
        self._held: dict[str, list[Event]] = {}

    def observe(self, kind: type[E], observer: Observer[E]) -> None:
        """Call `observer` within `publish` of every event of this kind.

        The observer must return at once and take no lock. `publish` logs its exceptions.
        """
        self._observers.setdefault(kind, []).append(observer)

    def unobserve(self, kind: type[E], observer: Observer[E]) -> None:
        """Undo `observe`; do nothing for a function that does not observe."""
        with contextlib.suppress(KeyError, ValueError):
            self._observers[kind].remove(observer)

    def subscribe(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        """Call a plain function (in a thread) or an async one (in the loop) with every event of this kind."""
        self._subscribers.setdefault(kind, []).append(subscriber)

    def has_subscribers(self, kind: type[Any]) -> bool:
        """Return whether a function of the user subscribes to events of this kind."""
        return kind in self._subscribers

    def publish(self, event: Event) -> None:
        """Call the observers now, and queue the event for the subscribers."""
        for observer in self._observers.get(type(event), ()):
            try:
                observer(event)
            except Exception:  # a bug in a metric or a log line must not change the outcome of a request
                logger.exception("an observer of %s failed", type(event).__name__)
        if type(event) not in self._subscribers:
            return
        held = self._held.get(_key(event))
        if held is not None and (held or not isinstance(event, DURING_WORK)):
            held.append(event)
        else:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        key = _key(event)
        last = self._deliveries.last(key)
        if isinstance(event, UploadProgressed) and isinstance(last, UploadProgressed):
            together = UploadProgressed(event.upload, last.received + event.received, event.request)
            self._deliveries.replace_last(key, together)
        elif key == REQUESTS and self._deliveries.count(key) >= MAX_REQUESTS_WAITING:
            logger.error(
                "dropped an event: subscribers of %s are too slow (%d events are queued)",
                type(event).__name__,
                MAX_REQUESTS_WAITING,
            )
        else:
            self._deliveries.add(key, event, self._subscribers[type(event)])

    @contextlib.contextmanager
    def held(self, upload_id: str) -> Iterator[None]:
        """Hold back the events of an upload from subscribers until the context ends.

        The service enters the context with the lock of the upload, and leaves it after the release of the lock.
        """
        held: list[Event] = []
        self._held[upload_id] = held
        try:
            yield
        finally:
            if self._held.get(upload_id) is held:
                del self._held[upload_id]
            for event in held:
                self._deliver(event)

    async def delivered(self, upload_id: str) -> None:
        """Wait until the queue of an upload is empty, `SUBSCRIBER_TIMEOUT` (30 s) at most."""
        await self._deliveries.delivered(upload_id)

    def is_delivering(self, upload_id: str) -> bool:
        """Return whether events of an upload are queued or being delivered."""
        return self._deliveries.is_delivering(upload_id)

    def drop_queued(self) -> None:
        """Drop all queued events; called after the event loop of their delivery has been closed."""
        self._deliveries = Deliveries()
        self._held.clear()

    async def close(self, timeout: float) -> None:
        """Wait until all queues are empty, `timeout` seconds at most, then drop the remaining events."""
        await self._deliveries.close(timeout)


def _key(event: Event) -> str:
    """Return the key of the queue for an event."""
    if isinstance(event, RequestFinished | JobFinished):
        return REQUESTS
    return event.upload_id if isinstance(event, LockWaited) else event.upload.id
