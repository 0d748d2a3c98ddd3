"""Debian's clamd (package clamav-daemon) with one signature that the tests make, and no network."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.conftest import require
from tests.support.redis_server import free_port
from tests.support.timing import scaled

START_TIMEOUT = scaled(60.0)  # seconds
SIGNATURE = "Test.Tusd.Marker"  # name of the malware; clamd adds that the signature is not an official one
MARKER = b"\xd0\x0dmalware of the tests of tusd-py\xf0\x0d"
STREAM_MAX = 2 << 20  # bytes
CONFIGURATION = f"""
Foreground yes
DatabaseDirectory {{folder}}/signatures
TemporaryDirectory {{folder}}/tmp
LogFile {{folder}}/clamd.log
LogFileUnlock yes
LocalSocket {{folder}}/clamd.ctl
TCPSocket {{port}}
TCPAddr 127.0.0.1
StreamMaxLength {STREAM_MAX}
MaxFileSize 1G
MaxScanSize 1G
AlertExceedsMax yes
Bytecode no
"""


class ClamdDaemon:
    """A clamd in a process of its own, on a Unix socket and on a port; use as a context manager, ended by its own pid.

    Skips the test where the program is missing. A keyword takes the place of a line of the configuration.
    """

    def __init__(self, **lines: str) -> None:
        self._program = require("clamd")
        self._lines = lines
        self.folder = Path(tempfile.mkdtemp(prefix="clamd-"))  # the path of a Unix socket has to be short
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def on_socket(self) -> str:
        return f"unix:{self.folder / 'clamd.ctl'}"

    @property
    def on_port(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        path = self.folder / "clamd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the daemon, and wait until it answers on both."""
        for name in ("signatures", "tmp"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "signatures" / "test.ndb").write_text(f"{SIGNATURE}:0:*:{MARKER.hex()}\n")
        config = self.folder / "clamd.conf"
        config.write_text(self._configuration())
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [self._program, "--config-file", str(config)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                told = (self.folder / "output").read_text(errors="replace") + self.log
                raise RuntimeError("clamd did not start:\n" + told)
            time.sleep(0.02)

    def _configuration(self) -> str:
        lines = dict(line.split(" ", 1) for line in CONFIGURATION.split("\n") if line) | self._lines
        return "".join(f"{name} {value}\n" for name, value in lines.items()).format(folder=self.folder, port=self.port)

    def answers(self) -> bool:
        """Return whether the daemon answers on the socket and on the port."""
        path = str(self.folder / "clamd.ctl")
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            local = stack.enter_context(socket.socket(socket.AF_UNIX))
            local.settimeout(1)
            local.connect(path)
            remote = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 1))
            for connection in (local, remote):
                connection.sendall(b"zPING\0")
                if connection.recv(16) != b"PONG\0":
                    return False
            return True
        return False

    def pause(self) -> None:
        """Stop the process with SIGSTOP: it takes connections, as far as the kernel does, and reads nothing."""
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End the process with SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(START_TIMEOUT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def __enter__(self) -> ClamdDaemon:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
