"""The settings of the servers of a run, and what their file system cannot do; drawn from the seed."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.filesystem import ABILITIES


def draw_settings(plan: Random) -> dict[str, Any]:
    """Return the settings of a run."""
    return {
        "durability": plan.choice(("complete", "complete", "complete", "always", "never")),
        "sweep_interval": 10.0,
        "expires_after": plan.choice((0, 0, 600)),
        "shutdown_grace": 5.0,
        "lock_timeout": 3.0,
        "concatenation_unfinished": plan.random() < 0.3,
        "buffer_size": "1MiB",
        "idle_timeout": 15.0,
    }


def draw_rare_settings(rng: Random) -> dict[str, Any]:
    """Return settings that few servers have."""
    settings: dict[str, Any] = {}
    if rng.random() < 0.08:
        settings["max_size"] = rng.choice((2000, 20_000))
    if rng.random() < 0.08:
        settings |= {"file_mode": "0600", "directory_mode": "0700"}
    return settings


def draw_lacks(rng: Random) -> frozenset[str]:
    """Return what the file system cannot do; most can do everything."""
    if rng.random() < 0.8:
        return frozenset()
    return frozenset(ability for ability in ABILITIES if rng.random() < 0.4)


def changes_of_settings(rng: Random) -> dict[str, Any]:
    """Return settings that may change from one life of a server to the next, without a promise that depends on them."""
    return {
        "date_folders": rng.random() < 0.3,
        "shutdown_grace": rng.choice((5.0, 5.0, 2.0)),
        "lock_timeout": rng.choice((3.0, 3.0, 1.0)),
    }
