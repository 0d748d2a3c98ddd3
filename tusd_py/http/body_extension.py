"""The ASGI scope extension by which a server tells more about the body of a request."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Receive, Scope

from tusd_py.core.buffers import Buffer
from tusd_py.transfer.budget import LendsBuffers
from tusd_py.transfer.socket_turn import SocketTurn

BODY_EXTENSION = "tusd_py.request_body"  # key of the extension, a `BodyExtension`


class BodyExtension(Protocol):
    """ASGI scope extension by which a server tells more about a request body than ASGI messages can."""

    last_arrival: float  # time.monotonic() when the last bytes arrived
    trailers: list[tuple[bytes, bytes]]  # header fields after the body; complete once the body has ended

    @property
    def whole(self) -> Buffer | None:
        """All bytes of the body, if all of them are in memory; None otherwise. Empty after `read_buffered`."""

    @property
    def reader_timed_out(self) -> bool:
        """Whether the server closed the connection because the client read the response too slowly."""

    def read_buffered(self) -> Buffer:
        """Take the bytes that have arrived, without waiting."""

    def close(self) -> None:
        """Drop the rest of the body: the application reads no more of it."""

    def use_buffer_pool(self, pool: LendsBuffers) -> None:
        """Receive into buffers of `pool` from now on; ASGI messages then hold whole buffers, as memoryviews."""

    def lend_socket(self, most: int, waiting: int) -> SocketTurn | None:
        """Return a turn of a thread with the socket.

        None if the server has bytes itself, or less than `waiting` bytes have come in advance.
        """

    def take_back_socket(self, turn: SocketTurn) -> None:
        """Receive the bytes after those of the turn."""

    def limit_send_buffer(self) -> None:
        """Hold little of the response for a client that does not read it; the connection ends with the response."""

    def reset_connection(self) -> None:
        """Close the connection at once, without what the client has not taken."""


class ExtensionBehindMiddleware:
    """The body extension behind a middleware that replaces `receive`.

    The middleware may hold bytes that the server has handed over. The server therefore cannot be asked for the bytes
    that follow them, and `read_buffered` returns none.
    """

    def __init__(self, extension: BodyExtension) -> None:
        self._extension = extension
        self.last_arrival = 0.0  # unknown: the middleware may hold the bytes back
        self.trailers = extension.trailers

    @property
    def whole(self) -> Buffer | None:
        return None

    @property
    def reader_timed_out(self) -> bool:
        return self._extension.reader_timed_out

    def read_buffered(self) -> Buffer:
        return b""

    def close(self) -> None:
        self._extension.close()

    def use_buffer_pool(self, pool: LendsBuffers) -> None: ...

    def lend_socket(self, most: int, waiting: int) -> SocketTurn | None:
        return None

    def take_back_socket(self, turn: SocketTurn) -> None: ...

    def limit_send_buffer(self) -> None:
        self._extension.limit_send_buffer()

    def reset_connection(self) -> None:
        self._extension.reset_connection()


def body_extension_of(scope: Scope, receive: Receive) -> BodyExtension | None:
    """Return the server's extension for the body that `receive` delivers; None under a server that has none."""
    extension: BodyExtension | None = scope.get("extensions", {}).get(BODY_EXTENSION)
    if extension is None or getattr(receive, "__self__", None) is extension:
        return extension
    return ExtensionBehindMiddleware(extension)
