"""The rules of servers for senders and contents: owners, quotas, rates, types, and a scanner that finds malware."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from typing import Any

from tests.simulation.loop import SimulatedLoop
from tests.simulation.oracle import Expected
from tusd_py.contracts.auth import ExpiredCredentials, InvalidCredentials, Principal
from tusd_py.contracts.scanner import ScanImpossible
from tusd_py.core.buffers import Buffer
from tusd_py.core.request_context import RequestContext

OWNERS = ("ann", "ben")
TYPES = ("application/*", "audio/*", "font/*", "image/*", "text/*", "video/*")  # of any bytes
INFECTED = 10  # one of so many contents is

WELL, SLOW, RAISES, EXPIRED, WRONG = "well", "slow", "raises", "expired", "wrong"
ANSWERS = {WELL: 88, SLOW: 5, RAISES: 3, EXPIRED: 2, WRONG: 2}
SCANS = {WELL: 70, SLOW: 15, RAISES: 15}


class Rules:
    """The rules of one run, drawn from its seed, with the authenticator and the scanner that they need.

    Attributes:
        settings: what they add to the settings of servers.
        has_owners: whether every request needs a token.
        is_calm: whether every question is answered at once.
    """

    def __init__(self, seed: int, loop: SimulatedLoop, log: Callable[[str], None], share: float) -> None:
        """`share` of the runs have rules."""
        plan = Random(f"{seed} rules")
        has_rules = plan.random() < share
        self.settings: dict[str, Any] = _draw_settings(plan) if has_rules else {}
        self.has_owners = has_rules and plan.random() < 0.5
        self.is_calm = False
        self._infected: list[bytes] = []
        self._loop = loop
        self._log = log
        self._rng = Random(f"{seed} rules that are asked")

    @property
    def components(self) -> dict[str, Any]:
        """The components of servers."""
        return {"authenticator": self} if self.has_owners else {}

    @property
    def has_quotas(self) -> bool:
        return "quota_bytes" in self.settings or "quota_uploads" in self.settings

    @property
    def checks_files(self) -> bool:
        """Whether files are checked as a whole, so that no part of one can be downloaded."""
        return "clamd" in self.settings or "allowed_types" in self.settings

    @property
    def refusals(self) -> tuple[int, ...]:
        """The statuses by which an upload may be refused for good."""
        return ((413,) if self.has_quotas else ()) + ((422, 415) if "clamd" in self.settings else ())

    @property
    def later(self) -> tuple[int, ...]:
        """The statuses by which a request may be refused for now."""
        return ((401,) if self.has_owners else ()) + ((429,) if "rate_create" in self.settings else ())

    def refuses(self, upload: Expected) -> bool:
        """Return whether an upload may be one in which malware was found."""
        return any(
            upload.may_have(len(content)) and content.startswith(bytes(upload.known)) for content in self._infected
        )

    # Senders.

    def token(self, client: int) -> dict[str, str]:
        """Return the header with the token of a client."""
        return {"Authorization": f"Bearer {self.owner(client)}"} if self.has_owners else {}

    def owner(self, client: int) -> str:
        """Return the owner that a client acts for."""
        return OWNERS[client % len(OWNERS)] if self.has_owners else ""

    async def authenticate(self, context: RequestContext) -> Principal | None:
        """Find the sender of a request, see `Authenticator`."""
        way = WELL if self.is_calm else _choose(self._rng, ANSWERS)
        if way != WELL:
            self._log(f"the authenticator: {way}")
        if way == SLOW:
            await asyncio.sleep(self._rng.random() * self._rng.choice((0.5, 2.0)))
        elif way == RAISES:
            raise RuntimeError("a mistake of the authenticator")
        elif way == EXPIRED:
            raise ExpiredCredentials("expired")
        elif way == WRONG:
            return "somebody"  # type: ignore[return-value]
        name = context.headers.get("authorization", "").removeprefix("Bearer ")
        if not name:
            return None
        if name not in OWNERS:
            raise InvalidCredentials("unknown")
        return Principal(name)

    # Contents.

    def make_scanner(self, _: str) -> Rules:
        """Return a scanner in place of that of a setting."""
        return self

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        """Scan a file, see `Scanner`: the same bytes always have the same answer."""
        way = WELL if self.is_calm else _choose(self._rng, SCANS)
        if way == RAISES and self._rng.random() < 0.5:
            raise ScanImpossible("away")
        content = b"".join([bytes(piece) async for piece in pieces])
        if way == SLOW:
            await asyncio.sleep(self._rng.random() * 3)
        elif way == RAISES:
            raise ScanImpossible("broken off")
        if zlib.crc32(content) % INFECTED:
            return ""
        self._infected.append(content)
        return "Malware"


def _draw_settings(plan: Random) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if plan.random() < 0.4:
        settings["quota_bytes"] = plan.choice((20_000, 60_000))
    if plan.random() < 0.3:
        settings["quota_uploads"] = plan.choice((2, 4))
    if plan.random() < 0.2:
        settings["rate_create"] = "4/s"
    if plan.random() < 0.2:
        settings["rate_bytes"] = 50_000
    if plan.random() < 0.4:
        settings["allowed_types"] = TYPES
    if plan.random() < 0.4:
        settings["clamd"] = "tcp://clamd.example:3310"
        settings["scan_fail"] = plan.choice(("open", "closed"))
    return settings


def _choose(rng: Random, weights: Mapping[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
