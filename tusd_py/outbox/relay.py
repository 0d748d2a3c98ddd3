"""Delivery of stored events to every sink, from the start of a server to its shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.outbox import Outbox, Sink
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import UploadError
from tusd_py.outbox.leadership import leadership_of
from tusd_py.outbox.measurement import DepthMeter
from tusd_py.outbox.sink_worker import DeliveryOptions, SinkWorker

logger = logging.getLogger("tusd_py.outbox")

CONTEND_INTERVAL = 1.0  # seconds between two attempts to become the one that delivers
CANCEL_INTERVAL = 0.5  # seconds until a cancelled task that still runs is cancelled again
MIN_STOP_TIME = 0.5  # seconds that attempts have at least at a shutdown


class OutboxRelay:
    """The delivery of events to all sinks, each on its own: one that is away delays only its own events.

    Of all processes that share the records one delivers to a sink, the holder of the lock of the sink; it hears of
    events of its own process at once, and looks for those of others every second.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        outbox: Outbox,
        locker: Locker,
        clock: SteadyClock,
        options: DeliveryOptions,
        instrumentation: Instrumentation = NO_INSTRUMENTATION,
    ) -> None:
        self._sinks = sinks
        self._outbox = outbox
        self._locker = locker
        self._clock = clock
        self.options = options
        self._instrumentation = instrumentation
        self._workers: list[SinkWorker] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start one task for each sink, in the running event loop."""
        self._stopping = asyncio.Event()
        for sink in self._sinks:
            worker = SinkWorker(sink, self._outbox, self._clock, self.options, self._stopping)
            meter = DepthMeter(sink.name, self._outbox, self._clock, self._instrumentation)
            self._workers.append(worker)
            self._tasks.append(asyncio.create_task(self._run(sink, worker, meter)))

    def wake(self) -> None:
        """Deliver what was just stored at once, if this process delivers. Called in the event loop."""
        for worker in self._workers:
            worker.wake()

    async def stop(self, timeout: float) -> None:
        """Begin no attempt, and return when those under way have ended, or after `timeout` seconds, which cancels them.

        Events whose attempt was cut off are sent again after the next start.
        """
        if not self._tasks:
            return
        self._stopping.set()
        self.wake()
        _, running = await asyncio.wait(self._tasks, timeout=max(timeout, MIN_STOP_TIME))
        while running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=CANCEL_INTERVAL)
        self._tasks, self._workers = [], []

    async def _run(self, sink: Sink, worker: SinkWorker, meter: DepthMeter) -> None:
        last_error = ""
        while not self._stopping.is_set():
            try:
                async with leadership_of(self._locker, sink.name) as leadership:
                    if leadership is None:
                        meter.forget()
                    else:
                        async with meter.measuring(worker):
                            await worker.deliver(leadership)
                last_error = ""
            except UploadError as error:
                if error.message != last_error:
                    logger.warning("events to %s are not delivered now: %s", sink.name, error.message)
                last_error = error.message
            except Exception:  # a defect of a component must not end the delivery for ever
                logger.exception("the delivery of events to %s failed", sink.name)
            await self._pause(CONTEND_INTERVAL)

    async def _pause(self, seconds: float) -> None:
        """Return after a pause, at once when a shutdown begins."""
        waiting = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((waiting,), timeout=seconds)
        waiting.cancel()
