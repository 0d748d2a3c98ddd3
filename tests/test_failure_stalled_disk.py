"""A disk that hangs in a write while its server is told to end: nobody takes over before the process is dead."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults.preload import PreloadedFaults
from tests.harness import ServerProcess
from tests.raw_client import KIBI, assert_content, create, head, patch, payload, start_patch
from tests.timing import scaled

GRACE = 2.0


@pytest.mark.parametrize("call", ["pwritev", "ftruncate"])
def test_an_upload_stays_locked_until_the_process_with_the_hanging_write_is_dead(
    tmp_path: Path, preload_library: Path, call: str
) -> None:
    faults = PreloadedFaults(tmp_path / "faults", preload_library)
    old_data, data = payload(300 * KIBI, 1), payload(300 * KIBI, 2)
    uploads = tmp_path / "uploads"
    with (
        ServerProcess(uploads, env=faults.env, shutdown_grace=f"{GRACE}s") as old,
        ServerProcess(uploads, lock_timeout="500ms") as other,
    ):
        path = create(other.port, len(data))
        assert patch(other.port, path, 0, data[:1000]).status == 204
        if call == "ftruncate":  # bytes that were never committed, which the next writer cuts off
            with (uploads / path.rpartition("/")[2]).open("ab") as file:
                file.write(b"garbage")
        stall = faults.stall(call, f"*{path.rpartition('/')[2]}")
        connection = start_patch(old.port, path, 1000, len(data) - 1000)
        connection.send(old_data[1000:])
        stall.wait()
        old.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + scaled(GRACE + 10)
        while old.process.poll() is None:
            answer = patch(other.port, path, 1000, data[1000:])
            if old.process.poll() is None:
                assert answer.status == 423, answer
            assert time.monotonic() < deadline, "the process with the hanging write does not end"
        old.wait(10)
        connection.close()
        offset = head(other.port, path).offset
        if offset < len(data):
            assert patch(other.port, path, offset, data[offset:]).status == 204
        faults.clear()
        assert_content(other.port, path, data)
