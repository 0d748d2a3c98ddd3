"""The health of a service: whether its components can be used now, and what they lack."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tusd_py.core.errors import StorageUnavailable, WrongStorage
from tusd_py.uploads.components import Components

IDENTITY_TIMEOUT = 1.5  # seconds that a check waits for the identity of the storage


class Health:
    """The checks of the components of one service."""

    def __init__(self, components: Components) -> None:
        self._state = components.state
        self._identity = components.identity
        self._reporting = components.reporting_health

    async def check(self) -> None:
        """Raise `StateUnavailable` or `StorageUnavailable` if a component cannot be used now."""
        await self._check_identity()
        await self._state.ping()
        for component in self._reporting:
            await component.check()

    @property
    def limitations(self) -> Sequence[str]:
        """One sentence for each ability that the state store and the storage lack."""
        return [sentence for component in self._reporting for sentence in component.limitations]

    async def _check_identity(self) -> None:
        """Raise `StorageUnavailable` if this is another storage; one that does not answer is no reason by itself."""
        if self._identity is None:
            return
        try:
            async with asyncio.timeout(IDENTITY_TIMEOUT):
                await self._identity.prove_identity()
        except WrongStorage as error:
            raise StorageUnavailable(error.explanation) from None
        except (StorageUnavailable, TimeoutError):
            pass
