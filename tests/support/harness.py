"""A real `tusd-py serve` process on a free loopback port, and raw HTTP against it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from tests.support.forking import ForkedProcess, Forker, Forkers
from tests.support.timing import TIMEOUT, scaled

# `tests.support.watched` is the command line with blocking calls in the event loop turned into errors.
COMMAND: tuple[str, ...] = (sys.executable, "-W", "error", "-m", "tests.support.watched")
LISTENING = re.compile(r"listening on (http://[^/\s]+)(/[^\s\"]*)")
ROOT = Path(__file__).parents[2]
FORKERS = Forkers()


class ServerProcess:
    """A server in a process of its own; use as a context manager, ended by its own pid.

    Every keyword is a command line option: `max_size="5MiB"` is `--max-size 5MiB`, `disable_download=True` is
    `--disable-download`.
    """

    running: ClassVar[set[ServerProcess]] = set()  # servers that were started and not ended
    may_fork: ClassVar[bool] = True  # whether the current test does without an interpreter of its own

    def __init__(
        self, upload_dir: Path, *, port: int = 0, env: dict[str, str] | None = None, **options: object
    ) -> None:
        self.upload_dir = upload_dir
        self.descriptors: int | None = None  # maximum number of files that the process may have open
        self.port = port
        self.options = options
        self.env = env or {}
        self.origin = ""  # http://127.0.0.1:PORT
        self.url = ""  # the creation URL, http://127.0.0.1:PORT/files
        self.log: list[str] = []

    def arguments(self) -> list[str]:
        arguments = ["serve", "--host", "127.0.0.1", "--port", str(self.port), "--upload-dir", str(self.upload_dir)]
        for name, value in self.options.items():
            option = "--" + name.replace("_", "-")
            arguments += [option] if value is True else [option, str(value)]
        return arguments

    def start(self) -> ServerProcess:
        self.running.add(self)
        self.process = self._new_process(os.environ | self.env)
        listening = threading.Event()
        self._reader = threading.Thread(target=self._read_log, args=(listening,), daemon=True)
        self._reader.start()
        if not listening.wait(scaled(60)) or not self.origin:
            self.running.discard(self)
            self.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log))
        return self

    def _new_process(self, environment: dict[str, str]) -> subprocess.Popen[str] | ForkedProcess:
        forker = self._forker(environment)
        if forker is not None:
            return forker.start(self.arguments(), environment)
        return subprocess.Popen(
            [*COMMAND, *self.arguments()],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=self._limit_descriptors if self.descriptors else None,
        )

    def _forker(self, environment: dict[str, str]) -> Forker | None:
        """Return the process that has imported everything, if a fork of it can replace a new interpreter.

        Variables such as PYTHONOPTIMIZE take effect in a new interpreter only.
        """
        if self.descriptors is not None or not self.may_fork:
            return None
        return FORKERS.find(COMMAND, environment)

    def _limit_descriptors(self) -> None:
        assert self.descriptors is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, self.descriptors))

    def _read_log(self, listening: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            match = None if self.origin else LISTENING.search(line)
            if match:
                self.origin, path = match.groups()
                self.url = self.origin + path
                self.port = int(self.origin.rpartition(":")[2])  # a restart listens on the same port
                listening.set()
        listening.set()

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self, timeout: float | None = None) -> int:
        """Stop the server with SIGTERM, as an operator does; return the exit code."""
        self.process.terminate()
        return self.wait(scaled(30) if timeout is None else timeout)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.wait(scaled(10))

    def wait(self, timeout: float) -> int:
        code = self.process.wait(timeout)
        self._reader.join(scaled(10))
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def start_again(self) -> None:
        """Start the server, on the same port and directory, as a supervisor does: again and again until it runs."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            self.origin = self.url = ""
            try:
                self.start()
                return
            except RuntimeError:
                assert time.monotonic() < deadline, "".join(self.log)

    def revive(self) -> None:
        """Start the server again, on the same port and directory, if its process has ended."""
        if self.process.poll() is not None:
            self.wait(scaled(10))
            self.origin = self.url = ""
            self.start()

    def restart(self) -> None:
        """Kill the process with SIGKILL, and start a new one on the same port and directory."""
        self.kill()
        self.origin = self.url = ""
        self.start()

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.running.discard(self)
        if self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        else:
            self.wait(scaled(10))


@contextlib.contextmanager
def serving(folder: Path, **options: Any) -> Iterator[ServerProcess]:
    """A server that must not log a stack trace."""
    with ServerProcess(folder / "uploads", **options) as server:
        yield server
    log = "".join(server.log)
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
