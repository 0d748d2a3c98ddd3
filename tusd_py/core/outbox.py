"""Stored events: a change of an upload that the application and other services are told of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FAR_AHEAD = 2 * 3600.0  # seconds; a delivery that is due so much later is due now, since a clock went back


class EventType(StrEnum):
    """The kind of change that an event tells of."""

    CREATED = "created"
    FINISHED = "finished"
    TERMINATED = "terminated"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event as it is stored, in the same step as the change that it tells of.

    Attributes:
        id: 32 hex digits, the same for every sink and every attempt.
        upload_id: the upload that changed.
        type: the kind of change.
        sequence: number of the event among those of its upload, from 1.
        time: time of the change, in seconds since the epoch, by the clock of the state store.
        document: JSON text with the upload as it was then, its place and the request (`core.event_document`).
        sinks: names of the sinks that have to take the event.
    """

    id: str
    upload_id: str
    type: EventType
    sequence: int
    time: float
    document: str
    sinks: tuple[str, ...]


class DeliveryStatus(StrEnum):
    """The state of an event at a sink that has not taken it."""

    WAITING = "waiting"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that a sink has not taken yet.

    Attributes:
        event: the event.
        sink: name of the sink.
        attempts: failed attempts so far.
        next_at: time of the next attempt in seconds since the epoch; 0: at once.
        status: whether there will be another attempt by itself.
        error: reason of the last failure; empty before the first.
    """

    event: OutboxEvent
    sink: str
    attempts: int = 0
    next_at: float = 0.0
    status: DeliveryStatus = DeliveryStatus.WAITING
    error: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Some deliveries, and the cursor of the next page; it is empty after the last one."""

    deliveries: Sequence[Delivery]
    after: str


@dataclass(frozen=True, slots=True)
class OutboxDepth:
    """The number of events that wait for a sink, of its dead letters, and the time of the oldest event that waits."""

    waiting: int
    dead: int
    oldest: float | None  # seconds since the epoch; None: none waits


def new_event_id(now: float) -> str:
    """Return a new id; it begins with the time, so that ids ascend, and stores keep those of new events close together.

    The id is unique, and no secret: its random bits take no call to the kernel.

    Args:
        now: seconds since the epoch, by the clock of the state store, which the hosts agree on.
    """
    return f"{int(now * 1000):012x}{random.getrandbits(80):020x}"
