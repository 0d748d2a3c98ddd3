"""The opening handshake of a WebSocket (RFC 6455, section 4.2): its recognition and its checks. Pure functions."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

VERSION = "13"
KEY_SIZE = 16  # bytes
ACCEPTANCE = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of the RFC


@dataclass(frozen=True, slots=True)
class Handshake:
    """The offer of a client to go on with a WebSocket.

    Attributes:
        accept: the value of `Sec-WebSocket-Accept`.
        subprotocols: those that the client names.
    """

    accept: bytes
    subprotocols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InvalidHandshake:
    """An offer of a WebSocket that is refused before any application sees it."""

    status: str
    text: str


def opening_handshake(
    method: bytes, version: str, headers: list[tuple[bytes, bytes]]
) -> Handshake | InvalidHandshake | None:
    """Return the handshake in the head of a request; None if the request is none, so that its offer is ignored.

    Args:
        method: the method of the request.
        version: its version of HTTP.
        headers: its fields, with names in lower case.
    """
    if method != b"GET" or version != "1.1" or b"websocket" not in _tokens(headers, b"upgrade"):
        return None
    names = dict(headers)
    if b"transfer-encoding" in names or names.get(b"content-length", b"0").strip(b"0"):
        return InvalidHandshake("400 Bad Request", "ERR_INVALID_REQUEST: the handshake of a WebSocket has no body")
    if _values(headers, b"sec-websocket-version") != [VERSION.encode()]:
        text = f"ERR_INVALID_REQUEST: the version of WebSockets here is {VERSION}"
        return InvalidHandshake("426 Upgrade Required", text)
    keys = _values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        return InvalidHandshake(
            "400 Bad Request", "ERR_INVALID_REQUEST: Sec-WebSocket-Key has to be 16 bytes in Base64"
        )
    accept = base64.b64encode(hashlib.sha1(keys[0] + ACCEPTANCE, usedforsecurity=False).digest())
    names_of_protocols = ",".join(value.decode("latin-1") for value in _values(headers, b"sec-websocket-protocol"))
    return Handshake(accept, tuple(name.strip() for name in names_of_protocols.split(",") if name.strip()))


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value.strip() for field, value in headers if field == name]


def _tokens(headers: list[tuple[bytes, bytes]], name: bytes) -> set[bytes]:
    return {token.strip().lower() for value in _values(headers, name) for token in value.split(b",")}


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == KEY_SIZE
    except binascii.Error:
        return False
