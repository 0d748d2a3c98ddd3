"""Keeping of the steady clock beside the records, so that it goes on where the last process left it."""

from __future__ import annotations

import asyncio
import contextlib

from tusd_py.contracts.state import StateStore
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import StateFull

CLOCK = "clock"  # the metadata that holds it


async def resume_time(state: StateStore, clock: SteadyClock) -> None:
    """Set a clock that was just made as the last process left it."""
    await asyncio.to_thread(clock.era)  # which is read from a file, once
    text = await state.read_metadata(CLOCK)
    if text is not None:
        clock.restore(text)
    await _write_down(state, clock)


async def keep_time(state: StateStore, clock: SteadyClock) -> None:
    """Refresh the clock of the records, and save the state of the steady clock beside them."""
    await state.refresh_clock()
    await _write_down(state, clock)


async def _write_down(state: StateStore, clock: SteadyClock) -> None:
    before = await state.read_metadata(CLOCK)
    with contextlib.suppress(StateFull):  # removing what has expired makes room
        await state.write_metadata(CLOCK, clock.save(), before=before)  # if not, another process has done it just now
