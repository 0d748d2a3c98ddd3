"""The body of a request whose sender may send so many bytes a second: the next ones are read later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import UploadError
from tusd_py.http.body import RequestBody


class ShapedBody:
    """A `BodySource` that pauses between two reads, while the connection is not read and its sender has to wait.

    A pause is not the silence of the client: no timeout counts it. The pause ends when the reader is woken, without
    bytes, and for good when the source is interrupted, so that bytes that have arrived are kept as ever.
    """

    def __init__(self, body: RequestBody, take: Callable[[int], Awaitable[float]]) -> None:
        """Take the body, and what counts bytes and returns the seconds until more may come."""
        self._body = body
        self._take = take
        self._resume_at = 0.0  # time of the event loop
        self._pause: asyncio.Future[bool] | None = None  # while `read` pauses; True if it is woken
        self._woken = False  # while `read` did not pause, so that bytes that are there are still to be read
        self._interrupted = False

    @property
    def declared_size(self) -> int | None:
        """See `BodySource.declared_size`."""
        return self._body.declared_size

    @property
    def arrived(self) -> Buffer | None:
        """None: a body that has arrived as a whole needs no pauses."""
        return None

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        """See `BodySource.feed`."""
        try:
            await self._body.feed(reader)
        except asyncio.CancelledError:
            self._end_for_good()
            raise

    async def read(self) -> Buffer | None:
        """See `BodySource.read`."""
        seconds = self._resume_at - asyncio.get_running_loop().time()
        if seconds > 0 and not self._interrupted and (self._woken or await self._paused(seconds)):
            self._woken = False
            return b""
        data = await self._body.read()
        if not data:
            self._woken = False
        if data and not self._interrupted:
            wait = await self._take(len(data))
            self._resume_at = asyncio.get_running_loop().time() + wait
        return data

    async def _paused(self, seconds: float) -> bool:
        """Pause; return whether the reader was woken before the end."""
        loop = asyncio.get_running_loop()
        pause: asyncio.Future[bool] = loop.create_future()
        self._pause = pause
        timer = loop.call_later(seconds, _settle, pause, False)
        try:
            return await pause
        finally:
            timer.cancel()
            self._pause = None
            self._body.forget_silence()

    def release(self, buffers: Sequence[Buffer]) -> None:
        """See `BodySource.release`."""
        self._body.release(buffers)

    def silent_for(self) -> float:
        """See `BodySource.silent_for`."""
        return 0.0 if self._pause is not None else self._body.silent_for()

    def interrupt(self, reason: UploadError) -> None:
        """See `BodySource.interrupt`."""
        self._body.interrupt(reason)
        self._end_for_good()

    def wake(self) -> None:
        """See `BodySource.wake`."""
        if self._pause is not None:
            _settle(self._pause, True)
        else:
            self._woken = True
            self._body.wake()

    def _end_for_good(self) -> None:
        self._interrupted = True
        if self._pause is not None:
            _settle(self._pause, False)


def _settle(pause: asyncio.Future[bool], woken: bool) -> None:
    if not pause.done():
        pause.set_result(woken)
