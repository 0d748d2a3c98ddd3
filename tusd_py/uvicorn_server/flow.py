"""Flow control of one connection: reading that may be paused at any time, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

RATE_WINDOW = 60.0  # seconds over which the minimum rate is an average


class ConnectionFlow(FlowControl):
    """uvicorn's flow control, for a transport that may have been closed in the meantime."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_lent = False
        self._resumes = False  # whether to read again after the socket was lent

    def lend(self) -> None:
        """Pause reading until `take_back`, whoever resumes it: a thread reads from the socket."""
        self.pause_reading()
        self._is_lent, self._resumes = True, False

    def take_back(self) -> bool:
        """End a loan; return whether reading should have been resumed meanwhile."""
        self._is_lent = False
        return self._resumes

    def pause_reading(self) -> None:
        self._resumes = False
        if not self._transport.is_closing():
            super().pause_reading()

    def resume_reading(self) -> None:
        if self._is_lent:
            self._resumes = True
        elif self.read_paused and not self._transport.is_closing():
            super().resume_reading()


class WriteWatch:
    """A watch that ends a connection whose client reads too slowly.

    `idle_timeout` (seconds) bounds the time in which the client takes nothing, `min_rate` (bytes a second) the average
    rate from below; zero disables either. Bytes count as taken once the client's kernel has acknowledged them.
    """

    def __init__(
        self, transport: asyncio.Transport, idle_timeout: float, min_rate: float, end: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._idle_timeout = idle_timeout
        self._min_rate = min_rate
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._window_began = 0.0
        self._window_unsent = 0

    def start(self) -> None:
        """Start the watch: bytes wait for the client, and the server adds none before it has taken some."""
        if self._timer is None and (self._idle_timeout or self._min_rate):
            self._unsent = self._window_unsent = self._measure()
            self._window_began = self._loop.time()
            self._set_timer()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(self._idle_timeout or RATE_WINDOW, self._check)

    def _check(self) -> None:
        self._timer = None
        unsent = self._measure()
        stalled = bool(self._idle_timeout) and unsent >= self._unsent
        window = self._loop.time() - self._window_began
        slow = window >= RATE_WINDOW and self._window_unsent - unsent < self._min_rate * window
        if stalled or slow:
            self._end()
            return
        if window >= RATE_WINDOW:
            self._window_began, self._window_unsent = self._loop.time(), unsent
        self._unsent = unsent
        self._set_timer()

    def _measure(self) -> int:
        """Return the number of bytes that the client has not acknowledged, in this process and in its kernel."""
        return self._transport.get_write_buffer_size() + _unacknowledged(self._transport)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return the number of bytes in the send queue of the kernel; 0 where it does not tell."""
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    return 0
