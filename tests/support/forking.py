"""Server processes that are forked from one that has imported everything, since imports take most of a start.

`python -m tests.support.forking DESCRIPTOR MODULE` is the forking process, which takes requests from a socket, forks a
process for each, reports how the process ends, and ends together with the process that started it. So do its forks.
There is one forking process for each main module of servers, and one more for each library preloaded into them.
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

MODULE = "tests.support.forking"
ROOT = Path(__file__).parents[2]
MAX_BYTES = 1 << 20  # maximum size of a request
POLL_INTERVAL = 0.01  # seconds
EXIT_CODE_IF_PARENT_DIED = -signal.SIGKILL  # the process dies together with the forking process
PR_SET_PDEATHSIG = 1
PRELOAD = "LD_PRELOAD"

# Variables that the interpreter, the C library or a module reads before a fork gets its own.
STARTUP_VARIABLES = ("LD_", "PYTHON", "MALLOC_", "GLIBC_", "LANG", "LC_", "PLAIN_ASGI", "PROMETHEUS_")

# Modules that a server imports only when it needs them.
LATER_MODULES = (
    "tusd_py.backends.redis.connection",
    "tusd_py.backends.redis.locker",
    "tusd_py.backends.redis.state",
    "tusd_py.backends.s3",
    "tusd_py.testing",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.loops.uvloop",
)


class ForkedProcess:
    """A server process with the parts of `subprocess.Popen` that tests need; a zombie until its exit code is read."""

    def __init__(self, connection: socket.socket, pid: int, stderr: IO[str] | None = None) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self.returncode is None:
                message = self._connection.recv(64, socket.MSG_DONTWAIT)
                self.returncode = int(message) if message else EXIT_CODE_IF_PARENT_DIED
                self._connection.close()  # which lets the forking process remove the zombie
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended; return its exit code. Raises `subprocess.TimeoutExpired`."""
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


class Forkers:
    """The forking processes that were needed so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forkers: dict[tuple[Sequence[str], str], Forker] = {}

    def find(self, command: Sequence[str], environment: Mapping[str, str]) -> Forker | None:
        """Return the one whose forks behave like newly started processes with this command and environment.

        None if there is no such one.
        """
        preload = environment.get(PRELOAD, "")
        with self._lock:
            forker = self._forkers.setdefault((command, preload), Forker(command, preload))
        return forker if forker.can_start(environment) else None


class Forker:
    """A starter of servers as forks of one process, which starts with the first of them."""

    def __init__(self, command: Sequence[str], preload: str) -> None:
        *interpreter, module = command
        self._command = (*interpreter, MODULE)
        self._module = module
        self._preload = {PRELOAD: preload} if preload else {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._startup_variables: dict[str, str] = {}

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Return whether a fork with these variables behaves like a newly started process with them."""
        known = _startup_variables(self._environment()) if self._process is None else self._startup_variables
        return hasattr(os, "pidfd_open") and _startup_variables(environment) == known

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> ForkedProcess:
        """Start the module with these arguments of the command line; only its stderr can be read."""
        reading, writing = os.pipe()
        stderr = os.fdopen(reading, encoding="utf-8", errors="replace")
        try:
            return ForkedProcess(*self._fork(arguments, environment, ROOT, [writing]), stderr)
        except BaseException:
            stderr.close()
            raise
        finally:
            os.close(writing)

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, folder: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run the module to its end, in a folder; return its exit code and output.

        Raises `subprocess.TimeoutExpired` after so many seconds; the process is killed then.
        """
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = ForkedProcess(*self._fork(arguments, environment, folder, [stderr.fileno(), stdout.fileno()]))
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            for file in (stdout, stderr):
                file.seek(0)
            return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())

    def _fork(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, outputs: Sequence[int]
    ) -> tuple[socket.socket, int]:
        """Request a process that writes to these descriptors, stderr first; return its connection and its pid."""
        values = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            socket.send_fds(self._ensure_running(), [json.dumps(values).encode()], [theirs.fileno(), *outputs])
        pid = ours.recv(64)
        if not pid:
            ours.close()
            raise RuntimeError("the process that servers are forked from has died")
        return ours, int(pid)

    def _ensure_running(self) -> socket.socket:
        """Return the socket for requests to the forking process, which is started if it is not running."""
        if self._requests is None or self._process is None or self._process.poll() is not None:
            self._end()
            environment = self._environment()
            self._startup_variables = _startup_variables(environment)
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [*self._command, str(theirs.fileno()), self._module],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            atexit.unregister(self._end)
            atexit.register(self._end)
        return self._requests

    def _environment(self) -> dict[str, str]:
        return os.environ | self._preload

    def _end(self) -> None:
        if self._requests is not None:
            self._requests.close()
        if self._process is not None:
            self._process.wait()


def _startup_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(STARTUP_VARIABLES)}


# The forking process.


class Request:
    """A request to start a process."""

    def __init__(self, message: bytes, connection: socket.socket, outputs: Sequence[int]) -> None:
        decoded = json.loads(message)
        self.arguments: list[str] = decoded["arguments"]
        self.environment: dict[str, str] = decoded["environment"]
        self.folder: str = decoded["folder"]
        self.connection = connection  # to the process that gets the pid and the exit code
        self.outputs = outputs  # descriptors of stderr and, if it is wanted, of stdout

    def close(self) -> None:
        self.connection.close()
        self.close_outputs()

    def close_outputs(self) -> None:
        for output in self.outputs:
            os.close(output)


class Parent:
    """The forking process, which reports how its children end."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._connections: set[socket.socket] = set()
        self._pidfds: set[int] = set()

    def run(self) -> Request | None:
        """Serve requests until the starter has ended; return None then, and in each forked process its request."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    key.data()
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._requests, MAX_BYTES, 3)
                if not message:
                    self._close()
                    return None
                request = Request(message, socket.socket(fileno=descriptors[0]), descriptors[1:])
                if self._fork(request):
                    return request

    def _fork(self, request: Request) -> bool:
        """Fork a process; return whether this is the new process."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            self._close()
            return True
        request.close_outputs()
        request.connection.send(str(pid).encode())
        self._connections.add(request.connection)
        pidfd = os.pidfd_open(pid)
        self._pidfds.add(pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._report_end, pidfd, pid, request.connection))
        return False

    def _close(self) -> None:
        """Close the descriptors of the forking process."""
        self._selector.close()
        self._requests.close()
        for connection in self._connections:
            connection.close()
        for pidfd in self._pidfds:
            os.close(pidfd)

    def _report_end(self, pidfd: int, pid: int, connection: socket.socket) -> None:
        """Send the exit code, and keep the process a zombie until it is read, so that no other one gets its pid."""
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


def enter_server_process(request: Request) -> None:
    """Give this process the environment, folder, outputs and signal handlers of the requested one."""
    for output, descriptor in zip(request.outputs, (2, 1), strict=False):
        os.dup2(output, descriptor)
    request.close()
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    tempfile.tempdir = None  # it follows from the environment
    signal.signal(signal.SIGINT, signal.default_int_handler)


def prepare() -> None:
    """Import the modules and read the files that servers need only after their start."""
    from tests.support.s3_models import read_models

    for name in LATER_MODULES:
        importlib.import_module(name)
    read_models()
    gc.freeze()  # forks share the memory of it


def main() -> int:
    descriptor, name = sys.argv[1:]
    module = importlib.import_module(name)  # all that a server needs, unlike the process that starts this one
    prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then end this process
    request = Parent(socket.socket(fileno=int(descriptor))).run()
    if request is None:
        return 0
    enter_server_process(request)
    sys.modules["__main__"].__spec__ = module.__spec__  # so that worker processes import it as their main module
    code: int = module.run(request.arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
