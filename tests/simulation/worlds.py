"""The kinds of worlds, by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import World


DISK = "disk"
WORLDS = {
    DISK: "tests.simulation.disk_world:DiskWorld",
    "s3": "tests.simulation.s3_world:S3World",
    "s3-redis": "tests.simulation.s3_hosts_world:S3HostsWorld",
    "redis": "tests.simulation.hosts_world:HostsWorld",
    "memory": "tests.simulation.memory_world:MemoryWorld",
}


def world_of(kind: str) -> type[World]:
    """Return the class of a kind of world; only its modules are imported."""
    module, _, name = WORLDS[kind].partition(":")
    found: type[World] = getattr(import_module(module), name)
    return found
