"""Routes about the server as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from tusd_py.admin.app import Answer, Route
from tusd_py.admin.documents import totals_document
from tusd_py.admin.requests import AdminRequest
from tusd_py.contracts.storage import MeasuresFreeSpace
from tusd_py.core.errors import UploadError
from tusd_py.events.types import UploadProgressed
from tusd_py.server import TusServer

WINDOW = 60  # seconds
FREE_SPACE_TIMEOUT = 1.0  # seconds to wait for a storage that may hang


class RateMeter:
    """The mean rate of something over the last minute."""

    def __init__(self) -> None:
        self._counts = [0] * WINDOW  # by second
        self._second = 0  # of the last count

    def add(self, now: float, count: int) -> None:
        """Count at a time in seconds."""
        self._advance(now)
        self._counts[self._second % WINDOW] += count

    def rate(self, now: float) -> float:
        """Return the rate per second at a time in seconds."""
        self._advance(now)
        return sum(self._counts) / WINDOW

    def _advance(self, now: float) -> None:
        """Forget what was counted more than a minute ago."""
        second = int(now)
        for passed in range(self._second + 1, min(second, self._second + WINDOW) + 1):
            self._counts[passed % WINDOW] = 0
        self._second = max(second, self._second)


class OverviewRoutes:
    """The routes about one server."""

    def __init__(self, server: TusServer) -> None:
        self._server = server
        self._received = RateMeter()
        server.events.observe(UploadProgressed, self._progressed)
        self._measuring: asyncio.Future[int] | None = None  # of the free space

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (Route("GET", "stats", "Count uploads and bytes, by status and by owner.", self.stats, (), "Stats"),)

    def _progressed(self, event: UploadProgressed) -> None:
        self._received.add(time.monotonic(), event.received)

    async def stats(self, request: AdminRequest) -> Answer:
        """Return the records in numbers, the free space of the storage, and the bytes a second of this process."""
        counted = await self._server.queries.totals()
        document = totals_document(counted.totals, counted.as_of)
        rates = {"received": round(self._received.rate(time.monotonic()))}
        return Answer({**document, "rates": rates, "free_space": await self._free_space()})

    async def _free_space(self) -> int | None:
        storage = self._server.service.storage
        if not isinstance(storage, MeasuresFreeSpace):
            return None
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.ensure_future(asyncio.to_thread(storage.free_space))
        with contextlib.suppress(UploadError, OSError, TimeoutError):
            async with asyncio.timeout(FREE_SPACE_TIMEOUT):
                return await asyncio.shield(self._measuring)
        return None
