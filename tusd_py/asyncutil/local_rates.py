"""Rates counted in the memory of one process (`tusd_py.contracts.rates`)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_RATES = 10_000
RESOLUTION = 1e-6  # seconds; less is an error of rounding


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
        used_up = max(now, self._used_up.get(name, now)) + seconds
        wait = used_up - now - burst
        if wait < RESOLUTION:
            wait = 0.0
        if seconds and not (wait and refuse):
            self._used_up[name] = used_up
            self._used_up.move_to_end(name)
            if len(self._used_up) > self._most:
                self._used_up.popitem(last=False)
        return wait
