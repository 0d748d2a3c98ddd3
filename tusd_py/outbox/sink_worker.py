"""Delivery of the events of one sink: several uploads side by side, the events of one upload in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from tusd_py.contracts.outbox import DeliveryError, Outbox, Sink
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import UploadError
from tusd_py.core.outbox import Delivery
from tusd_py.core.redaction import without_secrets_within
from tusd_py.outbox.backoff import SinkHealth, pause_after
from tusd_py.outbox.leadership import Leadership

logger = logging.getLogger("tusd_py.outbox")

GIVE_WAY_AFTER = 60.0  # seconds without any success after which another process gets the chance to deliver
MAX_ERROR_LENGTH = 300  # characters of an error that are kept with the event


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Limits of the delivery to each sink. Times are seconds.

    Attributes:
        give_up: age of an event from which on a failed attempt is the last one.
        concurrency: events, of different uploads, that are sent at the same time.
        send_timeout: time for one attempt.
        open_timeout: time for the connection to a broker.
        poll_interval: time between two looks for events of other processes.
    """

    give_up: float
    concurrency: int = 16
    send_timeout: float = 30.0
    open_timeout: float = 10.0
    poll_interval: float = 1.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The end of one attempt; `error` is empty for a success."""

    delivery: Delivery
    error: str = ""
    retry_after: float | None = None


class SinkWorker:
    """Deliveries to one sink, while this process is the one that delivers to it.

    Invariants: at most `concurrency` events are in memory as sent and not yet settled; at most one of an upload; an
    event leaves the outbox only after the sink has taken it.
    """

    def __init__(
        self, sink: Sink, outbox: Outbox, clock: SteadyClock, options: DeliveryOptions, stopping: asyncio.Event
    ) -> None:
        self._sink = sink
        self._outbox = outbox
        self._clock = clock
        self._options = options
        self._stopping = stopping
        self._health = SinkHealth()
        self._sending: dict[str, asyncio.Task[None]] = {}  # by the id of the upload
        self._unsettled: list[_Outcome] = []
        self._wake = asyncio.Event()
        self._state_error = ""  # logged
        self._last_error = ""  # logged; empty while events get through
        self.found_events = True  # whether events were found since this was last set to False

    @property
    def last_error(self) -> str:
        """Reason of the last failed attempt; empty while events get through."""
        return self._last_error

    def wake(self) -> None:
        """Look for events at once, unless no attempt can begin now: the end of an attempt or of a pause wakes too."""
        if self._stopping.is_set() or self._free_slots() > 0:
            self._wake.set()

    async def deliver(self, leadership: Leadership) -> None:
        """Deliver until the leadership is lost, a shutdown begins, or the sink has been away for `GIVE_WAY_AFTER`.

        At a shutdown the attempts under way are waited for.
        """
        began = self._now()
        try:
            await self._open()
            while not (leadership.is_lost or self._is_done(began)):
                try:
                    await self._settle()
                    await self._send_due()
                    self._state_error = ""
                except UploadError as error:  # the lease ends unless the records are back soon
                    self._log_state_error(error)
                await self._wait()
        finally:
            await self._end_attempts()
            with contextlib.suppress(Exception):  # of any broker; the connection is of no use any more
                async with asyncio.timeout(self._options.open_timeout):
                    await self._sink.close()

    def _is_done(self, began: float) -> bool:
        """Return whether this process stops delivering: at a shutdown, or to let another one try that may do better."""
        if self._sending or self._unsettled:
            return False
        gives_way = self._health.is_away and self._now() - began > GIVE_WAY_AFTER
        return gives_way or self._stopping.is_set()

    def _log_state_error(self, error: UploadError) -> None:
        if error.message != self._state_error:
            logger.warning("the events to %s cannot be read: %s", self._sink.name, error.message)
        self._state_error = error.message

    async def _open(self) -> None:
        """Connect to the sink; one that is away is tried again with the first event."""
        with contextlib.suppress(Exception):  # each attempt to send connects, and tells why that fails
            async with asyncio.timeout(self._options.open_timeout):
                await self._sink.open()

    async def _send_due(self) -> None:
        """Begin attempts for the oldest due event of each upload, as many as there are slots for."""
        free = self._free_slots()
        if self._stopping.is_set() or free <= 0:
            return
        due = await self._outbox.due_deliveries(self._sink.name, self._clock.steady(), len(self._sending) + free)
        for delivery in due:
            upload_id = delivery.event.upload_id
            self.found_events = True
            if free > 0 and upload_id not in self._sending:
                self._sending[upload_id] = asyncio.create_task(self._attempt(delivery))
                free -= 1

    def _free_slots(self) -> int:
        """Return how many further attempts may begin now."""
        if self._health.pause(self._now()) > 0:
            return 0
        return self._health.slots(self._options.concurrency) - len(self._sending)

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            async with asyncio.timeout(self._options.send_timeout):
                await self._sink.send(delivery.event)
            outcome = _Outcome(delivery)
        except DeliveryError as error:
            outcome = _Outcome(delivery, str(error) or "the sink refused the event", error.retry_after)
        except TimeoutError:
            outcome = _Outcome(delivery, f"the sink gave no answer in {self._options.send_timeout:g} s")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # a shutdown or a lost leadership: no attempt that counts
                raise
            outcome = _Outcome(delivery, "the connection was closed")  # by a client library that cancels its waiters
        except Exception as error:  # of a client library or of the application: a failure like any other
            logger.debug("an error of the sink %s", self._sink.name, exc_info=True)
            outcome = _Outcome(delivery, f"{type(error).__name__}: {error}")
        self._unsettled.append(outcome)
        self._wake.set()

    async def _settle(self) -> None:
        """Write the outcomes of attempts to the outbox; those that could not be written stay for the next call."""
        outcomes = list(self._unsettled)
        delivered = [outcome for outcome in outcomes if not outcome.error]
        if delivered:
            await self._outbox.delivered(self._sink.name, [outcome.delivery.event.id for outcome in delivered])
            self._forget(delivered)
            self._health.succeeded()
            self._log_recovery()
        for outcome in outcomes:
            if outcome.error:
                await self._settle_failure(outcome)
                self._forget([outcome])

    def _forget(self, outcomes: list[_Outcome]) -> None:
        """Make room for the next events of these uploads, since the outcomes are in the outbox."""
        for outcome in outcomes:
            self._unsettled.remove(outcome)
            self._sending.pop(outcome.delivery.event.upload_id, None)

    async def _settle_failure(self, outcome: _Outcome) -> None:
        event, attempts = outcome.delivery.event, outcome.delivery.attempts + 1
        reason = without_secrets_within(" ".join(outcome.error.split()))[:MAX_ERROR_LENGTH]
        now = self._clock.steady()
        if now - event.time >= self._options.give_up:
            await self._outbox.bury(self._sink.name, event.id, attempts, reason)
            logger.error(
                "event %s (%s of upload %s) to %s is a dead letter after %d attempts: %s",
                event.id, event.type, event.upload_id, self._sink.name, attempts, reason,
            )  # fmt: skip
        else:
            next_at = now + pause_after(attempts, outcome.retry_after)
            await self._outbox.postpone(self._sink.name, event.id, attempts, next_at, reason)
        self._health.failed(event.id, self._now(), outcome.retry_after)
        if not self._last_error:
            logger.warning("an event could not be delivered to %s, trying again: %s", self._sink.name, reason)
        self._last_error = reason

    def _log_recovery(self) -> None:
        if self._last_error and not self._health.is_away:
            logger.info("events are delivered to %s again", self._sink.name)
            self._last_error = ""

    async def _wait(self) -> None:
        """Return when an attempt has ended, events are stored, a pause is over, or it is time to look again."""
        pause = self._health.pause(self._now())
        timeout = min(self._options.poll_interval, pause) if pause else self._options.poll_interval
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()

    async def _end_attempts(self) -> None:
        """Cancel the attempts that still run, and write the outcomes of the others if the outbox can be used."""
        running = [task for task in self._sending.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)
        with contextlib.suppress(UploadError):
            await self._settle()
        self._unsettled = [outcome for outcome in self._unsettled if not outcome.error]  # for the next leadership
        self._sending.clear()

    def _now(self) -> float:
        return self._clock.monotonic()
