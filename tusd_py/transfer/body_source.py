"""The bytes of one request as they arrive, seen from the domain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import UploadError


class BodySource(Protocol):
    """Where an append gets its bytes from."""

    @property
    def declared_size(self) -> int | None:
        """Number of bytes that the client announced; None if it announced none."""

    @property
    def arrived(self) -> Buffer | None:
        """All bytes, if they are here and none was read: `read` then waits for nothing, and needs no `feed`."""

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        """Take in bytes for as long as `reader`, a task that calls `read`, is not done.

        Awaited by the request, whose own the connection is. If the request is cancelled the source is interrupted, and
        the reader goes on with what has arrived.
        """

    async def read(self) -> Buffer | None:
        """The next bytes; perhaps none after `wake`; None at the end.

        Raises `ClientDisconnected`, `ReadTimeout` or what `interrupt` was given, once all that had arrived was read.
        """

    def release(self, buffers: Sequence[Buffer]) -> None:
        """Nobody looks at these buffers, which `read` returned, any more."""

    def silent_for(self) -> float:
        """Seconds since the last bytes arrived, while somebody waits for them."""

    def interrupt(self, reason: UploadError) -> None:
        """End the reading, now or when `read` is called next."""

    def wake(self) -> None:
        """Make `read` return soon, with nothing if nothing arrived."""
