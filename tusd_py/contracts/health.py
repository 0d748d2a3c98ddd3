"""The contract of a component that can report a problem although it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class ReportsHealth(Protocol):
    """A state store or storage that reports problems to `/readyz` and the log.

    Example::

        async def check(self) -> None:
            if self._last_sync_failed:
                raise StorageUnavailable("the last sync of the records has failed")
    """

    async def check(self) -> None:
        """Return if the component has no problem.

        Raises:
            StorageUnavailable: with one sentence for the operator, by a storage.
            StateUnavailable: with one sentence for the operator, by a state store.
        """

    @property
    def limitations(self) -> Sequence[str]:
        """One sentence for each ability that this file system or server lacks, as found out by `open`."""
