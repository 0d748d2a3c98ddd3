"""The choice of when stored bytes are synced to the device."""

from __future__ import annotations

from enum import StrEnum

BOOT = "boot"  # name of the text beside the records that tells in which boot bytes may have been left unsynced
SYNC_DISTANCE = 64 << 20  # bytes of an unfinished upload that a power cut may take, unless nothing is synced


class Durability(StrEnum):
    """The moments at which bytes are synced to the device: the setting `durability` of docs/configuration.md.

    Example: `TusServer(durability="always")`, or `settings.durability == Durability.ALWAYS`.
    """

    COMPLETE = "complete"
    ALWAYS = "always"
    NEVER = "never"


def must_sync(durability: Durability, *, deferred: bool, unsynced: int) -> bool:
    """Return whether the bytes of an unfinished upload are synced before its client is told of them.

    Args:
        durability: the setting.
        deferred: whether the length was not known at the creation: a recording has no second copy.
        unsynced: number of bytes since the last sync.
    """
    if durability is Durability.COMPLETE:
        return deferred or unsynced >= SYNC_DISTANCE
    return durability is Durability.ALWAYS
