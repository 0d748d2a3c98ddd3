"""Server processes that are forked from one that has imported everything: imports are most of the work of a start.

`python -m tests.support.forking DESCRIPTOR` is that one. That process takes requests from a socket, forks a
process for each, tells how the process ends, and ends with the process that started it. So do its forks.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

COMMAND = (sys.executable, "-W", "error", "-m", "tests.support.forking")
ROOT = Path(__file__).parents[2]
MAX_BYTES = 1 << 20  # of a request
POLL_INTERVAL = 0.01  # seconds
LOST = -signal.SIGKILL  # the exit code of a process whose forking process has died: it dies with that
PR_SET_PDEATHSIG = 1

# Variables that the interpreter, the C library or a module reads before a fork gets its own.
READ_BEFORE = ("LD_", "PYTHON", "MALLOC_", "GLIBC_", "LANG", "LC_", "PLAIN_ASGI", "PROMETHEUS_")

# Modules that a server imports only when it needs them.
LATER_MODULES = (
    "tusd_py.backends.redis.connection",
    "tusd_py.backends.redis.locker",
    "tusd_py.backends.redis.state",
    "tusd_py.backends.s3",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
)


class ForkedProcess:
    """A server process; what tests need of `subprocess.Popen`. A zombie until its exit code was read."""

    def __init__(self, connection: socket.socket, pid: int, stderr: IO[str]) -> None:
        self.pid = pid
        self.stderr: IO[str] | None = stderr
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self.returncode is None:
                message = self._connection.recv(64, socket.MSG_DONTWAIT)
                self.returncode = int(message) if message else LOST
                self._connection.close()  # which lets the forking process remove the zombie
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit code, raises `subprocess.TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("tusd-py", timeout or 0)
            time.sleep(POLL_INTERVAL)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forker:
    """Starts servers as forks of one process, which starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._read_before: dict[str, str] = {}

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork with these variables is no different from a process that is started afresh with them."""
        known = _read_before(os.environ) if self._process is None else self._read_before
        return hasattr(os, "pidfd_open") and _read_before(environment) == known

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> ForkedProcess:
        """Start `tests.support.watched` with these arguments of the command line; only its stderr can be read."""
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._ensure_running(), [request], [theirs.fileno(), writing])
        finally:
            theirs.close()
            os.close(writing)
        stderr = os.fdopen(reading, encoding="utf-8", errors="replace")
        pid = ours.recv(64)
        if not pid:
            ours.close()
            stderr.close()
            raise RuntimeError("the process that servers are forked from has died")
        return ForkedProcess(ours, int(pid), stderr)

    def _ensure_running(self) -> socket.socket:
        """The socket for requests to the process, which is started if there is none."""
        if self._requests is None or self._process is None or self._process.poll() is not None:
            self._end()
            self._read_before = _read_before(os.environ)
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [*COMMAND, str(theirs.fileno())],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            atexit.unregister(self._end)
            atexit.register(self._end)
        return self._requests

    def _end(self) -> None:
        if self._requests is not None:
            self._requests.close()
        if self._process is not None:
            self._process.wait()


def _read_before(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_BEFORE)}


# The forking process.


class Request:
    """The process that is to be started."""

    def __init__(self, message: bytes, connection: socket.socket, stderr: int) -> None:
        decoded = json.loads(message)
        self.arguments: list[str] = decoded["arguments"]
        self.environment: dict[str, str] = decoded["environment"]
        self.connection = connection  # to whoever wants to know its number and how it ends
        self.stderr = stderr

    def close(self) -> None:
        self.connection.close()
        os.close(self.stderr)


class Parent:
    """Forks processes and tells how they end."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._connections: set[socket.socket] = set()
        self._pidfds: set[int] = set()

    def run(self) -> Request | None:
        """Serve until the starter has gone. Returns in each forked process too, with what is requested of that."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    key.data()
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._requests, MAX_BYTES, 2)
                if not message:
                    self._close()
                    return None
                request = Request(message, socket.socket(fileno=descriptors[0]), descriptors[1])
                if self._fork(request):
                    return request

    def _fork(self, request: Request) -> bool:
        """Whether this is the new process."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            self._close()
            return True
        os.close(request.stderr)
        request.connection.send(str(pid).encode())
        self._connections.add(request.connection)
        pidfd = os.pidfd_open(pid)
        self._pidfds.add(pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._tell_end, pidfd, pid, request.connection))
        return False

    def _close(self) -> None:
        """Close what belongs to this process only."""
        self._selector.close()
        self._requests.close()
        for connection in self._connections:
            connection.close()
        for pidfd in self._pidfds:
            os.close(pidfd)

    def _tell_end(self, pidfd: int, pid: int, connection: socket.socket) -> None:
        """Tell the exit code, and keep the process a zombie until it was read: nothing else gets its number."""
        self._selector.unregister(pidfd)
        self._pidfds.discard(pidfd)
        os.close(pidfd)
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert result is not None
        code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        with contextlib.suppress(ConnectionError):
            connection.send(str(code).encode())
        self._selector.register(connection, selectors.EVENT_READ, partial(self._remove, pid, connection))

    def _remove(self, pid: int, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._connections.discard(connection)
        connection.close()
        os.waitpid(pid, 0)


def become(request: Request) -> None:
    """Make this process the one that is requested."""
    os.dup2(request.stderr, 2)
    request.close()
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    tempfile.tempdir = None  # it follows from the environment
    signal.signal(signal.SIGINT, signal.default_int_handler)


def prepare() -> None:
    """Import and read what servers need later than at their start."""
    from tests.support.s3_models import read_models

    for name in LATER_MODULES:
        importlib.import_module(name)
    read_models()
    gc.freeze()  # forks share the memory of it


def main() -> int:
    from tests.support.watched import watch  # imports all that a server needs, unlike the process that starts this one
    from tusd_py.cli import main as serve

    prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then end this process
    request = Parent(socket.socket(fileno=int(sys.argv[1]))).run()
    if request is None:
        return 0
    become(request)
    watch()
    return serve(request.arguments)


if __name__ == "__main__":
    sys.exit(main())
