"""The pings of idle streams, spread over the seconds of an interval."""

from __future__ import annotations

from tusd_py.progress.listener import Listener

PING_INTERVAL = 25  # seconds between two pings of a listener, a part of them every second


class PingWheel:
    """The listeners that get pings, in as many slots as the interval has seconds."""

    def __init__(self) -> None:
        self._slots: list[set[Listener]] = [set() for _ in range(PING_INTERVAL)]
        self._turns = 0

    def add(self, listener: Listener, number: int) -> None:
        """Add a listener; those with numbers that follow each other are pinged in different seconds."""
        self._slots[number % PING_INTERVAL].add(listener)

    def remove(self, listener: Listener) -> None:
        """Remove a listener; do nothing for one that gets no pings."""
        for slot in self._slots:
            slot.discard(listener)

    def turn(self) -> None:
        """Ping the listeners of the next slot; called every second."""
        self._turns += 1
        for listener in self._slots[self._turns % PING_INTERVAL]:
            listener.ping()
