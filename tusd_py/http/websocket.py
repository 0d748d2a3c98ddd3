"""The opening handshake of a WebSocket, as the GET that it is: routed, let in, answered and counted like any other."""

from __future__ import annotations

import contextlib

from starlette.types import Message, Receive, Scope, Send

DENIAL = "websocket.http.response"  # scope extension: a handshake may be refused by any answer of HTTP
PING = "tusd_py.websocket.ping"  # ASGI message, and scope extension of a server that leaves pings to the application
MAX_MESSAGE_SIZE = 4096  # bytes of a message of a client
SCHEMES = {"ws": "http", "wss": "https"}
NO_BODY = {"type": "http.request", "body": b"", "more_body": False}


class WebSocketExchange:
    """The messages of one WebSocket, up to its acceptance those of an HTTP request and its answer.

    Attributes:
        scope: the scope of the GET.
        sends_pings: whether the application has to send `PING` now and then.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take what a server has called the application with."""
        extensions = scope.get("extensions") or {}
        scheme = scope.get("scheme", "ws")
        self.scope: Scope = {**scope, "type": "http", "method": "GET", "scheme": SCHEMES.get(scheme, scheme)}
        self.sends_pings = PING in extensions
        self._may_deny = DENIAL in extensions
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """Receive a message of the WebSocket."""
        return await self._receive()

    async def receive_no_body(self) -> Message:
        """Receive the body of the GET, which has none."""
        return dict(NO_BODY)

    async def send(self, message: Message) -> None:
        """Send a message; the start of a response of the status 101 is the acceptance of the WebSocket."""
        kind = message["type"]
        if kind == "http.response.start" and message["status"] == 101:
            await self._receive()  # the message that a client wants to connect
            await self._send({"type": "websocket.accept", "headers": message["headers"]})
        elif kind.startswith("http."):
            await self._deny(message)
        else:
            with contextlib.suppress(OSError):  # the client has left, which `receive` tells
                await self._send(message)

    async def _deny(self, message: Message) -> None:
        if self._may_deny:
            await self._send({**message, "type": f"websocket.{message['type']}"})
        elif message["type"] == "http.response.start":
            await self._send({"type": "websocket.close", "code": 1000})  # before the acceptance: an answer of 403
