"""Depth and age of the outbox of one sink: the metrics, and a line of the log while events wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.contracts.outbox import Outbox
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import UploadError
from tusd_py.outbox.sink_worker import SinkWorker

logger = logging.getLogger("tusd_py.outbox")

MEASURE_INTERVAL = 5.0  # seconds
LOG_INTERVAL = 60.0  # seconds between two lines about events that wait
MIN_LOGGED_AGE = 30.0  # seconds that the oldest event has waited when the log tells of it


class DepthMeter:
    """A measurement of the events of a sink, in the process that delivers to it."""

    def __init__(self, sink: str, outbox: Outbox, clock: SteadyClock, instrumentation: Instrumentation) -> None:
        self._sink = sink
        self._outbox = outbox
        self._clock = clock
        self._instrumentation = instrumentation
        self._next_line = 0.0  # monotonic

    @contextlib.asynccontextmanager
    async def measuring(self, worker: SinkWorker) -> AsyncIterator[None]:
        """Measure for the context."""
        task = asyncio.create_task(self._measure_forever(worker))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    def forget(self) -> None:
        """Leave the metrics to the process that delivers instead of this one."""
        self._instrumentation.outbox_measured(self._sink, 0, 0, 0.0)

    async def _measure_forever(self, worker: SinkWorker) -> None:
        empty = False
        while True:
            if worker.found_events or not empty:
                worker.found_events = False
                with contextlib.suppress(UploadError):  # the delivery itself reports it
                    empty = await self._measure(worker.last_error)
            await asyncio.sleep(MEASURE_INTERVAL)

    async def _measure(self, last_error: str) -> bool:
        """Report depth and age; return whether there is no event."""
        depths = await self._outbox.outbox_depth()
        depth = depths.get(self._sink)
        if depth is None:
            self._instrumentation.outbox_measured(self._sink, 0, 0, 0.0)
            return True
        age = max(0.0, self._clock.wall() - depth.oldest) if depth.oldest is not None else 0.0
        self._instrumentation.outbox_measured(self._sink, depth.waiting, depth.dead, age)
        now = self._clock.monotonic()
        if age > MIN_LOGGED_AGE and now >= self._next_line:
            self._next_line = now + LOG_INTERVAL
            logger.warning(
                "%d events wait for %s, the oldest for %.0f s; %d dead letters; last error: %s",
                depth.waiting, self._sink, age, depth.dead, last_error or "none",
            )  # fmt: skip
        return depth.waiting + depth.dead == 0
