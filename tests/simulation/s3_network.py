"""The way to S3 and back: stands for the HTTP session of botocore, whose parsing, retries and errors run for real.

A request that has left its process is carried out even if the process dies. Every message takes a random time, so that
requests and answers overtake each other.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from botocore.awsrequest import AWSResponse  # type: ignore[import-untyped]
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError  # type: ignore[import-untyped]
from urllib3.exceptions import ProtocolError

from tests.simulation.loop import SimulatedLoop
from tests.simulation.machine import EPOCH, Process
from tests.simulation.moments import REQUEST, Moments
from tests.simulation.s3_bucket import BucketModel, S3Error
from tests.simulation.s3_messages import Reply, Request, answer, error, parse
from tests.simulation.system_calls import process_now
from tests.simulation.threads import Scheduler

READ_TIMEOUT = 20.0  # seconds
CLOCK_OF_S3 = 77.0  # seconds that the clock of S3 is ahead
FATES = {
    "slow down": 3,
    "error": 2,
    "error although done": 2,
    "refused": 2,
    "reset": 2,
    "lost answer": 4,
    "late": 1,
    "stall": 1,
    "slow": 3,
    "twice": 2,
    "broken body": 3,
    "gateway": 2,
}
COPYING = ("complete_multipart_upload", "copy_object", "upload_part_copy")  # may answer 200 with an error inside


class Body:
    """The body of an answer on its way, which may break off."""

    def __init__(self, content: bytes, *, breaks: bool) -> None:
        self._content = content[: len(content) // 2] if breaks else content
        self._breaks = breaks
        self._position = 0

    def read(self, amount: int | None = None) -> bytes:
        end = len(self._content) if amount is None else self._position + amount
        piece = self._content[self._position : end]
        self._position += len(piece)
        if not piece and self._breaks:
            raise ProtocolError("Connection broken")
        return piece

    def stream(self) -> Iterator[bytes]:
        yield self.read()

    def close(self) -> None: ...


class Exchange:
    """A request under way, and the thread that waits for its answer."""

    def __init__(self, process: Process, request: Request, pieces: list[Any]) -> None:
        self.process = process
        self.request = request
        self.pieces = pieces
        self.waiters: deque[Any] = deque()
        self.reply: Reply | None = None
        self.failure: Exception | None = None

    @property
    def is_over(self) -> bool:
        return self.reply is not None or self.failure is not None


class Network:
    """The network between the servers of a world and S3."""

    def __init__(
        self,
        loop: SimulatedLoop,
        scheduler: Scheduler,
        rng: Random,
        bucket: BucketModel,
        moments: Moments,
        log: Callable[[str], None],
        count: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.scheduler = scheduler
        self.rng = rng
        self.bucket = bucket
        self.moments = moments
        self.log = log
        self.count = count
        self.troubled_until = 0.0  # virtual time until which requests meet random fates
        self.intensity = 0.0  # the share of requests that do
        self.usual = 0.0  # the share at other times
        self.away_until = 0.0
        self.slow_until = 0.0
        self.late_keys: set[str] = set()  # keys of requests that were carried out after their sender had given up
        self.under_way = 0
        self.answers: Callable[[Request], Reply | Exception | None] = lambda _: None  # of a scenario, if it has one

    def calm_down(self) -> None:
        self.troubled_until = self.away_until = self.slow_until = self.usual = 0.0

    def send(self, prepared: Any) -> AWSResponse:
        """Send a request and wait for its answer. Runs in a thread of the simulation."""
        pieces = _pieces_of(prepared.body)
        exchange = Exchange(process_now(), parse(prepared, b"".join(pieces)), pieces)
        operation = exchange.request.operation
        fate = self._fate(operation)
        self.count(f"s3 {operation}")
        if fate:
            self.count(f"s3 {fate}")
            self.log(f"S3: {operation} of {exchange.request.key}: {fate}")
        arrival, back = self._latency(), self._latency()
        if fate == "slow":
            arrival += self.rng.random() * 6
        elif fate == "late":
            arrival += READ_TIMEOUT + self.rng.random() * 10
        elif fate == "stall":
            arrival = back = 1e6
        if arrival < 1e6:
            self.under_way += 1
            self._later(arrival, self._arrive, exchange, fate, back)
        self._later(READ_TIMEOUT, self._settle, exchange, None, ReadTimeoutError(endpoint_url=prepared.url))
        self.scheduler.wait(exchange.waiters)
        process_now()
        if exchange.failure is not None:
            raise exchange.failure
        assert exchange.reply is not None
        reply = exchange.reply
        breaks = fate == "broken body" and operation == "get_object" and len(reply.body) > 1
        body = Body(reply.body, breaks=breaks)
        response = AWSResponse(prepared.url, reply.status, reply.headers, body)
        if not prepared.stream_output:
            response.content  # noqa: B018 - as the session of botocore does
        return response

    def _later(self, delay: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have something happen outside of every process."""
        self.loop.call_later(delay, call, *arguments, context=contextvars.Context())

    def _latency(self) -> float:
        kind = self.rng.random()
        latency = self.rng.random() * (0.02 if kind < 0.8 else 0.15 if kind < 0.97 else 0.8)
        return latency + (self.rng.random() * 2 if self.loop.now < self.slow_until else 0)

    def _fate(self, operation: str) -> str:
        if self.loop.now < self.away_until:
            return "refused"
        share = self.intensity if self.loop.now < self.troubled_until else self.usual
        if self.rng.random() >= share:
            return ""
        if operation in COPYING and self.rng.random() < 0.3:
            return "error inside 200"
        return self.rng.choices(list(FATES), list(FATES.values()))[0]

    def _arrive(self, exchange: Exchange, fate: str, back: float) -> None:
        """The request has arrived at S3, unless it has not."""
        self.under_way -= 1
        self.bucket.now = EPOCH + self.loop.now + CLOCK_OF_S3
        request = exchange.request
        if fate == "refused":
            self._answer_later(exchange, back, None, EndpointConnectionError(endpoint_url="s3", error="refused"))
            return
        if fate == "reset" or (not exchange.process.alive and self.rng.random() < 0.5):
            self._answer_later(exchange, back, None, ConnectionClosedError(endpoint_url="s3"))
            return
        if fate == "error inside 200" and self.rng.random() < 0.5:
            self._answer_later(exchange, back, error(S3Error(200, "InternalError")), None)
            return
        if fate in ("slow down", "error", "gateway"):
            self._answer_later(exchange, back, _refusal(fate, request), None)
            return
        if not exchange.is_over and exchange.process.alive:  # the bytes leave the memory of the process only now
            body = b"".join(exchange.pieces)
            request = Request(request.method, request.key, request.query, request.headers, body)
        else:
            self.late_keys.add(request.key)
        scripted = self.answers(request)
        if isinstance(scripted, Exception):
            self._answer_later(exchange, back, None, scripted)
            return
        reply = answer(self.bucket, request) if scripted is None else scripted
        exchange.process.context.copy().run(self.moments.note, REQUEST)
        if fate == "twice":
            self.under_way += 1
            self._later(self._latency(), self._repeat, request)
        if fate == "lost answer":
            self._answer_later(exchange, back, None, ConnectionClosedError(endpoint_url="s3"))
        elif fate == "error although done":
            self._answer_later(exchange, back, _refusal("error", request), None)
        elif fate == "error inside 200":
            inside = error(S3Error(200, "InternalError"))
            self._answer_later(exchange, back, inside, None)
        else:
            self._answer_later(exchange, back, reply, None)

    def _repeat(self, request: Request) -> None:
        """A request arrives once more."""
        self.under_way -= 1
        self.late_keys.add(request.key)
        self.bucket.now = EPOCH + self.loop.now + CLOCK_OF_S3
        answer(self.bucket, request)

    def _answer_later(self, exchange: Exchange, delay: float, reply: Reply | None, failure: Exception | None) -> None:
        self._later(delay, self._settle, exchange, reply, failure)

    def _settle(self, exchange: Exchange, reply: Reply | None, failure: Exception | None) -> None:
        if not exchange.is_over:
            exchange.reply, exchange.failure = reply, failure
            self.scheduler.wake(exchange.waiters.popleft())


class Session:
    """The HTTP session of the one client of botocore in this process, for the world of now."""

    def __init__(self) -> None:
        self.network: Network | None = None

    def send(self, prepared: Any) -> AWSResponse:
        assert self.network is not None
        return self.network.send(prepared)

    def close(self) -> None: ...


def _refusal(fate: str, request: Request) -> Reply:
    if fate == "gateway":
        return Reply(404, b"404 page not found\n", {"Content-Type": "text/plain"})
    failure = S3Error(503, "SlowDown") if fate == "slow down" else S3Error(500, "InternalError")
    return error(failure, is_head=request.method == "HEAD")


def _pieces_of(body: Any) -> list[Any]:
    """Return the pieces of a body, as views of the memory they are in."""
    if body is None:
        return []
    if isinstance(body, bytes | bytearray):
        return [body]
    pieces = []
    while piece := body.read(1 << 20):
        pieces.append(piece)
    return pieces
