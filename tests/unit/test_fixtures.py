"""Shared servers of the tests are started again after they died, and limits of time follow the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import long_ones_first
from tests.support import timing
from tests.support.harness import ServerProcess
from tests.support.proxies import FaultyNetwork, Stream
from tests.support.s3_server import start_seaweedfs
from tests.support.wire.requests import request


def test_a_server_that_died_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        port = server.port
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        assert server in ServerProcess.running
        server.revive()
        assert server.port == port
        assert request(port, "OPTIONS", "/files").status == 200
        pid = server.pid
        server.revive()
        assert server.pid == pid
    assert server not in ServerProcess.running


def test_an_s3_server_that_died_is_started_again_with_what_it_had(tmp_path: Path) -> None:
    process, server = start_seaweedfs(tmp_path)
    try:
        process.wait_for_bucket(server)
        with closing(server.client()) as client:
            client.put_object(Bucket=server.bucket, Key="kept", Body=b"something")
        process.kill()
        process.revive(server)
        assert server.keys("kept") == ["kept"]
    finally:
        process.stop()


@pytest.mark.parametrize("rounds", range(1, 9))
async def test_a_relay_that_is_cancelled_while_it_ends_closes_the_connection(rounds: int) -> None:
    proxy = FaultyNetwork(0)
    (client, near), (server, far) = await linked_streams(), await linked_streams()
    far.close()  # the server ends the connection
    relaying = asyncio.create_task(proxy.relay(near, server))
    for _ in range(rounds):
        await asyncio.sleep(0)
    relaying.cancel()
    await asyncio.wait((relaying,))
    assert server.writer.is_closing()
    for stream in (client, near, server):
        stream.close()


@pytest.mark.parametrize("stopped_first", [False, True], ids=["accepted, then stopped", "stopped, then accepted"])
async def test_a_proxy_that_stops_closes_the_connections_whose_handlers_have_not_begun(stopped_first: bool) -> None:
    proxy = FaultyNetwork(0)
    client, accepted = await linked_streams()
    if stopped_first:
        await proxy._stop()
        proxy._accepted(accepted.reader, accepted.writer)
    else:
        proxy._accepted(accepted.reader, accepted.writer)
        await proxy._stop()
    assert accepted.writer.is_closing()
    client.close()


async def linked_streams() -> tuple[Stream, Stream]:
    """Return both ends of a connection."""
    one, other = socket.socketpair()
    return Stream(*await asyncio.open_connection(sock=one)), Stream(*await asyncio.open_connection(sock=other))


def test_limits_are_never_shorter_than_for_a_machine_three_times_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(timing.SLOWNESS, "1.00")
    assert timing.scaled(10) == 30
    monkeypatch.setenv(timing.SLOWNESS, "7.5")
    assert timing.scaled(10) == 75


def test_the_machine_is_measured_once_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(timing.SLOWNESS, raising=False)
    first = timing.slowness()
    assert 1 <= first <= timing.MAX_SLOWNESS
    assert float(os.environ[timing.SLOWNESS]) == timing.slowness() == first


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_the_share_of_every_worker_begins_with_long_tests_and_no_test_is_lost(workers: int, count: int) -> None:
    items: list[Any] = [
        SimpleNamespace(name=number, get_closest_marker=lambda name, number=number: number % 5 == 4)
        for number in range(count)
    ]
    ordered: list[Any] = [*long_ones_first(items, workers)]
    assert sorted(item.name for item in ordered) == list(range(count))
    if count == 30 and workers > 1:
        starts = {2: [0, 15], 3: [0, 10, 20], 4: [0, 7, 14, 22]}[workers]
        assert all(ordered[start].get_closest_marker("long") for start in starts)
