"""Signal handlers that run before those of the web server, so that appends drain as soon as a shutdown begins."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class SignalWatch:
    """Handlers of SIGTERM and SIGINT that start the drain and then call the handlers of the web server.

    A web server waits for its running requests without telling them of the shutdown; the drain ends them. The watch
    does nothing outside the main thread, where Python allows no signal handlers, and for signals without a handler.
    """

    def __init__(self, drain: Callable[[], object], drain_delay: float) -> None:
        """Prepare a watch.

        Args:
            drain: called in the event loop when a shutdown begins.
            drain_delay: seconds after SIGTERM in which the server still serves; then the web server gets the signal.
                A second signal ends the delay.
        """
        self._drain = drain
        self._drain_delay = drain_delay
        self._previous: dict[int, Any] = {}
        self.is_delaying = False  # whether SIGTERM came and the drain delay has not ended

    def start(self) -> None:
        """Install the handlers in place of those of the web server, which are called afterwards."""
        self.is_delaying = False
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            self._watch(signal.SIGTERM, loop)
            self._watch(signal.SIGINT, loop)

    def stop(self) -> None:
        """Restore the handlers of the web server."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        self._previous.clear()

    def _watch(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        previous = signal.getsignal(number)
        if not callable(previous) or previous is signal.default_int_handler:
            return

        def handle(received: int, frame: FrameType | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is in flight
                if received == signal.SIGTERM and self._drain_delay and not self.is_delaying:
                    self.is_delaying = True
                    loop.call_soon_threadsafe(loop.call_later, self._drain_delay, stop, received)
                    return
                loop.call_soon_threadsafe(self._drain)
            previous(received, frame)

        def stop(received: int) -> None:
            self._drain()
            previous(received, None)

        self._previous[number] = previous
        signal.signal(number, handle)
