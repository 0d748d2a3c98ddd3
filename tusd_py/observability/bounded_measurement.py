"""A measurement of the host that may hang, such as the free space of a file system in the network."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("tusd_py.metrics")


class BoundedMeasurement:
    """The latest value of a measurement, which a thread of its own makes; one at a time, however long it hangs."""

    def __init__(self, measure: Callable[[], float]) -> None:
        """Take the function, which may block and raise."""
        self._measure = measure
        self._lock = threading.Lock()
        self._running: threading.Event | None = None
        self._value: float | None = None

    def latest(self, timeout: float) -> float | None:
        """Measure, and return the value; the last one if that takes more than `timeout` seconds, None without one."""
        with self._lock:
            ended = self._running
            if ended is None:
                ended = threading.Event()
                thread = threading.Thread(target=self._run, args=(ended,), name="tusd-py-metrics", daemon=True)
                self._running = ended
                try:
                    thread.start()
                except RuntimeError as error:  # the host has no room for a thread now
                    self._running = None
                    logger.debug("a measurement did not start: %s", error)
                    return self._value
        ended.wait(timeout)
        return self._value

    def _run(self, ended: threading.Event) -> None:
        try:
            self._value = self._measure()
        except Exception as error:  # of any storage; its own work reports it
            self._value = None
            logger.debug("a measurement failed: %s", error)
        finally:
            self._running = None
            ended.set()
