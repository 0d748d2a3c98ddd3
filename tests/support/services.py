"""Upload services without HTTP, and the bodies of requests to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from tusd_py.composition import NO_COMPONENTS, GivenComponents, build_service
from tusd_py.contracts.storage import Buffer
from tusd_py.core.clock import Clock
from tusd_py.core.errors import ClientDisconnected, UploadError
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import close_service, open_service
from tusd_py.settings import from_arguments
from tusd_py.uploads.service import UploadService


@contextlib.asynccontextmanager
async def running_service(
    settings: Mapping[str, Any],
    *,
    clock: Clock | None = None,
    given: GivenComponents = NO_COMPONENTS,
) -> AsyncIterator[UploadService]:
    """Open a service, as one process would, and close it at the end of the context."""
    chosen = from_arguments(settings)
    service = build_service(chosen, EventBus(), clock=clock, given=given)
    await open_service(service, chosen)
    try:
        yield service
    finally:
        assert await close_service(service)


class Body:
    """The body of a request whose bytes are all there, so that it cannot be interrupted."""

    def __init__(
        self,
        data: bytes,
        *,
        arrived: bool = False,
        declared: bool = True,
        breaks_off: bool = False,
        piece_size: int | None = None,
    ) -> None:
        """Take the bytes.

        Args:
            data: the bytes.
            arrived: offer them as one buffer before the first read.
            declared: tell their number in advance.
            breaks_off: lose the connection after them.
            piece_size: number of bytes of a read; all at once without it.
        """
        self.declared_size = len(data) if declared else None
        self.arrived: Buffer | None = data if arrived else None
        size = piece_size or max(1, len(data))
        self._rest = [data[start : start + size] for start in range(0, len(data), size)][::-1]
        self._breaks_off = breaks_off

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        await asyncio.wait((reader,))

    async def read(self) -> Buffer | None:
        self.arrived = None
        if self._rest:
            return self._rest.pop()
        if self._breaks_off:
            raise ClientDisconnected
        return None

    def release(self, buffers: Sequence[Buffer]) -> None: ...

    def silent_for(self) -> float:
        return 0.0

    def interrupt(self, reason: UploadError) -> None: ...

    def wake(self) -> None: ...
