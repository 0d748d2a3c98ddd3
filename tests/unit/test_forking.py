"""Servers that are forked from a process which has imported everything are like those that are started afresh."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.preload import PreloadedFaults
from tests.support.forking import ForkedProcess
from tests.support.harness import COMMAND, ROOT, ServerProcess
from tests.support.timing import wait_until
from tests.support.wire.requests import create, patch, request

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

# Starts a server, says which process it is, and waits to be killed.
STARTER = """
import sys
from pathlib import Path
from tests.support.harness import ServerProcess
server = ServerProcess(Path(sys.argv[1])).start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def fresh(tmp_path: Path) -> ServerProcess:
    """A server that is not forked; to be started by the test."""
    return ServerProcess(tmp_path / "fresh", env={"PYTHON_FRESH": "1"})


@pytest.fixture
def forked(tmp_path: Path) -> ServerProcess:
    """A server that is forked; to be started by the test."""
    return ServerProcess(tmp_path / "forked")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def open_files(pid: int, uploads: Path) -> Counter[str]:
    """Count of each open file besides the standard streams, without the numbers of sockets and pipes."""
    found: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if descriptor.name not in ("0", "1", "2"):
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                found[re.sub(r"\d+", "N", os.readlink(descriptor).replace(str(uploads), ""))] += 1
    return found


def test_a_fork_has_the_signals_files_and_limits_of_a_process_of_its_own(
    forked: ServerProcess, fresh: ServerProcess
) -> None:
    with forked, fresh:
        assert isinstance(forked.process, ForkedProcess)
        assert isinstance(fresh.process, subprocess.Popen)
        for field in ("SigBlk", "SigIgn", "SigCgt", "Umask", "CapEff", "NoNewPrivs"):
            assert status(forked.pid)[field] == status(fresh.pid)[field], field
        wait_until(
            lambda: open_files(forked.pid, forked.upload_dir) == open_files(fresh.pid, fresh.upload_dir),
            "both have the same files open",
        )
        for name in ("limits", "oom_score_adj", "cgroup"):
            assert Path(f"/proc/{forked.pid}/{name}").read_text() == Path(f"/proc/{fresh.pid}/{name}").read_text()
        assert os.readlink(f"/proc/{forked.pid}/cwd") == os.readlink(f"/proc/{fresh.pid}/cwd")
        assert os.getpgid(forked.pid) == os.getpgid(fresh.pid)
        assert os.getsid(forked.pid) == os.getsid(fresh.pid)


def test_forks_have_nothing_of_each_other(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path / "first", env={"TUSD_PY_MAX_SIZE": "5"})
    second = ServerProcess(tmp_path / "second")
    with first, second:
        assert request(first.port, "OPTIONS", "/files").headers["tus-max-size"] == "5"
        assert "tus-max-size" not in request(second.port, "OPTIONS", "/files").headers
        assert len({create(server.port, 5) for server in (first, second) for _ in range(5)}) == 10
        assert b"tusd_uploads_created 5" in request(second.port, "GET", "/metrics").body
        assert not any("first" in name for name in open_files(second.pid, second.upload_dir))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_end_of_a_fork_is_that_of_a_process_of_its_own(
    forked: ServerProcess, fresh: ServerProcess, number: signal.Signals
) -> None:
    with forked, fresh:
        for server in (forked, fresh):
            os.kill(server.pid, number)
        assert forked.wait(60) == fresh.wait(60)
        assert [log_of(line) for line in forked.log] == [log_of(line) for line in fresh.log]


def log_of(line: str) -> str:
    return re.sub(r"\d+", "N", line)


def test_a_fork_that_ends_by_itself_tells_its_exit_code_and_why(tmp_path: Path) -> None:
    (tmp_path / "uploads").touch()
    server = ServerProcess(tmp_path / "uploads")
    with pytest.raises(RuntimeError, match=r"the server did not start:\n.*: Not a directory"):
        server.start()
    assert isinstance(server.process, ForkedProcess)
    assert server.process.returncode == 1


def test_a_fork_whose_end_was_not_read_keeps_its_process_number(forked: ServerProcess) -> None:
    with forked:
        os.kill(forked.pid, signal.SIGKILL)
        wait_until(lambda: status(forked.pid)["State"].startswith("Z"), "the server has ended")
        os.kill(forked.pid, signal.SIGKILL)
        assert forked.process.wait(60) == -signal.SIGKILL
        wait_until(lambda: not Path(f"/proc/{forked.pid}").exists(), "the process number is free")
        assert forked.process.poll() == -signal.SIGKILL
        forked.process.terminate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_forks_end_with_the_tests(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "uploads")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        parent = int(status(pid)["PPid"])
        starter.send_signal(number)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the server has ended")
    wait_until(lambda: not Path(f"/proc/{parent}").exists(), "the forking process has ended")


def test_a_library_preloaded_into_forks_makes_calls_fail_in_the_one_it_is_meant_for(
    tmp_path: Path, preload_library: Path
) -> None:
    broken, whole = (PreloadedFaults(tmp_path / "faults" / name, preload_library) for name in ("broken", "whole"))
    first, second = (ServerProcess(tmp_path / "uploads" / str(id(one)), env=one.env) for one in (broken, whole))
    data = bytes(200_000)
    with first, second:
        broken.fail("pwritev", f"{first.upload_dir}/[!.]*", errno.ENOSPC)
        for server, status_code in ((first, 507), (second, 204)):
            assert isinstance(server.process, ForkedProcess)
            assert str(preload_library) in Path(f"/proc/{server.pid}/maps").read_text()
            assert patch(server.port, create(server.port, len(data)), 0, data).status == status_code


@pytest.mark.parametrize("variable", ["LD_LIBRARY_PATH", "PYTHONOPTIMIZE", "MALLOC_ARENA_MAX"])
def test_variables_that_a_fork_comes_too_late_for_start_an_interpreter(tmp_path: Path, variable: str) -> None:
    with ServerProcess(tmp_path / "uploads", env={variable: ""}) as server:
        assert isinstance(server.process, subprocess.Popen)


@pytest.mark.fresh_interpreter
def test_a_test_can_have_an_interpreter_for_its_servers(server: ServerProcess) -> None:
    assert isinstance(server.process, subprocess.Popen)
    assert "\0".join(COMMAND) in Path(f"/proc/{server.pid}/cmdline").read_text()
