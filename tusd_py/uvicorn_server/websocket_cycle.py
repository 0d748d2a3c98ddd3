"""One WebSocket under uvicorn: its handshake is a request like any other, and its connection stays the one that it was.

The frames are those of `websockets`, without its connections: limits and deadlines are those of all connections here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE
from websockets.exceptions import ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side, State

from tusd_py.asyncutil.allowance import Allowance
from tusd_py.http.websocket import DENIAL, MAX_MESSAGE_SIZE, PING
from tusd_py.uvicorn_server.cycle import UploadCycle
from tusd_py.uvicorn_server.websocket_handshake import Handshake

if TYPE_CHECKING:
    from tusd_py.uvicorn_server.protocol import UploadProtocol

SCHEMES = {"http": "ws", "https": "wss"}
FRAMES_AT_ONCE = 64  # of a client, pings and pieces of messages included
FRAMES_PER_SECOND = 8.0
SLICE = 512  # bytes that are parsed at a time, so that frames are counted before the next ones are parsed
LINGER_SIZE = 64 << 10  # bytes that are read and discarded after an error
MIN_PING_INTERVAL = 10.0  # seconds in which a client has to answer
CLOSE_TIMEOUT = 2.0  # seconds for the client's answer to a close
LAST_CLOSE_TIMEOUT = 0.5  # the same when the server ends

logger = logging.getLogger("tusd_py.uvicorn_server")
frames_logger = logging.getLogger("tusd_py.uvicorn_server.frames")
frames_logger.setLevel(logging.INFO)  # each frame at DEBUG would be a line with what the client has sent


class WebSocketCycle(UploadCycle):
    """One WebSocket, from its handshake on; refused by a whole response, after which the connection ends."""

    def __init__(self, protocol: UploadProtocol, handshake: Handshake) -> None:
        """Take over the request whose head the protocol has read."""
        super().__init__(protocol, keep_alive=False)
        self.scope["extensions"] |= {DENIAL: {}, PING: {}}
        self._handshake = handshake
        self._frames: Protocol | None = None  # from the acceptance on
        self._allowance = Allowance(FRAMES_AT_ONCE, FRAMES_PER_SECOND)
        self._pieces = bytearray()  # of a message that has not ended
        self._pieces_are_text = False
        self._messages: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._code: int = CloseCode.ABNORMAL_CLOSURE
        self._reason = ""
        self._discarded = 0  # bytes after an error
        self._heard = True  # whether the client has sent anything since the last ping
        self._pinged_at = 0.0  # time of the event loop

    def application_scope(self) -> Any:
        """Return the scope of a WebSocket in place of that of the GET."""
        changed = {
            "type": "websocket",
            "scheme": SCHEMES[self.scope["scheme"]],
            "subprotocols": list(self._handshake.subprotocols),
        }
        return {name: value for name, value in self.scope.items() if name != "method"} | changed

    @property
    def is_websocket(self) -> bool:
        """Whether the WebSocket was accepted; it may have been closed since."""
        return self._frames is not None

    # The application's side.

    async def receive(self) -> Any:
        while True:
            if self._messages:
                message = self._messages.popleft()
                if not self._messages:
                    self.flow.resume_reading()
                return message
            if self.disconnected or self.response_complete:
                return {"type": "websocket.disconnect", "code": self._code, "reason": self._reason}
            await self.message_event.wait()
            self.message_event.clear()

    async def send(self, message: Any) -> None:
        kind = message["type"]
        if kind.startswith(DENIAL):
            await super().send({**message, "type": kind.removeprefix("websocket.")})
        elif self._frames is not None:
            await self._send_on(self._frames, message)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            await super().send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await super().send({"type": "http.response.body"})
        else:
            await super().send(message)

    def _accept(self, message: Mapping[str, Any]) -> None:
        if self.disconnected:
            return
        lines = [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"]
        fields = [*self.default_headers, *message.get("headers", ())]
        if message.get("subprotocol"):
            fields.append((b"sec-websocket-protocol", message["subprotocol"].encode()))
        for name, value in (*fields, (b"sec-websocket-accept", self._handshake.accept)):
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid HTTP header.")
            lines.append(b"%s: %s\r\n" % (name, value))
        self.transport.write(b"".join([*lines, b"\r\n"]))
        self.response_started = True
        self._frames = Protocol(Side.SERVER, max_size=MAX_MESSAGE_SIZE, logger=frames_logger)

    async def _send_on(self, frames: Protocol, message: Mapping[str, Any]) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected or frames.state is not State.OPEN:
            return
        kind = message["type"]
        if kind == "websocket.close":
            self.close_websocket(message.get("code") or CloseCode.NORMAL_CLOSURE, message.get("reason") or "")
        elif kind == PING:
            self._ping(frames)
        elif kind == "websocket.send":
            if message.get("text") is not None:
                frames.send_text(message["text"].encode())
            else:
                frames.send_binary(message["bytes"])
            self._flush(frames)
        else:
            raise RuntimeError(f"a message {kind} after the acceptance of a WebSocket")

    def _ping(self, frames: Protocol) -> None:
        """Send a ping, or end the connection if the client has sent nothing since the one before."""
        now = self.protocol.loop.time()
        if self._pinged_at and now - self._pinged_at < MIN_PING_INTERVAL:
            return
        if not self._heard:
            self.protocol.reader_timed_out()
            return
        self._heard, self._pinged_at = False, now
        frames.send_ping(b"")
        self._flush(frames)

    def close_websocket(self, code: int, reason: str = "") -> None:
        """Close the WebSocket, and the connection once the client has answered, or not in time."""
        frames = self._frames
        if frames is None or frames.state is not State.OPEN:
            return
        try:
            frames.send_close(code, reason)
        except ProtocolError:  # a code or reason of the application that cannot be sent
            frames.send_close(CloseCode.INTERNAL_ERROR)
        self._code, self._reason = code, reason
        self._flush(frames)
        self._closed(CLOSE_TIMEOUT)

    def close_at_shutdown(self) -> None:
        """Close the WebSocket; its client may delay the end for a moment only."""
        self.close_websocket(CloseCode.SERVICE_RESTART, "the server ends")
        self.protocol.websocket_closed(LAST_CLOSE_TIMEOUT, self._abort)

    async def _answer_failure(self) -> None:
        if self._frames is None:
            await super()._answer_failure()
        else:
            self.close_websocket(CloseCode.INTERNAL_ERROR)

    # The client's side.

    def data_arrived(self, data: bytes) -> None:
        """Take bytes of frames."""
        frames = self._frames
        self._heard = True
        if frames is not None and frames.parser_exc is not None:
            self._discard(len(data))
            return
        for start in range(0, len(data), SLICE):
            if frames is None or frames.parser_exc is not None or self.transport.is_closing():
                return
            frames.receive_data(data[start : start + SLICE])
            self._take(frames)

    def _discard(self, size: int) -> None:
        """Read for a while what comes after an error, so that the client reads the close."""
        self._discarded += size
        if self._discarded > LINGER_SIZE:
            self.flow.pause_reading()

    def _take(self, frames: Protocol) -> None:
        """Take the frames that have arrived."""
        was_open = not self.response_complete
        for event in frames.events_received():
            if not self._allowance.take():
                self.close_websocket(CloseCode.POLICY_VIOLATION, "too many frames in a short time")
                self._abort_unless(was_open)
                return
            if isinstance(event, Frame) and was_open and frames.state is State.OPEN:
                self._take_frame(event)
        if self.flow.write_paused and frames.state is State.OPEN:
            frames.data_to_send()  # answers to pings, which a client that does not read does without
        self._flush(frames)
        if frames.close_rcvd is not None:
            self._client_closed(frames.close_rcvd)
        elif frames.state is not State.OPEN and was_open:
            sent = frames.close_sent or Close(CloseCode.ABNORMAL_CLOSURE, "")
            self._code, self._reason = sent.code, sent.reason
            self._closed(CLOSE_TIMEOUT)

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._pieces_are_text = frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return
        self._pieces += frame.data
        if not frame.fin:
            return
        data, self._pieces = bytes(self._pieces), bytearray()
        message: dict[str, Any] = {"type": "websocket.receive"}
        try:
            message["text" if self._pieces_are_text else "bytes"] = data.decode() if self._pieces_are_text else data
        except UnicodeDecodeError:
            self.close_websocket(CloseCode.INVALID_DATA, "a text is not UTF-8")
            return
        self._messages.append(message)
        self.flow.pause_reading()
        self.message_event.set()

    def _client_closed(self, close: Close) -> None:
        if not self.response_complete:
            self._code, self._reason = close.code, close.reason
            self._closed(CLOSE_TIMEOUT)
        self.protocol.end("its client has closed the WebSocket")

    def _abort_unless(self, was_open: bool) -> None:
        if not was_open:
            self._abort()

    def _abort(self, reason: str = "") -> None:
        self.transport.abort()

    def _closed(self, seconds: float) -> None:
        """Tell the application that the WebSocket is closed, and wait for the end of the connection."""
        self.response_complete = True
        self.protocol.server_state.total_requests += 1
        self._messages.clear()
        self.message_event.set()
        self.flow.resume_reading()
        self.protocol.websocket_closed(seconds, self.protocol.end)

    def _flush(self, frames: Protocol) -> None:
        data = b"".join(frames.data_to_send())
        if data and not self.transport.is_closing():
            self.transport.write(data)
