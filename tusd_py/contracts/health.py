"""The contract of a state store or storage that knows of its own health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class ReportsHealth(Protocol):
    """A state store or storage that can tell that it is not well although it answers."""

    async def check(self) -> None:
        """Raise `StorageUnavailable` or `StateUnavailable` with one sentence for the operator while it is not well."""

    @property
    def limitations(self) -> Sequence[str]:
        """One sentence for each thing that cannot be done on this file system or server; found out by `open`."""
