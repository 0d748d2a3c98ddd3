"""The contract of a request body, as the uploads see it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import UploadError
from tusd_py.transfer.socket_turn import SocketTurn


class BodySource(Protocol):
    """Source of the bytes of one append."""

    @property
    def declared_size(self) -> int | None:
        """Number of bytes that the client announced; None if it announced none."""

    @property
    def arrived(self) -> Buffer | None:
        """The whole body if it is in memory and unread, otherwise None. `read` then neither waits nor needs `feed`."""

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        """Receive bytes for as long as `reader`, a task that calls `read`, is not done.

        Awaited by the task of the request, which owns the connection. If that task is cancelled the source is
        interrupted, and the reader continues with the bytes that have arrived.
        """

    async def read(self) -> Buffer | None:
        """Return the next bytes; empty ones after `wake` if none arrived; None at the end.

        Raises `ClientDisconnected`, `ReadTimeout` or the reason given to `interrupt`, once all bytes that had arrived
        were read.
        """

    def release(self, buffers: Sequence[Buffer]) -> None:
        """Release buffers that `read` returned; the caller no longer reads them."""

    def silent_for(self) -> float:
        """Return the seconds since the last bytes arrived; 0 while nobody waits for bytes."""

    def interrupt(self, reason: UploadError) -> None:
        """Make `read` raise `reason`, now or when it is called next."""

    def wake(self) -> None:
        """Make `read` return soon, with empty bytes if none arrived."""


@runtime_checkable
class LendsSocket(Protocol):
    """A `BodySource` whose bytes a thread may take from the connection. Between turns, `read` is called as ever."""

    def lend(self, most: int) -> SocketTurn | None:
        """Return a turn of at most `most` bytes, which `wake` and `interrupt` end; None if `read` has to be called."""

    def take_back(self, turn: SocketTurn) -> None:
        """Take the connection back after a turn, of which the thread has let go unless the event loop ends."""
