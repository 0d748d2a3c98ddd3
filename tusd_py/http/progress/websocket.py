"""The form of a stream as a WebSocket (RFC 6455), on which the client may ask too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence

from starlette.types import Message as SendMessage, Receive
from websockets.frames import CloseCode

from tusd_py.asyncutil.allowance import Allowance
from tusd_py.http.websocket import MAX_MESSAGE_SIZE, PING
from tusd_py.progress.listener import Listener
from tusd_py.progress.messages import Message

MESSAGES_AT_ONCE = 32  # of a client
MESSAGES_PER_SECOND = 4.0
MAX_REPLIES = 32  # that a client has not taken
STATUS_INTERVAL = 0.25  # seconds between two answers to `get_status`
STATUS_INTERVAL_PER_UPLOAD = 0.005  # seconds that are added for every upload of the stream

PONG = '{"type":"pong"}'
ERROR = json.dumps(
    {
        "type": "error",
        "code": "ERR_INVALID_MESSAGE",
        "message": 'the messages are {"type":"ping"} and {"type":"get_status"}',
    },
    separators=(",", ":"),
)


class WebSocketForm:
    """Messages as JSON text (`tusd_py.http.progress.stream_body.StreamForm`), and answers to those of the client."""

    def __init__(
        self, receive: Receive, listener: Listener, snapshots: Callable[[], Sequence[Message]], *, sends_pings: bool
    ) -> None:
        """Take the messages of both sides.

        Args:
            receive: receives messages of ASGI.
            listener: the listener.
            snapshots: returns the state of every upload of the stream.
            sends_pings: whether the application has to send pings, see `tusd_py.http.websocket.PING`.
        """
        self._receive = receive
        self._listener = listener
        self._snapshots = snapshots
        self._sends_pings = sends_pings
        self._allowance = Allowance(MESSAGES_AT_ONCE, MESSAGES_PER_SECOND)
        self._replies: list[str] = []
        self._status_is_due = False
        self._status_at = 0.0  # time of the event loop of the next answer to `get_status`
        self._status_timer: asyncio.TimerHandle | None = None
        self._refusal: tuple[CloseCode, str] | None = None

    async def listen(self) -> None:
        """Take the messages of the client, until it has left."""
        while (message := await self._receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive" and self._refusal is None:
                self._take(message.get("text"))

    def _take(self, text: str | None) -> None:
        if text is None:
            self._refuse(CloseCode.UNSUPPORTED_DATA, "messages are text")
        elif len(text) > MAX_MESSAGE_SIZE or len(text.encode()) > MAX_MESSAGE_SIZE:
            self._refuse(CloseCode.MESSAGE_TOO_BIG, f"a message has {MAX_MESSAGE_SIZE} bytes at most")
        elif not self._allowance.take() or len(self._replies) >= MAX_REPLIES:
            self._refuse(CloseCode.POLICY_VIOLATION, "too many messages in a short time")
        else:
            kind = type_of(text)
            if kind == "get_status":
                self._ask_for_status()
            else:
                self._replies.append(PONG if kind == "ping" else ERROR)
                self._listener.ping()

    def _refuse(self, code: CloseCode, reason: str) -> None:
        self._refusal = code, reason
        self._listener.end()

    def _ask_for_status(self) -> None:
        """Answer soon; one answer is enough for all that ask until then."""
        if self._status_timer is None and not self._status_is_due:
            self._status_timer = asyncio.get_running_loop().call_at(self._status_at, self._status_due)

    def _status_due(self) -> None:
        self._status_timer = None
        self._status_is_due = True
        self._listener.ping()

    def render(self, messages: Sequence[Message]) -> Iterable[tuple[int, SendMessage]]:
        """Return a message for each, and the answers to the client; a ping is a control frame."""
        texts = [message.text.decode() for message in messages]
        if self._status_is_due:
            snapshots = self._snapshots()
            self._status_is_due = False
            self._status_at = asyncio.get_running_loop().time() + STATUS_INTERVAL
            self._status_at += STATUS_INTERVAL_PER_UPLOAD * len(snapshots)
            texts += [message.text.decode() for message in snapshots]
        texts += self._replies
        self._replies.clear()
        if texts or not self._sends_pings:
            return [(len(text), {"type": "websocket.send", "text": text}) for text in texts]
        return [(0, {"type": PING})]

    def render_end(self, retry: int | None) -> tuple[int, SendMessage]:
        """Return the close of the WebSocket, with the time to come back in its reason."""
        if self._refusal is not None:
            code, reason = self._refusal
        elif retry is None:
            code, reason = CloseCode.NORMAL_CLOSURE, ""
        else:
            code, reason = CloseCode.SERVICE_RESTART, f"retry: {retry}"
        return len(reason), {"type": "websocket.close", "code": int(code), "reason": reason}

    def close(self) -> None:
        """Cancel the answer that waits."""
        if self._status_timer is not None:
            self._status_timer.cancel()


def type_of(text: str) -> object:
    """Return the type of a message of a client; None if it has none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document.get("type") if isinstance(document, dict) else None
