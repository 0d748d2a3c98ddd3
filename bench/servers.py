"""The start and the end of one server, in a process group and a directory of its own, on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.client import BenchError, Connection, build
from bench.recipes import Recipe, error_summary

START_SECONDS = 30
STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    port: int
    creation_path: str
    process: int
    directory: Path
    extensions: frozenset[str]
    algorithms: frozenset[str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(recipe: Recipe, home: Path) -> Iterator[Target]:
    """Start a server, and yield it once it accepts connections; end it after the block, by force if necessary."""
    name = recipe.name.replace(" ", "-")
    directory, log = home / name, home / f"{name}.log"
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            recipe.command(port, directory),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until_accepting(process, port, log)
        extensions, algorithms = capabilities(port, recipe.creation_path)
        yield Target(recipe.name, port, recipe.creation_path, process.pid, directory, extensions, algorithms)
    finally:
        stop(process)


def wait_until_accepting(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(
                f"it ended at start with {process.returncode}: {error_summary(log.read_text(errors='replace'))}"
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise BenchError(f"it did not listen within {START_SECONDS} s: {error_summary(log.read_text(errors='replace'))}")


def capabilities(port: int, creation_path: str) -> tuple[frozenset[str], frozenset[str]]:
    with Connection(port) as connection:
        headers = connection.exchange(build("OPTIONS", creation_path)).headers
    found = (headers.get(name, "") for name in ("tus-extension", "tus-checksum-algorithm"))
    extensions, algorithms = (frozenset(word.strip() for word in value.split(",") if word.strip()) for value in found)
    return extensions, algorithms


def signal_group(process: int, number: int) -> None:
    # The session was created for this server: its group holds only the server and its children.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)


def kill(process: int) -> None:
    signal_group(process, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes]) -> None:
    signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    kill(process.pid)
    process.wait(STOP_SECONDS)
