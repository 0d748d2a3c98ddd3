"""Live progress when processes die, or change uploads without a word."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.wire.events import Listening, kinds
from tests.support.wire.requests import create, patch, start_patch


@pytest.mark.long
def test_upload_whose_process_is_killed_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server, ServerProcess(tmp_path / "uploads") as other:
        path = create(server.port, 10)
        with Listening(server.port, f"{path}/events") as stream, start_patch(other.port, path, 0, 10) as sender:
            stream.until("snapshot")
            sender.send(b"four")
            assert stream.until("progress")[-1].offset == 4
            os.kill(other.pid, signal.SIGKILL)
            assert stream.until("interrupted")[-1].offset == 4
            assert patch(server.port, path, 4, b"secret").status == 204
            assert kinds(list(stream))[-1] == "finished"
