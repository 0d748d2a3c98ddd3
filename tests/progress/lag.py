"""Uploads that are sent in pieces and followed at the same time: how long after a piece its listener hears of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.timing import TIMEOUT

PIECE = b"x" * 4096
PAUSE = 0.2  # seconds between two pieces


@dataclass
class Followed:
    """One upload: the times at which its offsets were sent and heard of, by `time.monotonic`."""

    path: str
    sent: list[tuple[int, float]] = field(default_factory=list)
    heard: list[tuple[int, float]] = field(default_factory=list)
    is_listening: asyncio.Event = field(default_factory=asyncio.Event)

    def lags(self) -> list[float]:
        """Return for each piece the seconds until its listener knew of it."""
        return [next(at for known, at in self.heard if known >= offset) - sent_at for offset, sent_at in self.sent]


async def measure(senders: Sequence[int], listeners: Sequence[int], *, uploads: int, pieces: int) -> list[float]:
    """Send uploads to servers, follow them at others, and return the lags of all pieces.

    Args:
        senders: ports of the servers that get the bytes, in turn.
        listeners: ports of the servers that tell of them, in turn.
        uploads: number of uploads at the same time.
        pieces: number of pieces of each.
    """
    ports = list(zip(itertools.cycle(senders), itertools.cycle(listeners), range(uploads), strict=False))
    async with asyncio.timeout(TIMEOUT * 2):
        followed = [Followed(await _create(sender, pieces * len(PIECE))) for sender, _, _ in ports]
        async with asyncio.TaskGroup() as group:
            for (sender, listener, number), one in zip(ports, followed, strict=True):
                group.create_task(_listen(listener, one))
                group.create_task(_send(sender, one, pieces, number * PAUSE / uploads))
    return [lag for one in followed for lag in one.lags()]


async def _create(port: int, length: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /files HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Length: %d\r\nContent-Length: 0\r\n"
        b"Connection: close\r\n\r\n" % length
    )
    head = (await reader.read()).decode()
    writer.close()
    return head.lower().partition("location: http://x")[2].partition("\r\n")[0]


async def _send(port: int, one: Followed, pieces: int, delay: float) -> None:
    await one.is_listening.wait()
    await asyncio.sleep(delay)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"PATCH %s HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        b"Content-Type: application/offset+octet-stream\r\nContent-Length: %d\r\n\r\n"
        % (one.path.encode(), pieces * len(PIECE))
    )
    for number in range(1, pieces + 1):
        writer.write(PIECE)
        one.sent.append((number * len(PIECE), time.monotonic()))
        await asyncio.sleep(PAUSE)
    assert b" 204 " in await reader.readline()
    writer.close()


async def _listen(port: int, one: Followed) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %s/events HTTP/1.1\r\nHost: x\r\n\r\n" % one.path.encode())
    async for line in reader:
        if line.startswith(b"data: "):
            message = json.loads(line[6:])
            one.heard.append((message["offset"], time.monotonic()))
            one.is_listening.set()
            if message["status"] == "complete":
                break
    writer.close()
