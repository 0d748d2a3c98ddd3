"""The body of a request as a source of bytes that can be interrupted, and that does not wait for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive

from tusd_py.errors import ClientDisconnected, ReadTimeout, UploadError

RECEIVED = "tusd_py.received"  # ASGI scope extension: a function that takes what has arrived, without waiting
RATE_WINDOW = 60.0  # seconds over which the minimum rate is an average


class RequestBody:
    """Reads a body through ASGI messages.

    `idle_timeout` (seconds) bounds the wait for the next bytes; `minimum_rate` (bytes a second) what arrives on
    average. Only the time spent waiting for the client counts, not the time the server takes to store.
    """

    def __init__(
        self,
        receive: Receive,
        declared_size: int | None,
        *,
        idle_timeout: float = 60,
        minimum_rate: float = 0,
        take_received: Callable[[], bytes] | None = None,
    ) -> None:
        self.declared_size = declared_size
        self.bytes_received = 0
        self.started = False  # the client was let send
        self.ended = False  # nothing of the body is left on the connection
        self._receive = receive
        self._take_received = take_received
        self._idle_timeout = idle_timeout
        self._minimum_rate = minimum_rate
        self._stop: UploadError | None = None
        self._woken = False
        self._task: asyncio.Task[object] | None = None  # while it waits for the client
        self._kicked = False
        self._waiting_since = 0.0
        self._window_waited = 0.0
        self._window_received = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self) -> bytes | None:
        """See `uploads.source.Source.read`."""
        if self._stop is not None:
            return self._last_bytes(self._stop)
        if self.ended:
            return None
        if self._woken:
            self._woken = False
            return b""
        message = await self._next_message()
        if message is None:  # interrupted or woken
            return await self.read()
        if message["type"] == "http.disconnect":
            self.ended = True
            raise ClientDisconnected
        data: bytes = message.get("body", b"")
        self.bytes_received += len(data)
        self.ended = not message.get("more_body", False)
        self._check_rate(len(data))
        return data

    def _last_bytes(self, stop: UploadError) -> bytes:
        """What the server has received but not handed over yet, where it can be asked; after that the end."""
        data = self._take_received() if self._take_received is not None and not self.ended else b""
        if not data:
            raise stop
        self.bytes_received += len(data)
        return data

    def silent_for(self) -> float:
        return time.monotonic() - self._waiting_since if self._task is not None else 0.0

    def interrupt(self, reason: UploadError) -> None:
        if self._stop is None:
            self._stop = reason
            self._kick()

    def wake(self) -> None:
        self._woken = True
        self._kick()

    async def _next_message(self) -> Message | None:
        """The next ASGI message; None if `interrupt` or `wake` ended the wait for it.

        They cancel the task, which leaves a message that is just arriving where it is.
        """
        self.started = True
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._waiting_since = time.monotonic()
        self._arm()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._kicked:
                raise
            self._kicked = False
            if task.uncancel() > 0:  # somebody else cancelled it too
                raise
            return None
        finally:
            if self._kicked:  # the server's `receive` swallowed the cancellation
                self._kicked = False
                task.uncancel()
            self._task = None

    def _kick(self) -> None:
        if self._task is not None and not self._kicked:
            self._kicked = True
            self._task.cancel()

    def _arm(self) -> None:
        if self._timer is None and self._idle_timeout:
            self._timer = asyncio.get_running_loop().call_later(self._idle_timeout, self._idle)

    def _idle(self) -> None:
        """The timer is set once and looks, when it fires, how long the silence really is."""
        self._timer = None
        if self._task is None:
            return  # the next wait sets it again
        remaining = self._idle_timeout - self.silent_for()
        if remaining <= 0:
            self.interrupt(ReadTimeout())
        else:
            self._timer = asyncio.get_running_loop().call_later(remaining, self._idle)

    def _check_rate(self, received: int) -> None:
        self._window_waited += time.monotonic() - self._waiting_since
        self._window_received += received
        if self._window_waited >= RATE_WINDOW and not self.ended:
            if self._window_received < self._minimum_rate * RATE_WINDOW:
                self.interrupt(ReadTimeout())
            self._window_waited = 0.0
            self._window_received = 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def discard(self, seconds: float) -> None:
        """Read on for a while without keeping anything, so that the client gets to see the answer."""
        self._stop = None
        try:
            async with asyncio.timeout(seconds):
                while await self.read() is not None:
                    pass
        except (TimeoutError, UploadError):
            pass

    async def wait_for_disconnect(self) -> None:
        """Return once the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
