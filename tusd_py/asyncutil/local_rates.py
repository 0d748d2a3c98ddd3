"""Rates counted in the memory of one process (`tusd_py.contracts.rates`)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_RATES = 10_000
RESOLUTION = 1e-6  # seconds; less is an error of rounding


def next_share(now: float, used_up: float, seconds: float, burst: float, *, refuse: bool) -> tuple[float, float]:
    """Return the seconds until a share of a rate is there, and the time at which all is used up then.

    Args:
        now: the time.
        used_up: the time at which all that was taken so far is used up.
        seconds: see `CountsRates.take_rate`, as the others.
        burst: see there.
        refuse: see there.
    """
    after = max(now, used_up) + seconds
    wait = after - now - burst
    if wait < RESOLUTION:
        wait = 0.0
    return wait, used_up if not seconds or (wait and refuse) else after


class LocalRates:
    """The rates of one process, in bounded memory: beyond it the one that was used longest ago counts from anew."""

    def __init__(self, most: int = MAX_RATES, clock: Callable[[], float] = time.monotonic) -> None:
        """Remember so many rates; `clock` is monotonic, in seconds."""
        self._most = most
        self._clock = clock
        self._used_up: OrderedDict[str, float] = OrderedDict()  # name -> time at which all that was taken is used up

    async def take_rate(self, name: str, seconds: float, burst: float, *, refuse: bool) -> float:
        """See `CountsRates.take_rate`."""
        now = self._clock()
        before = self._used_up.get(name, 0.0)
        wait, used_up = next_share(now, before, seconds, burst, refuse=refuse)
        if used_up != before:
            self._used_up[name] = used_up
            self._used_up.move_to_end(name)
            if len(self._used_up) > self._most:
                self._used_up.popitem(last=False)
        return wait
