"""The contracts of the outbox, an ability of a state store, and of the sinks that its events are delivered to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from tusd_py.contracts.state import StateStore
from tusd_py.core.outbox import Delivery, DeliveryPage, OutboxDepth, OutboxEvent
from tusd_py.core.upload import Upload, UploadPart


class DeliveryError(Exception):
    """The failure of an attempt to deliver an event, which is sent again. The text is the reason, for the operator.

    Attributes:
        retry_after: seconds for which the receiver asked; None if it did not.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """Take the reason."""
        super().__init__(message)
        self.retry_after = retry_after


class Sink(Protocol):
    """A receiver of events. All methods are called in the event loop, `send` for several events at the same time."""

    @property
    def name(self) -> str:
        """The name under which events wait for the sink; the same after a restart, and without a password."""

    async def open(self) -> None:
        """Connect, if that saves time later. A failure is found again by the first `send`."""

    async def close(self) -> None:
        """Release every resource. Called also after `open` has failed."""

    async def send(self, event: OutboxEvent) -> None:
        """Return when the receiver has taken the event for good.

        Raises:
            DeliveryError: the receiver has not taken it, or may not have. Any other exception counts as the same.
        """


class Outbox(Protocol):
    """The events that a state store keeps.

    All methods may raise `StateUnavailable`. Ids of events that are not there (any more) are no errors.
    """

    async def due_deliveries(self, sink: str, now: float, limit: int) -> Sequence[Delivery]:
        """Return events to send to a sink: of each upload only the oldest that waits, if it is due; oldest first.

        Args:
            sink: name of the sink.
            now: seconds since the epoch. A time more than two hours ahead of it counts as due: a clock went back.
            limit: number of events at most.
        """

    async def delivered(self, sink: str, event_ids: Sequence[str]) -> None:
        """Note that a sink has taken these events; an event that every sink has taken is removed."""

    async def postpone(self, sink: str, event_id: str, attempts: int, next_at: float, error: str) -> None:
        """Note a failed attempt, and the time of the next one in seconds since the epoch."""

    async def bury(self, sink: str, event_id: str, attempts: int, error: str) -> None:
        """Make a dead letter of an event: it is kept and not sent, and the later ones of its upload go on."""

    async def deliveries(self, after: str, limit: int) -> DeliveryPage:
        """Return a page of all events that wait, and of the dead letters.

        Args:
            after: the cursor of the page before (`DeliveryPage.after`); empty for the first page.
            limit: number of deliveries of the page at most, from 1.

        Raises:
            ValueError: `after` is no cursor of this outbox, as far as it can tell.
        """

    async def find_event(self, event_id: str) -> Sequence[Delivery]:
        """Return the deliveries of an event that wait or are dead; empty if it is unknown."""

    async def retry(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        """Make events due now, dead letters too; all of them for None. Return the ids of those that were there."""

    async def drop(self, event_ids: Sequence[str]) -> Sequence[str]:
        """Remove events, which no sink gets any more. Return the ids of those that were there."""

    async def outbox_depth(self) -> Mapping[str, OutboxDepth]:
        """Return how many events wait for each sink that has any."""


@runtime_checkable
class SupportsOutbox(Protocol):
    """A state store with an outbox: it is a `StateStoreWithOutbox`."""

    @property
    def outbox(self) -> Outbox:
        """The outbox of this store."""


class StateStoreWithOutbox(StateStore, SupportsOutbox, Protocol):
    """The methods of a state store that store events in the same step as a change: both, or nothing."""

    async def create(self, upload: Upload, *, durable: bool = False, events: Sequence[OutboxEvent] = ()) -> None:
        """Do what `StateStore.create` does, and store events."""

    async def update(
        self,
        before: Upload,
        after: Upload,
        token: int,
        *,
        parts: Sequence[UploadPart] = (),
        durable: bool = False,
        events: Sequence[OutboxEvent] = (),
    ) -> Upload:
        """Do what `StateStore.update` does, and store events. The removal of a record leaves its events."""
