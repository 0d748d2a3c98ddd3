"""Requests of simulated clients: sent in pieces to a server that is up, in every rough way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.exchange import Answer, Exchange, pieces
from tests.simulation.moments import ACKNOWLEDGEMENT, CANCELLATION
from tests.simulation.oracle import Expected
from tests.simulation.profiles import (
    HANGS_UP,
    HANGS_UP_AT_LAST,
    IS_CANCELLED,
    IS_CANCELLED_AT_LAST,
    STALLS,
    WELL,
)
from tests.simulation.rules import Rules

if TYPE_CHECKING:
    from tests.simulation.world import World

VERSION = {"Host": "uploads.example", "Tus-Resumable": "1.0.0"}
CONTENT = {"Content-Type": "application/offset+octet-stream"}
NO_TRAILER = "none"  # a checksum that is announced as a trailer, and does not come


class Sender:
    """The part of a client that makes requests."""

    def __init__(self, world: World, number: int, rng: Random) -> None:
        self.world = world
        self.number = number
        self.rng = rng
        self.habits = world.habits
        self.doing = ""

    def _log(self, text: str) -> None:
        self.doing = text
        self.world.log(f"client {self.number}: {text}")

    async def _request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        content: bytes = b"",
        *,
        checksum: str = "",
        timeout: float | None = None,
        rough: bool = False,
    ) -> Answer | None:
        """Make a request, in a rough way perhaps; None if there is no answer."""
        host = self.world.host_for(self.rng)
        if host is None or host.process is None or host.server is None:
            await asyncio.sleep(0.3)
            return None
        exchange = Exchange(host.process, self.world.loop, watched=self.rng.random() < 0.7)
        headers = {**VERSION, **self.world.rules.token(self.number), **headers}
        if content and self._draws(self.habits.chunked):
            headers["Transfer-Encoding"] = "chunked"
        elif content or method == "PATCH":
            headers["Content-Length"] = str(len(content))
        if checksum == NO_TRAILER and exchange.watched:
            headers["Trailer"] = "Upload-Checksum"
        elif checksum and exchange.watched and self._draws(self.habits.trailer):
            headers["Trailer"] = "Upload-Checksum"
            exchange.last_trailers.append((b"upload-checksum", checksum.encode()))
        elif checksum:
            headers["Upload-Checksum"] = checksum
        exchange.start(host.server, method, path, headers)
        behaviour = _choose(self.rng, self.habits.rough) if rough and not self.world.is_calm else WELL
        sending = asyncio.ensure_future(self._send(exchange, content, behaviour))
        done, _ = await asyncio.wait((exchange.answer,), timeout=timeout or self.world.patience)
        sending.cancel()
        answer = exchange.answer.result() if done else None
        exchange.hang_up()
        if answer is not None:
            self.world.count(f"{method} {answer.status}")
            if answer.status < 300:
                self.world.moments.note(ACKNOWLEDGEMENT)
        return answer

    async def _send(self, exchange: Exchange, content: bytes, behaviour: str) -> None:
        parts = pieces(content, self.rng)
        for number, part in enumerate(parts):
            if behaviour in (HANGS_UP, STALLS, IS_CANCELLED) and self.rng.random() < 0.5:
                if behaviour == STALLS:
                    self._log("stalls")
                    await asyncio.sleep(self.rng.choice((1.5, 4.0, 40.0)))
                else:
                    await self._leave(exchange, behaviour)
                    return
            exchange.push(part, last=number == len(parts) - 1)
            await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.05)) * self.rng.random())
        if behaviour in (IS_CANCELLED_AT_LAST, HANGS_UP_AT_LAST):
            await asyncio.sleep(self.rng.choice((0, 0.0003, 0.01)) * self.rng.random())
            await self._leave(exchange, behaviour)

    async def _leave(self, exchange: Exchange, behaviour: str) -> None:
        if behaviour in (HANGS_UP, HANGS_UP_AT_LAST):
            self._log(behaviour)
            exchange.hang_up()
        else:
            await self._cancel(exchange, again=self.rng.random() < 0.7)

    async def _cancel(self, exchange: Exchange, *, again: bool) -> None:
        """Have the server around the application cancel the request, once or until it has ended."""
        self._log("is cancelled again and again" if again else "is cancelled")
        assert exchange.task is not None
        exchange.task.cancel()
        self.world.moments.note(CANCELLATION)
        for _ in range(50 if again else 0):
            if exchange.task.done():
                break
            exchange.task.cancel()
            await asyncio.sleep(0 if self.rng.random() < 0.7 else 0.001)
        exchange.hang_up()

    def _draws(self, share: float) -> bool:
        return self.rng.random() < share


def requests_to_refuse(
    upload: Expected, rules: Rules, client: int
) -> list[tuple[str, str, dict[str, str], tuple[int, ...]]]:
    """Return requests with the statuses of which the server has to answer one, and must change nothing."""
    offset = {**CONTENT, "Upload-Offset": str(upload.last_offset)}
    found: list[tuple[str, str, dict[str, str], tuple[int, ...]]] = [
        ("PATCH", upload.path, CONTENT, (400,)),
        ("PATCH", upload.path, {"Upload-Offset": "0"}, (415,)),
        ("PATCH", upload.path, {**offset, "Upload-Length": str(upload.length + 1)}, (400, 409)),
        ("PATCH", f"{upload.path}0", offset, (404,)),
        ("DELETE", f"{upload.path}0", {}, (404,)),
        ("HEAD", f"{upload.path}0", {}, (404,)),
        ("POST", "/files", {"Upload-Concat": "final;"}, (400,)),
        ("POST", "/files", {"Upload-Concat": f"final;{upload.path}0"}, (400, 404)),
        ("OPTIONS", "/files", {}, (200,)),
    ]
    if rules.has_owners:
        other, nobody = rules.token(client + 1), {"Authorization": "Bearer nobody"}
        found += [(method, upload.path, {**offset, **other}, (404,)) for method in ("HEAD", "GET", "PATCH", "DELETE")]
        found += [(method, upload.path, nobody, (401,)) for method in ("HEAD", "GET", "DELETE")]
        found.append(("POST", "/files", {"Upload-Length": "1", "Authorization": ""}, (401,)))
    return found


def _choose(rng: Random, weights: Mapping[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
