"""Persistence of the steady clock beside the records, so that it continues where the last process left it."""

from __future__ import annotations

import asyncio
import contextlib

from tusd_py.contracts.state import StateStore
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import StateFull

CLOCK = "clock"  # name of the metadata with the state of the clock


async def resume_time(state: StateStore, clock: SteadyClock) -> None:
    """Set a new clock to the state that the last process has saved."""
    await asyncio.to_thread(clock.era)  # reads a file, once
    text = await state.read_metadata(CLOCK)
    if text is not None:
        clock.restore(text)
    await _save_clock(state, clock)


async def keep_time(state: StateStore, clock: SteadyClock) -> None:
    """Refresh the clock of the records, and save the state of the steady clock beside them."""
    await state.refresh_clock()
    await _save_clock(state, clock)


async def _save_clock(state: StateStore, clock: SteadyClock) -> None:
    before = await state.read_metadata(CLOCK)
    with contextlib.suppress(StateFull):  # the sweeper makes room
        await state.write_metadata(CLOCK, clock.save(), before=before)  # False: another process has just written it
