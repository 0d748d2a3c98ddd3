"""The choice of when stored bytes are synced to the device."""

from __future__ import annotations

from enum import StrEnum


class Durability(StrEnum):
    """The moments at which bytes are synced to the device: the setting `durability` of docs/configuration.md.

    Example: `TusServer(durability="always")`, or `settings.durability == Durability.ALWAYS`.
    """

    COMPLETE = "complete"
    ALWAYS = "always"
    NEVER = "never"
