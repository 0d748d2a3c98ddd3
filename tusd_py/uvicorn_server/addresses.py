"""The two addresses of a connection."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.utils import get_local_addr, get_remote_addr


def peer_address(transport: asyncio.Transport) -> tuple[str, int] | None:
    """The client's host and port; None where there are none, as on a Unix socket."""
    return _host_and_port(transport.get_extra_info("peername")) or get_remote_addr(transport)


def local_address(transport: asyncio.Transport) -> tuple[str, int | None] | None:
    """The host and port that the client has connected to; a path without a port for a Unix socket."""
    return _host_and_port(transport.get_extra_info("sockname")) or get_local_addr(transport)


def _host_and_port(name: object) -> tuple[str, int] | None:
    """The address that the transport knows itself.

    uvicorn asks a socket object, which uvloop makes for every question.
    """
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
