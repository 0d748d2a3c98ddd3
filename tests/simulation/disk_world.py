"""The world whose bytes and records are on one disk."""

from __future__ import annotations

from tests.simulation.profiles import DISK_PROFILES
from tests.simulation.world import World


class DiskWorld(World):
    """One run with files and SQLite."""

    profiles = DISK_PROFILES
