"""When the sweeper looks for what crashes left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tusd_py.uploads import sweeping as expiration


@pytest.mark.parametrize("interval", [0.01, 3600])
async def test_orphans_are_removed_soon_after_every_start(monkeypatch: pytest.MonkeyPatch, interval: float) -> None:
    """A server that is restarted every half an hour would never come to it otherwise."""
    cleaned = asyncio.Event()

    async def nothing(service: Any) -> int:
        return 0

    async def clean(service: Any) -> None:
        cleaned.set()

    monkeypatch.setattr(expiration, "sweep_as_leader", nothing)
    monkeypatch.setattr(expiration, "clean_as_leader", clean)
    assert max(expiration.FIRST_CLEAN) <= 120
    monkeypatch.setattr(expiration, "FIRST_CLEAN", (0.02, 0.05))
    service: Any = None
    sweeper = asyncio.create_task(expiration.sweep_forever(service, interval))
    try:
        await asyncio.wait_for(cleaned.wait(), 20)
    finally:
        sweeper.cancel()
        await asyncio.wait((sweeper,))
