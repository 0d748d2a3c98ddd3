"""SIGTERM and SIGINT, noticed on their way to the web server that handles them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class SignalWatch:
    """Tells of a shutdown at the moment the web server learns of it.

    A web server waits for its running requests without telling them; so they are told here. The watch does nothing
    outside the main thread, where Python allows no signal handlers, and for signals that nobody handles.
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
        self.is_delaying = False  # a shutdown is about to begin: no new clients should be sent here

    def start(self) -> None:
        """Take the place of the handlers of the web server, which are called afterwards."""
        self.is_delaying = False
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            self._watch(signal.SIGTERM, loop)
            self._watch(signal.SIGINT, loop)

    def stop(self) -> None:
        """Put the handlers of the web server back."""
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
