"""The addresses of a connection, which uvicorn finds in another way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from tusd_py.uvicorn_server.addresses import local_address, peer_address

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@contextlib.asynccontextmanager
async def connected(listener: socket.socket, client: socket.socket) -> AsyncIterator[asyncio.Transport]:
    client.connect(listener.getsockname())
    accepted, _ = listener.accept()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, accepted)
    yield transport
    transport.close()
    await asyncio.sleep(0)  # the loop closes the socket in its next turn


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_addresses_over_ip_are_those_that_uvicorn_finds(
    new_loop: Callable[[], asyncio.AbstractEventLoop], family: socket.AddressFamily, host: str
) -> None:
    async def check() -> None:
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind((host, 0))
            listener.listen()
            async with connected(listener, client) as transport:
                assert local_address(transport) == get_local_addr(transport) == listener.getsockname()[:2]
                assert peer_address(transport) == get_remote_addr(transport) == client.getsockname()[:2]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(check())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_addresses_over_a_unix_socket_are_its_path_and_none(
    new_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")

    async def check() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(path)
            listener.listen()
            async with connected(listener, client) as transport:
                assert local_address(transport) == (path, None)
                assert peer_address(transport) is None

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(check())
