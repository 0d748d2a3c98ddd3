"""Messages to a listener as Server-Sent Events: the body of a response that has no end of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Send

from tusd_py.core.errors import WriteTimeout
from tusd_py.http.request import Request, WriteLimit
from tusd_py.progress.listener import Listener

PING = b": ping\n\n"
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # of proxies, which would hold the messages back
}


def stream_headers(request: Request) -> dict[str, str]:
    """Return the header fields of an answer with events, after which the connection ends; HTTP/2 has no such field."""
    ends = request.scope.get("http_version", "1.1").startswith("1")
    return {**HEADERS, "Connection": "close"} if ends else dict(HEADERS)


class EventBody:
    """The events of one listener (`tusd_py.http.request.EventStream`), sent in the task of its request.

    While nothing happens the task waits for one future. A client that reads slowly makes `send` wait, and the messages
    that come meanwhile are coalesced by the listener.
    """

    def __init__(self, listener: Listener, remove: Callable[[Listener], object]) -> None:
        """Take what removes the listener at the end."""
        self._listener = listener
        self._remove = remove
        self._client_left = False

    async def send(self, request: Request, send: Send, write_limit: WriteLimit) -> None:
        """Send the events until the stream ends, or the client leaves, which is an end as good as any.

        Raises `WriteTimeout` if the client has not taken the events, or their end, in time.
        """
        gone = asyncio.ensure_future(request.body.wait_for_disconnect())
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

    async def _send(self, request: Request, send: Send, write_limit: WriteLimit) -> None:
        while (messages := await self._listener.next()) is not None:
            data = b"".join([message.event for message in messages]) or PING
            async with write_limit(len(data)):
                await send({"type": "http.response.body", "body": data, "more_body": True})
            request.bytes_sent += len(data)
        if self._client_left:
            return
        retry = self._listener.retry
        end = b"" if retry is None else b"retry: %d\n\n" % retry
        async with write_limit(len(end)):
            await send({"type": "http.response.body", "body": end})

    def _left(self, gone: asyncio.Future[None]) -> None:
        if not gone.cancelled():
            gone.exception()  # of a server or a middleware, which has lost the client all the same
            self._client_left = True
            self._listener.close()

    def _give_up(self, request: Request, limit: asyncio.Timeout) -> None:
        request.body.reset_connection()
        limit.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Remove the listener; called once the response has ended, or has not begun."""
        self._remove(self._listener)
