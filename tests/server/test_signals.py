"""Signals of an operator and of a terminal, and what is left of processes that have ended."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.test_workers import metric, request, worker_pids
from tests.support.harness import COMMAND, ROOT, ServerProcess
from tests.support.timing import scaled, wait_until
from tests.support.wire.messages import OFFSET_STREAM, TUS
from tests.support.wire.promised import ask, create, head
from tusd_py.asyncutil import shared_rates
from tusd_py.uvicorn_server.supervisor import METRICS_VARIABLE, SHARED_MEMORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GRACE = 3.0  # seconds
START = 5.0  # seconds that a process may take to notice a signal on a busy machine
POSTS = 'tusd_request_duration_seconds_count{method="POST"'  # of any status


def metric_files(folder: Path) -> list[str]:
    """Return the names of the files of metrics, without their ends."""
    return [path.stem for path in folder.glob("*.db")]


def variable(pid: int, name: str) -> str:
    """Return a variable of the environment with which a process was started."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(entry for entry in variables if entry.startswith(name.encode() + b"=")).decode().partition("=")[2]


def has_counted(server: ServerProcess, posts: int) -> bool:
    """Return whether the metrics know of so many POSTs."""
    return metric(server, POSTS) == posts


@contextlib.contextmanager
def half_sent(server: ServerProcess, location: str) -> Iterator[None]:
    """A PATCH of which 5 of 10 bytes have arrived, and no more come."""
    address = urlsplit(location)
    lines = [f"PATCH {address.path} HTTP/1.1", "Host: x", "Tus-Resumable: 1.0.0", "Upload-Offset: 0"]
    lines += [f"Content-Type: {OFFSET_STREAM}", "Content-Length: 10", "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"hello")
        wait_until(lambda: head(location)["Upload-Offset"] == "5")
        yield


def test_hangup_does_not_end_a_server_with_one_process(server: ServerProcess) -> None:
    location = create(server.url, 10)
    with half_sent(server, location):
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("nothing to reload" in line for line in server.log))
        assert head(location)["Upload-Offset"] == "5"
    assert server.process.poll() is None
    assert server.terminate() in (0, -signal.SIGTERM)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_terminal_that_closes_ends_the_server_as_sigterm_does(tmp_path: Path, workers: int) -> None:
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    arguments = ["serve", "--port", "0", "--upload-dir", str(tmp_path / "uploads"), "--workers", str(workers)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", LEAD_A_SESSION, os.ttyname(theirs), *COMMAND, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "listening on" in log.read_text(), seconds=60)
        os.close(theirs)
        os.close(ours)
        assert process.wait(scaled(60)) in (0, -signal.SIGTERM)
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# The first terminal that a session leader opens is its controlling terminal.
LEAD_A_SESSION = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_ends_all_processes_at_once_while_they_are_replaced(
    tmp_path: Path, number: signal.Signals
) -> None:
    with ServerProcess(tmp_path / "uploads", workers=4, shutdown_grace=f"{GRACE}s") as server:
        before = worker_pids(server)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(worker_pids(server) - before) > 0)
        began = time.monotonic()
        server.process.send_signal(number)
        assert server.wait(scaled(60)) == 0
        assert time.monotonic() - began < GRACE + scaled(START)
        assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    assert not [line for line in server.log if "did not start" in line or "Traceback" in line]


def test_a_signal_to_stop_does_not_wait_for_a_process_that_is_drained(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", workers=2, shutdown_grace="30s") as server:
        before = worker_pids(server)
        victim = min(before)
        os.kill(victim, signal.SIGSTOP)  # it cannot even drain
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(worker_pids(server) - before) > 0)
        server.process.send_signal(signal.SIGTERM)
        os.kill(victim, signal.SIGCONT)
        began = time.monotonic()
        assert server.wait(scaled(60)) == 0
        assert time.monotonic() - began < 30


@pytest.mark.long
def test_a_hangup_while_processes_are_replaced_replaces_them_again(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", workers=2) as server:
        before = worker_pids(server)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(worker_pids(server) - before) > 0)
        first = (worker_pids(server) - before).pop()
        server.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: len(worker_pids(server)) == 2 and worker_pids(server).isdisjoint({first, *before}), seconds=60
        )


@pytest.mark.long
def test_hangups_leave_no_files_of_metrics_and_no_counter_goes_back(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", workers=2) as server:
        folder = Path(variable(worker_pids(server).pop(), METRICS_VARIABLE))
        assert metric_files(folder)
        created = 0
        for _ in range(3):
            for _ in range(5):
                assert ask("POST", server.url, TUS | {"Upload-Length": "1"}).status == 201
            created += 5
            wait_until(partial(has_counted, server, created))  # not only the processes that answered know them
            before = worker_pids(server)
            server.process.send_signal(signal.SIGHUP)
            while not worker_pids(server).isdisjoint(before) or len(worker_pids(server)) != 2:
                with contextlib.suppress(ConnectionError):
                    assert metric(server, "tusd_uploads_created") == created
                    assert metric(server, POSTS) == created
                time.sleep(0.01)  # leaves the processors to those that start
        wait_until(lambda: metric(server, "tusd_uploads_created") == created)
        assert metric(server, "tusd_connections_open") <= 2
        living = {str(pid) for pid in worker_pids(server)} | {"ended"}
        wait_until(lambda: {name.rpartition("_")[2] for name in metric_files(folder)} <= living)
        assert request(server, "GET", "/readyz")[0] == 200
    assert not folder.exists()


def test_files_that_processes_map_need_no_space_of_a_disk(tmp_path: Path) -> None:
    has_memory = os.access(SHARED_MEMORY, os.W_OK | os.X_OK)
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    with ServerProcess(tmp_path / "uploads", env=environment, workers=2, rate_create="100/s") as server:
        pid = worker_pids(server).pop()
        folder = Path(variable(pid, METRICS_VARIABLE))
        assert Path(variable(pid, shared_rates.VARIABLE)).parent == folder
        assert folder.parent == (Path(SHARED_MEMORY) if has_memory else tmp_path / "tmp")
        before = worker_pids(server)
        shutil.rmtree(folder)  # as logind does when its user logs out
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(worker_pids(server)) == 2 and worker_pids(server).isdisjoint(before), seconds=60)
        assert ask("POST", server.url, TUS | {"Upload-Length": "1"}).status == 201
    assert not folder.exists()
