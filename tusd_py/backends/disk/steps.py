"""Steps of the storage that run in threads of other components."""

from __future__ import annotations

import threading


class ExternalSteps:
    """A count of the steps of a storage that run in threads of other components, for which `close` waits."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def begin(self) -> None:
        with self._changed:
            self._count += 1

    def end(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self, timeout: float | None) -> bool:
        """Wait until no step is under way; return False if one is after `timeout` seconds. Blocks."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout)
