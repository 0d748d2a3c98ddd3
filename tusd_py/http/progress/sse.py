"""The form of a stream as Server-Sent Events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.types import Message as SendMessage

from tusd_py.http.request import Request
from tusd_py.progress.messages import Message

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


class EventForm:
    """Messages as Server-Sent Events (`tusd_py.http.progress.stream_body.StreamForm`)."""

    def __init__(self, request: Request) -> None:
        """Take the request, whose client sends nothing more."""
        self._request = request

    async def listen(self) -> None:
        """Wait until the client has left."""
        await self._request.body.wait_for_disconnect()

    def render(self, messages: Sequence[Message]) -> Iterable[tuple[int, SendMessage]]:
        """Return all messages in one piece; a ping is a comment."""
        data = b"".join([message.event for message in messages]) or PING
        return ((len(data), {"type": "http.response.body", "body": data, "more_body": True}),)

    def render_end(self, retry: int | None) -> tuple[int, SendMessage]:
        """Return the end of the body, after the time to come back."""
        end = b"" if retry is None else b"retry: %d\n\n" % retry
        return len(end), {"type": "http.response.body", "body": end}

    def close(self) -> None:
        """Do nothing: nothing waits."""
