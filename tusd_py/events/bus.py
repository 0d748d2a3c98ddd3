"""Typed events, and the bus that carries them within the process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.events.subscribers import Deliveries

logger = logging.getLogger("tusd_py.events")


@dataclass(frozen=True, slots=True)
class UploadCreated:
    """An upload was created, and has no bytes yet.

    `request` is the request that caused the event, None where there was none, as for the sweeper.

    Example::

        @tus.on(UploadCreated)
        async def created(event: UploadCreated) -> None:
            sender = event.request.client if event.request else "the application"
            print(event.upload.id, event.upload.decoded_metadata.get("filename"), "from", sender)
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadProgressed:
    """The committed offset moved, or an append ended; `received` is the number of bytes since the last such event.

    Example::

        @tus.on(UploadProgressed)
        async def progressed(event: UploadProgressed) -> None:
            progress[event.upload.id] = event.upload.offset, event.upload.length
    """

    upload: Upload
    received: int
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadFinished:
    """The upload is complete: all its bytes are stored and it can be read. For a partial one see `PartialFinished`.

    The event is lost if the process dies right after it has completed the upload. Without a `request`, the sweeper
    or a HEAD has completed what an earlier process had begun.

    Example::

        @tus.on(UploadFinished)
        async def finished(event: UploadFinished) -> None:
            async with await tus.open(event.upload) as reader:
                ...
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class PartialFinished:
    """A partial upload is complete: a piece of the final upload that a client is going to make of several.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadTerminated:
    """A client or the application removed an upload; its bytes and its record are gone.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadExpired:
    """The sweeper removed an upload that was not finished in time, or a partial one that is not needed any more.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class LockWaited:
    """A request waited `seconds` for the lock of an upload, and obtained it or gave up.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload_id: str
    seconds: float
    obtained: bool
    unreleased_predecessors: bool = False  # from a holder that never released it


@dataclass(frozen=True, slots=True)
class AppendStarted:
    """A request holds the lock of an upload and begins to append; `upload` is the record before.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class AppendEnded:
    """An append ended, whether it failed or not; `upload` is the record as committed.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One request was answered, or its client went away (status 0).

    Example::

        @tus.on(RequestFinished)
        async def answered(event: RequestFinished) -> None:
            if event.error_code:
                print(event.client, event.method, event.path, event.status, event.error_code)
    """

    method: str
    path: str
    status: int
    seconds: float
    error_code: str = ""
    upload_id: str = ""
    bytes_received: int = 0
    bytes_sent: int = 0  # of a download
    offset_before: int | None = None
    offset_after: int | None = None
    client: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class JobFinished:
    """One run of a periodic job ended after so many seconds."""

    name: str
    seconds: float
    succeeded: bool


Event: TypeAlias = (
    UploadCreated
    | UploadProgressed
    | UploadFinished
    | PartialFinished
    | UploadTerminated
    | UploadExpired
    | LockWaited
    | AppendStarted
    | AppendEnded
    | RequestFinished
    | JobFinished
)
E = TypeVar("E")
Observer: TypeAlias = Callable[[E], object]
Subscriber: TypeAlias = Callable[[E], Awaitable[None] | None]

# Delivered while the upload is still being written to; everything else after its lock is released.
DURING_WORK = (UploadProgressed, AppendStarted)
MAX_REQUESTS_WAITING = 10_000  # events about requests; beyond these they are not delivered
REQUESTS = ""  # the key of their queue: no upload has this id


def finish_event(upload: Upload, request: RequestContext | None = None) -> UploadFinished | PartialFinished:
    """Make the event of an upload that is complete now."""
    return PartialFinished(upload, request) if upload.is_partial else UploadFinished(upload, request)


class EventBus:
    """Brings events to the server's own observers at once, and to subscribers, code of the user, soon.

    Subscribers are called in the order they subscribed, in the order of the events of an upload, and outside its lock
    (`subscribers.py`): one that fails, blocks or never ends cannot undo what happened. An event is lost if the process
    ends between the change of a record and the delivery.
    """

    def __init__(self) -> None:
        self._observers: dict[type[Any], list[Observer[Any]]] = {}
        self._subscribers: dict[type[Any], list[Subscriber[Any]]] = {}
        self._deliveries = Deliveries()
        self._held: dict[str, list[Event]] = {}

    def observe(self, kind: type[E], observer: Observer[E]) -> None:
        """Call a function of the server's own, which returns at once and takes no lock, when an event is published."""
        self._observers.setdefault(kind, []).append(observer)

    def unobserve(self, kind: type[E], observer: Observer[E]) -> None:
        """Undo `observe`; does nothing for a function that does not observe."""
        with contextlib.suppress(KeyError, ValueError):
            self._observers[kind].remove(observer)

    def subscribe(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        """Call a plain or async function of the user with every event of this kind."""
        self._subscribers.setdefault(kind, []).append(subscriber)

    def publish(self, event: Event) -> None:
        """Tell the observers now and the subscribers soon; in a coroutine."""
        for observer in self._observers.get(type(event), ()):
            try:
                observer(event)
            except Exception:  # a bug in what only counts or logs must not change what happens to an upload
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
            logger.error("subscribers of %s are too slow: an event was dropped", type(event).__name__)
        else:
            self._deliveries.add(key, event, self._subscribers[type(event)])

    @contextlib.contextmanager
    def held(self, upload_id: str) -> Iterator[None]:
        """Keep the events of an upload for subscribers until the context ends, which is when its lock is released."""
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
        """Return once subscribers have had the events of an upload, or after half a minute."""
        await self._deliveries.delivered(upload_id)

    def is_delivering(self, upload_id: str) -> bool:
        """Whether subscribers are being told of an upload."""
        return self._deliveries.is_delivering(upload_id)

    def forget(self) -> None:
        """Drop what waits for subscribers: the event loop it would have been delivered in is gone."""
        self._deliveries = Deliveries()
        self._held.clear()

    async def close(self, patience: float) -> None:
        """Wait until subscribers have had every event, `patience` seconds at most."""
        await self._deliveries.close(patience)


def _key(event: Event) -> str:
    """The queue that an event belongs to."""
    if isinstance(event, RequestFinished | JobFinished):
        return REQUESTS
    return event.upload_id if isinstance(event, LockWaited) else event.upload.id
