"""The contract of rates: how soon something may be done that costs a share of a limited rate.

A rate is counted as the time at which all that was taken so far is used up, if it is used at exactly this rate (the
generic cell rate algorithm). The time runs ahead of the clock by the burst that is allowed, or by what has to be waited
for.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class CountsRates(Protocol):
    """A store that counts rates, for one process or for all that share it."""

    async def take_rate(self, name: str, seconds: float, burst: float, *, refuse: bool) -> float:
        """Take a share of a rate.

        A repeated attempt, whose answer was lost, may count twice.

        Args:
            name: the name of the rate; a text of any client, of any length.
            seconds: time in which the rate gives this share; zero looks only.
            burst: time whose shares may be taken at once.
            refuse: take nothing if that is more than is there; otherwise it is taken, and has to be waited for.

        Returns:
            Seconds until the share is there; 0 if it is.

        Raises:
            StateUnavailable: the store cannot be used now.
        """
