"""What happened, as typed events, and the bus that carries them within the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from tusd_py.upload import Upload

SUBSCRIBER_TIMEOUT = 30.0  # seconds

logger = logging.getLogger("tusd_py.events")


@dataclass(frozen=True, slots=True)
class UploadCreated:
    upload: Upload


@dataclass(frozen=True, slots=True)
class UploadProgressed:
    """The committed offset moved, or an append ended; `received` is the number of bytes since the last such event."""

    upload: Upload
    received: int


@dataclass(frozen=True, slots=True)
class UploadFinished:
    """The upload is complete: all its bytes are stored and it can be read. For a partial one see `PartialFinished`."""

    upload: Upload


@dataclass(frozen=True, slots=True)
class PartialFinished:
    """A partial upload is complete: a piece of the final upload that a client is going to make of several."""

    upload: Upload


@dataclass(frozen=True, slots=True)
class UploadTerminated:
    upload: Upload


@dataclass(frozen=True, slots=True)
class UploadExpired:
    upload: Upload


@dataclass(frozen=True, slots=True)
class LockWaited:
    """A request waited for the lock of an upload, and obtained it or gave up."""

    upload_id: str
    seconds: float
    obtained: bool
    inherited: bool = False  # from a holder that never released it


@dataclass(frozen=True, slots=True)
class AppendStarted:
    upload: Upload


@dataclass(frozen=True, slots=True)
class AppendEnded:
    upload: Upload


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One request was answered, or its client went away (status 0)."""

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
)
E = TypeVar("E")
Subscriber: TypeAlias = Callable[[E], Awaitable[None] | None]


def finish_event(upload: Upload) -> UploadFinished | PartialFinished:
    """The event of an upload that is complete now."""
    return PartialFinished(upload) if upload.is_partial else UploadFinished(upload)


class EventBus:
    """Subscribers by event type, called in the order they subscribed, before the request is answered.

    A subscriber that fails, or takes longer than half a minute, is logged: it cannot undo what happened, and must not
    hide it from the client.
    """

    def __init__(self) -> None:
        self._subscribers: dict[type[Any], list[Subscriber[Any]]] = {}

    def subscribe(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        self._subscribers.setdefault(kind, []).append(subscriber)

    def unsubscribe(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        """Undo `subscribe`; who has not subscribed is fine."""
        with contextlib.suppress(KeyError, ValueError):
            self._subscribers[kind].remove(subscriber)

    async def publish(self, event: Event) -> None:
        for subscriber in self._subscribers.get(type(event), ()):
            try:
                outcome = subscriber(event)
                if outcome is not None:
                    async with asyncio.timeout(SUBSCRIBER_TIMEOUT):
                        await outcome
            except Exception:  # whatever a subscriber raises concerns the subscriber only
                logger.exception("a subscriber of %s failed", type(event).__name__)
