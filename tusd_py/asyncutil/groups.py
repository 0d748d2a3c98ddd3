"""Calls that are made a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def call_in_groups(call: Callable[[T], Awaitable[R]], values: Sequence[T], size: int) -> list[R]:
    """Return the results of `call` for every value, in order; at most `size` calls are under way at a time.

    Raises what the first call to fail raises; values of later groups are then left out.
    """
    results: list[R] = []
    for start in range(0, len(values), size):
        results += await asyncio.gather(*map(call, values[start : start + size]))
    return results
