"""A WebSocket byte by byte, for what no client library sends."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.support.timing import TIMEOUT
from tests.support.wire.connection import Connection
from tests.support.wire.messages import Answer, Headers

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of the RFC, for this key
MASK = b"\x01\x02\x03\x04"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """Return a frame of a client."""
    size = len(payload)
    mask = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += struct.pack("!BH", mask | 126, size)
    else:
        head += struct.pack("!BQ", mask | 127, size)
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[number % 4] for number, byte in enumerate(payload))


class RawWebSocket(Connection):
    """A connection that has sent the head of a handshake, and has read the head of the answer."""

    def __init__(
        self,
        port: int,
        path: str,
        headers: Headers | None = None,
        *,
        behind: bytes = b"",
        receive_buffer: int | None = None,
        address: str = "",
    ) -> None:
        super().__init__(port, receive_buffer=receive_buffer, address=address)
        self.send(self.head_of("GET", path, {**UPGRADE, **(headers or {})}) + behind)
        self.status, self._all_fields = self._read_head()
        self.fields = dict(self._all_fields)

    def refusal(self) -> Answer:
        """Return the whole answer to a handshake that was refused."""
        return Answer(self.status, tuple(self._all_fields), self._read(int(self.fields["content-length"])))

    def next_frame(self, timeout: float = TIMEOUT) -> tuple[int, bytes]:
        """Return the next frame of the server; raises `ConnectionError` if there is none."""
        self.socket.settimeout(timeout)
        first, size = self._read(2)
        assert first & 0x80
        assert not size & 0x80
        if size == 126:
            (size,) = struct.unpack("!H", self._read(2))
        return first & 0x0F, self._read(size)

    def next_message(self) -> dict[str, Any]:
        """Return the next message; frames that are none are passed over."""
        while True:
            opcode, payload = self.next_frame()
            assert opcode != CLOSE, payload
            if opcode == TEXT:
                message: dict[str, Any] = json.loads(payload)
                return message

    def code(self) -> int:
        """Return the code of the close that comes at last."""
        while True:
            opcode, payload = self.next_frame()
            if opcode == CLOSE:
                (code,) = struct.unpack("!H", payload[:2])
                return int(code)
