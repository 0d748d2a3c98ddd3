"""Several server processes on one port: balance, supervision, rolling replacement, metrics of all."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import scaled, wait_until
from tusd_py.uvicorn_server.process import reserve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "uploads", workers=4) as process:
        yield process


def worker_pids(server: ServerProcess) -> set[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return {pid for pid in map(int, children) if "spawn_main" in command_line(pid)}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""


def socket_count(pid: int) -> int:
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return count


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == errno.ECONNREFUSED


def request(server: ServerProcess, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.origin).netloc, timeout=scaled(10))
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()


def metric(server: ServerProcess, name: str) -> float:
    status, text = request(server, "GET", "/metrics")
    assert status == 200, text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_long_connections_are_spread_over_the_processes(server: ServerProcess) -> None:
    pids = worker_pids(server)
    assert len(pids) == 4
    before = {pid: socket_count(pid) for pid in pids}
    address = urlsplit(server.origin)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=scaled(10)))
        wait_until(lambda: sum(socket_count(pid) - before[pid] for pid in pids) == 60)
        shares = [socket_count(pid) - before[pid] for pid in pids]
    # The kernel hashes: 15 each on average. Less than 2 or more than 36 for one has a chance of one in a million.
    assert min(shares) >= 2, shares
    assert max(shares) <= 36, shares


def test_metrics_are_those_of_all_processes(server: ServerProcess) -> None:
    for _ in range(40):
        assert request(server, "POST", "/files", {**TUS, "Upload-Length": "1"})[0] == 201
    wait_until(lambda: metric(server, 'tusd_requests_total{method="POST"}') == 40)
    assert metric(server, "tusd_uploads_created") == 40


def test_processes_count_creations_together(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", workers=2, rate_create="20/h") as server:
        statuses = [request(server, "POST", "/files", {**TUS, "Upload-Length": "1"})[0] for _ in range(60)]
        assert statuses == [201] * 20 + [429] * 40
        before = worker_pids(server)
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: len(worker_pids(server)) == 2 and worker_pids(server).isdisjoint(before), seconds=60)
        assert request(server, "POST", "/files", {**TUS, "Upload-Length": "1"})[0] == 429


def test_processes_keep_to_one_rate_of_bytes(tmp_path: Path) -> None:
    """Uploads that are spread over all processes take as long as in one process."""
    rate = 1 << 20
    body = bytes(rate // 4)
    with ServerProcess(tmp_path / "uploads", workers=2, rate_bytes=rate) as server:
        headers = {**TUS, "Upload-Length": str(len(body)), "Content-Type": "application/offset+octet-stream"}
        address = urlsplit(server.origin).netloc

        def upload(_: int) -> int:
            connection = http.client.HTTPConnection(address, timeout=scaled(60))
            with contextlib.closing(connection):
                connection.request("POST", "/files", body, headers)
                return connection.getresponse().status

        started = time.monotonic()
        with ThreadPoolExecutor(32) as clients:
            assert list(clients.map(upload, range(32))) == [201] * 32
        # Eight seconds of bytes, of which the first second and the second half of each upload cause no wait.
        assert time.monotonic() - started > 2.5


def test_a_process_that_dies_is_started_again(server: ServerProcess) -> None:
    for _ in range(20):
        assert request(server, "POST", "/files", {**TUS, "Upload-Length": "1"})[0] == 201
    wait_until(lambda: metric(server, "tusd_uploads_created") == 20)  # not only its process knows them
    victim, *others = worker_pids(server)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(worker_pids(server) - {victim}) == 4)
    assert set(others) < worker_pids(server)
    for _ in range(20):
        assert request(server, "POST", "/files", {**TUS, "Upload-Length": "1"})[0] == 201
    wait_until(lambda: metric(server, "tusd_uploads_created") == 40)  # a dead process's counters stay
    assert any("died" in line for line in server.log)


def test_nobody_else_gets_the_port_while_processes_that_died_are_started_again(server: ServerProcess) -> None:
    address = ("127.0.0.1", server.port)
    os.kill(server.pid, signal.SIGSTOP)  # so that it starts none meanwhile
    try:
        for pid in worker_pids(server):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: refuses(address))
        with pytest.raises(OSError, match="in use"):
            reserve(address).close()
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.long
def test_hangup_replaces_every_process_while_uploads_go_on(server: ServerProcess) -> None:
    before = worker_pids(server)
    os.kill(server.pid, signal.SIGHUP)
    while not worker_pids(server).isdisjoint(before) or len(worker_pids(server)) != 4:
        # A connection in the backlog of a closing socket is reset; the next attempt reaches another process.
        with contextlib.suppress(ConnectionError):
            assert request(server, "POST", "/files", {**TUS, "Upload-Length": "1"})[0] == 201
        time.sleep(0.01)  # leaves the processors to those that start
    assert server.process.poll() is None


def test_the_processes_end_with_their_supervisor(server: ServerProcess) -> None:
    pids = worker_pids(server)
    server.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}/fd").exists() and socket_count_or_zero(pid) for pid in pids))


def socket_count_or_zero(pid: int) -> int:
    try:
        return socket_count(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(server: ServerProcess, number: signal.Signals) -> None:
    pids = worker_pids(server)
    server.process.send_signal(number)
    assert server.wait(scaled(20)) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
