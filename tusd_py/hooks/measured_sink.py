"""The measurement of the hooks that are told of events."""

from __future__ import annotations

import time

from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.contracts.outbox import Sink
from tusd_py.core.outbox import OutboxEvent
from tusd_py.hooks.event_names import hook_of


class MeasuredSink:
    """A sink that passes events on to another one, which tells a hook, and measures each attempt."""

    def __init__(self, sink: Sink, instrumentation: Instrumentation) -> None:
        """Send by `sink`, and report to `instrumentation`."""
        self.name = sink.name
        self._sink = sink
        self._instrumentation = instrumentation

    async def open(self) -> None:
        """See `Sink.open`."""
        await self._sink.open()

    async def close(self) -> None:
        """See `Sink.close`."""
        await self._sink.close()

    async def send(self, event: OutboxEvent) -> None:
        """See `Sink.send`."""
        started, succeeded = time.monotonic(), False
        try:
            await self._sink.send(event)
            succeeded = True
        finally:
            self._instrumentation.hook_called(hook_of(event.type), time.monotonic() - started, succeeded)
