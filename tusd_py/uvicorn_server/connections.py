"""The state shared by the connections of one server process: deadlines, and limits for all of them together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.uvicorn_server.file_sender import FileThreads

FILE_THREADS = 4  # that send files
MAX_WAITING_BYTES = 32 << 20  # bytes of incomplete heads and of pipelined requests, of all connections together


class IdleConnection(Protocol):
    """A connection without an unanswered request."""

    def end_idle(self) -> None:
        """Close the connection."""


class WaitingConnection(Protocol):
    """A connection with bytes that are not part of a started request."""

    def end_waiting(self) -> None:
        """Drop these bytes, and close the connection after the response that is being sent, if any."""


@dataclass(slots=True)
class Connections:
    """State shared by all connections. Times are seconds, rates bytes a second; zero disables a deadline."""

    header_timeout: float = 30.0
    keep_alive_timeout: float = 75.0
    idle_timeout: float = 60.0
    min_rate: float = 1024.0
    instrumentation: Instrumentation = NO_INSTRUMENTATION
    file_threads: FileThreads = field(default_factory=lambda: FileThreads(FILE_THREADS))
    waiting: int = 0  # bytes that are not part of a started request
    _idle: dict[IdleConnection, float] = field(default_factory=dict)  # -> monotonic time, the longest idle first
    _waiting: dict[WaitingConnection, int] = field(default_factory=dict)  # -> bytes, the longest waiting first

    async def close(self, timeout: float) -> None:
        """End the threads; wait at most `timeout` seconds for one that the disk holds."""
        await asyncio.to_thread(self.file_threads.close, timeout)

    def became_idle(self, connection: IdleConnection) -> None:
        self._idle.pop(connection, None)  # moves the connection to the end
        self._idle[connection] = time.monotonic()

    def became_busy(self, connection: IdleConnection) -> None:
        self._idle.pop(connection, None)

    def count_waiting(self, connection: WaitingConnection, size: int) -> None:
        """Set the number of waiting bytes of a connection; above the limit, end the connections that wait longest.

        The head of an honest client waits only for a moment.
        """
        self.waiting += size - self._waiting.get(connection, 0)
        if size:
            self._waiting[connection] = size
        else:
            self._waiting.pop(connection, None)
        while self.waiting > MAX_WAITING_BYTES:
            longest = next(iter(self._waiting))
            self.waiting -= self._waiting.pop(longest)
            longest.end_waiting()
            self.instrumentation.connection_ended("room")

    def end_longest_idle(self, idle_for: float) -> bool:
        """End the longest idle connection to make room; return False if none has been idle for `idle_for` seconds."""
        for connection, since in self._idle.items():
            if time.monotonic() - since < idle_for:
                return False
            self.became_busy(connection)
            connection.end_idle()
            self.instrumentation.connection_ended("room")
            return True
        return False
