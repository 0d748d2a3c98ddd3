"""The two addresses of a connection."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.utils import get_local_addr, get_remote_addr


def peer_address(transport: asyncio.Transport) -> tuple[str, int] | None:
    """Return the client's host and port; None if it has none, as on a Unix socket."""
    return _host_and_port(transport.get_extra_info("peername")) or get_remote_addr(transport)


def local_address(transport: asyncio.Transport) -> tuple[str, int | None] | None:
    """Return the host and port that the client connected to; for a Unix socket its path, without a port."""
    return _host_and_port(transport.get_extra_info("sockname")) or get_local_addr(transport)


def _host_and_port(name: object) -> tuple[str, int] | None:
    """Return the address that the transport has stored.

    uvicorn asks the socket object, which uvloop creates for every call.
    """
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
