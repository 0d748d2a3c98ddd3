"""Limits for the rates of creations and of bytes, of every principal, or of every address without one."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from tusd_py.asyncutil.local_rates import MAX_RATES
from tusd_py.contracts.rates import CountsRates
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.option_types import parse_rate
from tusd_py.http.errors import HTTPError
from tusd_py.http.request import Request
from tusd_py.http.shaped_body import ShapedBody
from tusd_py.transfer.body_source import BodySource

logger = logging.getLogger("tusd_py.http")

IPV6_NETWORK = 64  # bits that belong to one customer
BYTES_BURST = 1.0  # seconds whose bytes are taken at once
SHARES = 8  # pieces in which the bytes of a second are taken from a store of several hosts
AWAY_TIME = 5.0  # seconds after a failure of the store that hosts share, in which it is not asked
CHECK_INTERVAL = 0.25  # seconds between two looks whether the server is about to end


class RateLimited(HTTPError):
    """A request that comes too soon after others of the same sender."""

    def __init__(self, seconds: float) -> None:
        """Take the time after which the request would be taken."""
        wait = max(1, math.ceil(seconds))
        text = f"too many new uploads in a short time; try again in {wait} s"
        super().__init__(429, "ERR_RATE_LIMITED", text, {"Retry-After": str(wait)})


def sender_of(request: Request) -> str:
    """Return the name of the sender: its principal, else its address, or the network of an IPv6 address."""
    if request.principal is not None:
        return f"owner {request.principal.owner}"
    return address_of(request)


def creator_of(request: Request) -> str:
    """Return the name of the sender of a creation, which is not the owner if only a signed URL names that."""
    return sender_of(request) if request.grant is None else address_of(request)


def address_of(request: Request) -> str:
    """Return the name of a sender by its address, or by the network of an IPv6 address."""
    return f"address {_network(request.client)}"


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], IPV6_NETWORK), strict=False))
    except ValueError:
        return address


class CreationRate:
    """The limit for creations. Refused ones do not count, and neither do requests that were not let in."""

    def __init__(self, rates: CountsRates, count: int, period: float) -> None:
        """Allow `count` creations in `period` seconds, all of them at once too."""
        self._rates = rates
        self._share = period / count
        self._period = period

    async def admit(self, request: Request) -> None:
        """Raise `RateLimited` if the sender of a creation has made too many in a short time."""
        wait = await self._rates.take_rate(f"create {creator_of(request)}", self._share, self._period, refuse=True)
        if wait > 0:
            request.refusal = "too many creations"
            raise RateLimited(wait)


@dataclass(slots=True)
class _Share:
    """The bytes that were taken for a sender and have not come yet."""

    left: int = 0
    usable_at: float = 0.0  # time of the event loop
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ByteRate:
    """The limit for the bytes of appends. A sender that exceeds it waits, and no other one does.

    From a store that hosts share, bytes are taken in shares of an eighth of a second, so that few buffers need a call;
    while it cannot be reached, every host keeps to the rate by itself. Since each failure may take seconds, for which
    all requests of a sender wait, the store is then not asked for a while.
    """

    def __init__(
        self, rates: CountsRates, own_rates: CountsRates, bytes_per_second: int, is_draining: Callable[[], bool]
    ) -> None:
        """Take the stores and the rate.

        Args:
            rates: the store of rates, which hosts share unless it is `own_rates`.
            own_rates: the store of this host, for the time in which the other one cannot be reached.
            bytes_per_second: the rate.
            is_draining: tells whether the server is about to end.
        """
        self._rates = rates
        self._own_rates = own_rates
        self._rate = bytes_per_second
        self._is_draining = is_draining
        self._away_until = 0.0  # time of the event loop
        self._least = 1 if rates is own_rates else max(1, bytes_per_second // SHARES)
        self._shares: OrderedDict[str, _Share] = OrderedDict()  # of every sender

    async def shaped(self, request: Request) -> BodySource:
        """Return the body of an append as it may be read, once the sender has waited for its earlier bytes."""
        sender, body = sender_of(request), request.body
        arrived = body.arrived
        await self._sleep(await self.take(sender, 0 if arrived is None else len(arrived)))
        if arrived is not None:
            return body
        body.receive_in_small_buffers(self._rate // SHARES)

        async def take(size: int) -> float:
            return await self.take(sender, size)

        return ShapedBody(body, take)

    async def take(self, sender: str, size: int) -> float:
        """Count bytes of a sender; return the seconds until it may send more.

        Requests of one sender take from one share, one after the other.
        """
        share = self._share_of(sender)
        async with share.turn:
            now = asyncio.get_running_loop().time()
            if size > share.left:
                taken = max(self._least, size - share.left)
                share.usable_at = now + await self._take(sender, taken)
                share.left += taken
            elif not share.left:
                share.usable_at = now + await self._take(sender, 0)
            share.left -= size
            return max(0.0, share.usable_at - now)

    def _share_of(self, sender: str) -> _Share:
        share = self._shares.setdefault(sender, _Share())
        self._shares.move_to_end(sender)
        if len(self._shares) > MAX_RATES:
            self._shares.popitem(last=False)
        return share

    async def _take(self, sender: str, size: int) -> float:
        name, seconds = f"bytes {sender}", size / self._rate
        loop = asyncio.get_running_loop()
        if loop.time() >= self._away_until:
            try:
                return await self._rates.take_rate(name, seconds, BYTES_BURST, refuse=False)
            except StateUnavailable as error:
                self._away_until = loop.time() + AWAY_TIME
                logger.debug("the rate of bytes is kept by this host alone: %s", error.message)
        return await self._own_rates.take_rate(name, seconds, BYTES_BURST, refuse=False)

    async def _sleep(self, seconds: float) -> None:
        """Wait, before anything is locked; end early if the server is about to end, which the append then tells."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0 and not self._is_draining():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(min(left, CHECK_INTERVAL))


def rates_of(
    state: object, own_rates: CountsRates, creations: str, bytes_per_second: int, is_draining: Callable[[], bool]
) -> tuple[CreationRate | None, ByteRate | None]:
    """Make the limits for rates. A state store that hosts share counts them, else this host does.

    Args:
        state: the state store.
        own_rates: the rates of this host.
        creations: a rate such as `10/s`; empty for no limit.
        bytes_per_second: zero for no limit.
        is_draining: tells whether the server is about to end.
    """
    rates = state if isinstance(state, CountsRates) else own_rates
    return (
        CreationRate(rates, *parse_rate(creations)) if creations else None,
        ByteRate(rates, own_rates, bytes_per_second, is_draining) if bytes_per_second else None,
    )
