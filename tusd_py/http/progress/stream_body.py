"""The body of a response that tells one listener what happens, in whichever form; it has no end of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from starlette.types import Message as SendMessage, Send

from tusd_py.core.errors import WriteTimeout
from tusd_py.http.request import Request, WriteLimit
from tusd_py.progress.listener import Listener
from tusd_py.progress.listeners import RETRY
from tusd_py.progress.messages import Message


class StreamForm(Protocol):
    """The form of a stream: Server-Sent Events or a WebSocket."""

    async def listen(self) -> None:
        """Take what the client sends, and return once it has left."""

    def render(self, messages: Sequence[Message]) -> Iterable[tuple[int, SendMessage]]:
        """Return messages of ASGI, each with its number of bytes; no message to render stands for a ping."""

    def render_end(self, retry: int | None) -> tuple[int, SendMessage]:
        """Return the last message; `retry` are the milliseconds after which the client is to come back."""

    def close(self) -> None:
        """Drop what waits."""


class StreamBody:
    """The messages of one listener (`tusd_py.http.request.EventStream`), sent in the task of its request.

    While nothing happens the task waits for one future. A client that reads slowly makes `send` wait, and the messages
    that come meanwhile are coalesced by the listener.
    """

    def __init__(self, form: StreamForm, listener: Listener, remove: Callable[[Listener], object]) -> None:
        """Send to `listener` in this form; `remove` is called with it at the end."""
        self._form = form
        self._listener = listener
        self._remove = remove
        self._client_left = False

    async def send(self, request: Request, send: Send, write_limit: WriteLimit) -> None:
        """Send the messages until the stream ends, or the client leaves, which is an end as good as any.

        Raises `WriteTimeout` if the client has not taken the messages, or their end, in time.
        """
        gone = asyncio.ensure_future(self._form.listen())
        gone.add_done_callback(self._left)
        request.body.limit_send_buffer()
        try:
            async with asyncio.timeout(None) as limit:
                self._listener.give_up = lambda: self._give_up(request, limit)
                await self._send(request, send, write_limit)
            if request.body.reader_timed_out:
                raise WriteTimeout
        except TimeoutError:
            raise WriteTimeout from None
        finally:
            self._listener.give_up = None
            gone.cancel()
            self._form.close()

    async def _send(self, request: Request, send: Send, write_limit: WriteLimit) -> None:
        while (messages := await self._listener.next()) is not None:
            for size, message in self._form.render(messages):
                async with write_limit(size):
                    await send(message)
                request.bytes_sent += size
        if self._client_left:
            return
        size, end = self._form.render_end(self._listener.retry)
        async with write_limit(size):
            await send(end)

    def _left(self, gone: asyncio.Future[None]) -> None:
        if not gone.cancelled():
            gone.exception()  # of a server or a middleware, which has lost the client all the same
            self._client_left = True
            self._listener.close()

    def _give_up(self, request: Request, limit: asyncio.Timeout) -> None:
        request.body.reset_connection()
        limit.reschedule(asyncio.get_running_loop().time())

    def end(self) -> None:
        """End the messages, and have the client come back soon if it still may."""
        self._listener.end(RETRY[0])

    def close(self) -> None:
        """Remove the listener; called once the response has ended, or has not begun."""
        self._remove(self._listener)
