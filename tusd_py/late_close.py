"""The closing of services whose storage hung when they were to be closed, or whose event loop ended before."""

from __future__ import annotations

import asyncio
import contextlib

from tusd_py.core.errors import StorageUnavailable
from tusd_py.lifecycle import close_service
from tusd_py.uploads.service import UploadService

RETRY_INTERVAL = 0.5  # seconds between two attempts to close a hanging storage
PATIENCE = 1.0  # seconds that a start waits for each service


class LateClose:
    """The services of one server that are still to be closed."""

    def __init__(self) -> None:
        self._of_closed_loops: list[UploadService] = []
        self._closing: asyncio.Task[None] | None = None  # of the service that hung at the last shutdown

    def add_of_closed_loop(self, service: UploadService) -> None:
        """Keep the service of an event loop that is closed, with its tasks, until the next start."""
        self._of_closed_loops.append(service)
        self._closing = None

    def begin(self, service: UploadService) -> None:
        """Close a service whose storage hangs as soon as its work has ended."""
        self._closing = asyncio.create_task(_close(service))

    async def finish(self) -> None:
        """Close what is left; raises `StorageUnavailable` while one of the services still has work to end."""
        if self._closing is not None:
            await asyncio.wait((self._closing,), timeout=PATIENCE)
            if not self._closing.done():
                raise StorageUnavailable("the storage has not ended its work since the last shutdown")
            self._closing = None
        while self._of_closed_loops:
            closed = True
            with contextlib.suppress(Exception):  # its tasks ended with their loop; only threads and files are left
                closed = await close_service(self._of_closed_loops[-1], PATIENCE)
            if not closed:
                raise StorageUnavailable("the storage has not ended its work for an earlier event loop")
            self._of_closed_loops.pop()


async def _close(service: UploadService) -> None:
    closed = False
    while not closed:
        await asyncio.sleep(RETRY_INTERVAL)
        closed = await close_service(service, RETRY_INTERVAL)
