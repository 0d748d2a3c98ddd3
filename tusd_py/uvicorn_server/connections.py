"""Deadlines of the connections of one server process, and bounds for all of them together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation

MAX_WAITING_FINALS = 32 << 20  # bytes of heads without end and of requests that wait for their turn, of all connections


class IdleConnection(Protocol):
    """A connection without a request that is still to be answered."""

    def end_idle(self) -> None:
        """Close it."""


class WaitingConnection(Protocol):
    """A connection with bytes that no request has been made of yet."""

    def end_waiting(self) -> None:
        """Drop these bytes, and close it once the response is complete that it is being sent, if any."""


@dataclass(slots=True)
class Connections:
    """State shared by all connections. Times are seconds, rates bytes a second; zero switches a deadline off."""

    header_timeout: float = 30.0
    keep_alive_timeout: float = 75.0
    idle_timeout: float = 60.0
    min_rate: float = 1024.0
    instrumentation: Instrumentation = NO_INSTRUMENTATION
    waiting: int = 0  # bytes that no request has been made of yet
    _idle: dict[IdleConnection, float] = field(default_factory=dict)  # since when, longest first
    _waiting: dict[WaitingConnection, int] = field(default_factory=dict)  # bytes, those first that wait longest

    def became_idle(self, connection: IdleConnection) -> None:
        self._idle.pop(connection, None)  # it goes to the end
        self._idle[connection] = time.monotonic()

    def became_busy(self, connection: IdleConnection) -> None:
        self._idle.pop(connection, None)

    def count_waiting(self, connection: WaitingConnection, size: int) -> None:
        """Note that `size` bytes wait at a connection now; beyond the bound, end those that have waited longest.

        An honest head waits for a moment only.
        """
        self.waiting += size - self._waiting.get(connection, 0)
        if size:
            self._waiting[connection] = size
        else:
            self._waiting.pop(connection, None)
        while self.waiting > MAX_WAITING_FINALS:
            longest = next(iter(self._waiting))
            self.waiting -= self._waiting.pop(longest)
            longest.end_waiting()
            self.instrumentation.connection_ended("room")

    def end_longest_idle(self, idle_for: float) -> bool:
        """Make room for another connection; False if none has been idle for so many seconds."""
        for connection, since in self._idle.items():
            if time.monotonic() - since < idle_for:
                return False
            self.became_busy(connection)
            connection.end_idle()
            self.instrumentation.connection_ended("room")
            return True
        return False
