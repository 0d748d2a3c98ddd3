"""The application behind the servers of a world: hooks that decide, sinks of events, and their ways to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from tests.simulation.event_ledger import EventLedger
from tests.simulation.loop import SimulatedLoop
from tusd_py.contracts.hooks import HookAnswer, HookCall, HookResponse, UploadChanges
from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.metadata import parse_metadata
from tusd_py.core.outbox import OutboxEvent
from tusd_py.outbox.sink_urls import SinkAddress

SINKS = ("https://one.example/events", "https://two.example/events")
REFUSED = HookResponse(status=422, headers={"X-Reason": "the application"}, body="no")
CHOSEN = "chosen-"  # beginning of the ids that the application chooses
NUMBER = "number"  # key of the metadata with the number of an upload

WELL, SLOW, RAISES, HANGS, NONSENSE, LOST_ANSWER = "well", "slow", "raises", "hangs", "nonsense", "lost answer"
HOOK_WAYS = {WELL: 70, SLOW: 15, RAISES: 6, HANGS: 3, NONSENSE: 6}
SINK_WAYS = {WELL: 60, SLOW: 15, RAISES: 12, HANGS: 3, LOST_ANSWER: 10}


class Application:
    """One application of a world; its object `hooks` is given to every server.

    The number of an upload, which its client sends as metadata, decides what the application wants of it: the same
    answer every time, whichever process asks.
    """

    def __init__(
        self, seed: int, loop: SimulatedLoop, ledger: EventLedger, log: Callable[[str], None], *, has_files: bool
    ) -> None:
        """`has_files` tells whether uploads are files, which may have a place that the application chooses."""
        self.loop = loop
        self.ledger = ledger
        self.log = log
        self.is_calm = False  # answers at once, and takes every event
        self._seed = seed
        self._has_files = has_files
        plan = Random(f"{seed} application")
        self._rng = Random(f"{seed} application calls")
        self.sinks = SINKS[: plan.choice((1, 1, 2))]
        begins = [loop.now + plan.random() * 30 for _ in range(plan.choice((0, 1, 2)))]
        self._absences = [(begin, begin + plan.choice((3.0, 30.0)) * plan.random()) for begin in begins]
        decides = plan.random() < 0.6
        told = plan.random() < 0.4
        self.hooks: object | None = _Both(self) if decides and told else _Deciding(self) if decides else None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of servers that this application needs."""
        return {"events_to": self.sinks, "progress_hooks_interval": 0.2}

    def make_sink(self, address: SinkAddress, *_: object) -> Sink:
        """Return a sink in place of a real one, see `tusd_py.outbox.sinks.make.make_sink`."""
        return Sink(address.name, self)

    # Answers.

    def wants(self, upload: Any, what: str, share: float) -> bool:
        """Return whether this upload is one of those of which the application wants something."""
        return Random(f"{self._seed} {_number(upload)} {what}").random() < share

    async def decide(self, call: HookCall) -> Any:
        """Answer `pre_create`."""
        if self.wants(call.upload, "is not created", 0.06):
            return await self._answer(HookAnswer(reject=True, response=REFUSED))
        changes = UploadChanges()
        if not call.upload.is_final and self.wants(call.upload, "gets an id", 0.3):
            chosen = f"{CHOSEN}{self._rng.randbytes(8).hex()}"  # another one when the client asks again
            has_place = self._has_files and not call.upload.is_partial and self.wants(call.upload, "has a place", 0.5)
            changes = UploadChanges(id=chosen, path=f"chosen/{chosen}" if has_place else None)
        return await self._answer(HookAnswer(HookResponse(headers={"X-Note": "welcome"}), changes=changes))

    async def judge(self, call: HookCall) -> Any:
        """Answer `pre_finish`, after a look at the bytes."""
        if self.wants(call.upload, "is not wanted", 0.12):
            self.ledger.rejects(call.upload.id)
            return await self._answer(HookAnswer(reject=True, response=REFUSED))
        if call.read is not None and self._rng.random() < 0.5:
            content = b"".join([bytes(piece) async for piece in call.read(0, call.upload.offset)])
            self.ledger.saw(call.upload, content)
        return await self._answer(None)

    async def allow(self, call: HookCall) -> Any:
        """Answer `pre_terminate`."""
        return await self._answer(HookAnswer(reject=True) if self._rng.random() < 0.3 else None)

    async def watch(self, call: HookCall) -> Any:
        """Answer `post_receive`."""
        if self.wants(call.upload, "is stopped", 0.1):
            self.ledger.stops(call.upload.id)
            return await self._answer(HookAnswer(HookResponse(status=403), stop=True))
        return await self._answer(None)

    async def _answer(self, answer: HookAnswer | None) -> Any:
        way = WELL if self.is_calm else _choose(self._rng, HOOK_WAYS)
        if way != WELL:
            self.log(f"a hook {way}")
        if way == SLOW:
            await asyncio.sleep(self._rng.random() * self._rng.choice((0.1, 2.0, 6.0)))
        elif way == HANGS:
            await self._hang()
        elif way == RAISES:
            raise RuntimeError("a mistake of the application")
        return "yes" if way == NONSENSE else answer

    async def _hang(self) -> None:
        while not self.is_calm:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(1.0)

    # Events.

    async def receive(self, sink: str, event: OutboxEvent) -> None:
        """Take an event, or fail to."""
        is_away = any(start <= self.loop.now < end for start, end in self._absences)
        way = WELL if self.is_calm else RAISES if is_away else _choose(self._rng, SINK_WAYS)
        await asyncio.sleep(self._rng.random() * (2.0 if way == SLOW else 0.01))
        if way == HANGS:
            await self._hang()
        if way == RAISES:
            raise DeliveryError("away", retry_after=self._rng.choice((None, 0.5, 3.0)))
        self.ledger.take(sink, event)
        if way == LOST_ANSWER:
            raise ConnectionResetError("the answer is lost")

    async def connect(self) -> None:
        """Open a connection of a sink, or fail to."""
        if not self.is_calm and self._rng.random() < 0.1:
            raise OSError("no connection")


class Sink:
    """A sink of the application, see `tusd_py.contracts.outbox.Sink`."""

    def __init__(self, name: str, application: Application) -> None:
        self.name = name
        self._application = application

    async def open(self) -> None:
        await self._application.connect()

    async def close(self) -> None: ...

    async def send(self, event: OutboxEvent) -> None:
        await self._application.receive(self.name, event)


class _Deciding:
    """Hooks that decide."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def pre_create(self, call: HookCall) -> Any:
        return await self._application.decide(call)

    async def pre_finish(self, call: HookCall) -> Any:
        return await self._application.judge(call)

    async def pre_terminate(self, call: HookCall) -> Any:
        return await self._application.allow(call)


class _Both(_Deciding):
    """Hooks that decide, and hear of progress."""

    async def post_receive(self, call: HookCall) -> Any:
        return await self._application.watch(call)


def _number(upload: Any) -> str:
    return parse_metadata(upload.metadata or "").get(NUMBER, b"").decode()


def _choose(rng: Random, weights: Mapping[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
