"""Servers that are stopped, or killed, while they concatenate."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.faults.preload import PreloadedFaults
from tests.support.harness import ServerProcess
from tests.support.timing import scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, payload
from tests.support.wire.promised import create

SIZE = 32 << 20  # of the partial upload, two slices


def concatenate(server: ServerProcess, part: str) -> None:
    """Request a final upload of 20 slices without waiting for the answer."""
    headers = TUS | {"Upload-Concat": "final;" + " ".join([part] * 10), "Content-Length": "0"}

    def ask() -> None:
        try:
            with Connection(server.url, timeout=scaled(60)) as connection:
                connection.send_head("POST", server.url, headers)
                connection.answer(method="POST")
        except OSError:
            pass

    threading.Thread(target=ask, daemon=True).start()


def unfinished(server: ServerProcess) -> list[str]:
    return [path.name for path in server.upload_dir.iterdir() if path.name.endswith(".concatenation")]


def whole(server: ServerProcess) -> bool:
    paths = [path for path in server.upload_dir.iterdir() if not path.name.startswith(".")]
    return any(path.stat().st_size == 10 * SIZE for path in paths)


@pytest.mark.long
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_server_that_ends_while_it_copies_finishes_the_copy_after_its_restart(
    tmp_path: Path, preload_library: Path, end: str
) -> None:
    """The server does not wait for all of the copy; the unfinished copy is replaced after the restart."""
    faults = PreloadedFaults(tmp_path / "faults", preload_library)
    options: dict[str, Any] = {"shutdown_grace": "1s", "sweep_interval": "0.5s"}
    with ServerProcess(tmp_path / "uploads", env=faults.env, **options) as server:
        data = payload(SIZE)
        part = create(server.url, SIZE, {"Upload-Concat": "partial"}, data)
        slow = faults.slow("copy_file_range", "*", 0.4)
        concatenate(server, part)
        wait_until(lambda: bool(unfinished(server)), seconds=15)
        if end == "stopped":
            server.terminate(scaled(60))
            assert not whole(server)
            assert unfinished(server) == []
        else:
            server.kill()
            assert len(unfinished(server)) == 1
        slow.lift()
    with ServerProcess(tmp_path / "uploads", env=faults.env, **options) as server:
        wait_until(lambda: whole(server), seconds=60)
        assert unfinished(server) == []
