"""The protocol of Redis, RESP3: requests that are read, replies that are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class RedisError(Exception):
    """An error reply: its text begins with a code."""


@dataclass(frozen=True, slots=True)
class Status:
    text: str


@dataclass(frozen=True, slots=True)
class Double:
    value: float


@dataclass(frozen=True, slots=True)
class Verbatim:
    text: str


@dataclass(frozen=True, slots=True)
class Map:
    items: Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Push:
    items: Sequence[Any]


def encode(reply: Any) -> bytes:
    """Return the bytes of a reply."""
    if reply is None:
        return b"_\r\n"
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list | tuple):
        return b"*%d\r\n" % len(reply) + b"".join(map(encode, reply))
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply.text.encode()
    if isinstance(reply, Double):
        return b",%b\r\n" % format_score(reply.value)
    if isinstance(reply, Map):
        pairs = b"".join(encode(name) + encode(value) for name, value in reply.items.items())
        return b"%%%d\r\n" % len(reply.items) + pairs
    if isinstance(reply, Push):
        return b">%d\r\n" % len(reply.items) + b"".join(map(encode, reply.items))
    if isinstance(reply, Verbatim):
        text = b"txt:" + reply.text.encode()
        return b"=%d\r\n%b\r\n" % (len(text), text)
    assert isinstance(reply, RedisError)
    return b"-%b\r\n" % str(reply).encode()


def format_score(score: float) -> bytes:
    if math.isinf(score):
        return b"inf" if score > 0 else b"-inf"
    return b"%d" % int(score) if score == int(score) and abs(score) < 1e17 else b"%.17g" % score


def take_command(data: bytearray) -> list[bytes] | None:
    """Remove the first command from received bytes, and return its words; None if it has not arrived as a whole."""
    end = data.find(b"\r\n")
    if end < 0:
        return None
    content = bytes(data)  # whose slices need no copy of a copy
    assert content[:1] == b"*"
    words: list[bytes] = []
    position = end + 2
    for _ in range(int(content[1:end])):
        end = content.find(b"\r\n", position)
        if end < 0:
            return None
        begin = end + 2
        end = begin + int(content[position + 1 : end])
        position = end + 2
        if len(content) < position:
            return None
        words.append(content[begin:end])
    del data[:position]
    return words
