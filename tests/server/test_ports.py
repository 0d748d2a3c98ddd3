"""The port of a server, which two servers want at the same moment."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import token_file
from tests.admin.test_metrics_place import metrics_port_of
from tests.admin.test_port import admin_port_of
from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import serving
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.requests import complete, create, head, request
from tusd_py.uvicorn_server.process import allow_successor, bind, reserve

LOCAL = "127.0.0.1"
LINK_SCOPE = "20"  # in the table of the addresses of Linux
UNUSABLE = 0x48  # flags there: not yet known to be the only one on its link, or known not to be
LARGE = 32 << 20  # bytes, more than the kernel holds for a client that does not read


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """An address that another server has bound to, without listening yet."""
    with bind((LOCAL, 0)) as other:
        yield other.getsockname()[:2]


def test_address_of_a_server_that_has_not_begun_to_listen_is_taken() -> None:
    with reserve((LOCAL, 0)) as reserved:
        address = reserved.getsockname()[:2]
        with pytest.raises(OSError, match="in use"):
            reserve(address)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_start_on_a_port_that_another_server_is_about_to_listen_on_is_refused(tmp_path: Path, workers: str) -> None:
    with reserve((LOCAL, 0)) as reserved:
        port = str(reserved.getsockname()[1])
        refused = execute("serve", "--upload-dir", str(tmp_path / "it"), "--port", port, "--workers", workers)
        assert_refused_in_one_line(refused, 1, "--port", port, "in use")


def test_server_that_has_bound_its_address_before_cannot_listen_any_more(address: tuple[str, int]) -> None:
    with bind(address) as early, reserve(address), pytest.raises(OSError, match="in use"):
        early.listen(1)


def test_one_of_many_that_start_at_the_same_moment_gets_the_address(address: tuple[str, int]) -> None:
    together, kept, refused = threading.Barrier(8), list[socket.socket](), list[int | None]()

    def start() -> None:
        together.wait()
        try:
            kept.append(reserve(address))
        except OSError as error:
            refused.append(error.errno)

    for _ in range(20):
        threads = [threading.Thread(target=start) for _ in range(together.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for socket_ in kept:
            socket_.close()
        assert (len(kept), refused) == (1, [errno.EADDRINUSE] * (together.parties - 1))
        kept.clear()
        refused.clear()


def test_reserved_address_answers_nobody_before_the_server_listens() -> None:
    with reserve((LOCAL, 0)) as reserved, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reserved.getsockname()[:2])


def test_listeners_of_the_server_are_bound_beside_the_reserved_address() -> None:
    with reserve((LOCAL, 0)) as reserved:
        address = reserved.getsockname()[:2]
        with bind(address, shared=True) as one, bind(address, shared=True) as other:
            one.listen(1)
            other.listen(1)
            with socket.create_connection(address):
                pass


def link_local_hosts() -> list[str]:
    """Return the addresses of this machine that are valid on one link only, with the names of the links."""
    table = Path("/proc/net/if_inet6")
    rows = [row.split() for row in table.read_text().splitlines()] if table.exists() else []
    usable = [row for row in rows if row[3] == LINK_SCOPE and not int(row[4], 16) & UNUSABLE]
    return [f"{ip_address(bytes.fromhex(row[0]))}%{row[5]}" for row in usable]


@pytest.mark.parametrize("workers", [1, 2])
def test_server_listens_on_an_address_of_one_link(tmp_path: Path, workers: int) -> None:
    for host in link_local_hosts()[:1]:
        with serving(tmp_path, host=host, workers=workers) as server, socket.create_connection((host, server.port)):
            pass


def test_address_is_free_for_a_successor_once_nobody_listens() -> None:
    with reserve((LOCAL, 0)) as reserved:
        address = reserved.getsockname()[:2]
        with bind(address, shared=True) as listener:
            listener.listen(1)
            allow_successor(reserved)
            with pytest.raises(OSError, match="in use"):
                reserve(address)
        with reserve(address) as successor, bind(address, shared=True) as listener:
            listener.listen(1)
            allow_successor(successor)


@pytest.mark.parametrize("workers", [1, 2])
def test_server_starts_on_the_ports_and_the_socket_of_one_that_drains(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "metrics"
    options: dict[str, Any] = {"workers": workers, "admin_token_file": token_file(tmp_path), "metrics_socket": path}
    with serving(tmp_path / "old", admin_port=0, metrics_port=0, shutdown_grace="1h", **options) as old:
        ports = {"port": old.port, "admin_port": admin_port_of(old), "metrics_port": metrics_port_of(old)}
        with Connection(old.port) as connection:
            upload = create(old.port, LARGE)
            complete(old.port, upload, bytes(LARGE))
            connection.send_head("GET", upload)
            assert connection.socket.recv(1) == b"H"  # and no more, so that the download lasts
            old.process.terminate()
            places: list[int | Path] = [*ports.values(), path]
            for place in places:
                wait_until(partial(refuses, place), f"nobody listens on {place} any more")
            with serving(tmp_path / "new", **ports, **options) as new:
                assert old.process.poll() is None
                assert head(new.port, create(new.port, 5)).status == 200
                connection.close()
                old.wait(TIMEOUT)
                assert request(ports["admin_port"], "GET", "/admin/api/stats").status == 401
                assert request(ports["metrics_port"], "GET", "/metrics").status == 200
                assert not refuses(path)


def refuses(place: int | Path) -> bool:
    """Return whether nobody listens on a port, or on a socket that is there."""
    with socket.socket(socket.AF_INET if isinstance(place, int) else socket.AF_UNIX) as client:
        try:
            client.connect((LOCAL, place) if isinstance(place, int) else str(place))
        except ConnectionRefusedError:
            return True
    return False


def test_server_starts_again_on_the_port_of_connections_that_have_not_ended(tmp_path: Path) -> None:
    with serving(tmp_path) as server, socket.create_connection((LOCAL, server.port)):
        path = create(server.port, 5)
        server.restart()
        assert head(server.port, path).status == 200
