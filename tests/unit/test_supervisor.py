"""The wait of a supervisor for its processes."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.timing import scaled
from tusd_py.settings import Settings
from tusd_py.uvicorn_server import supervisor as supervisor_module
from tusd_py.uvicorn_server.supervisor import Supervisor, Worker

Start = Callable[[Callable[[float], None], float], Worker]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        supervisor = Supervisor(Settings(upload_dir=tmp_path, workers=2), reserved)
        yield supervisor
        supervisor._wake_receiver.close()
        supervisor._wake_sender.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that never tells that it is ready."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:

        def start(work: Callable[[float], None], argument: float) -> Worker:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(argument,))
            process.start()
            stack.callback(process.close)
            stack.callback(process.join)
            stack.callback(process.kill)
            stack.enter_context(ours)
            stack.enter_context(theirs)
            return Worker(process, ours)

        yield start


def test_a_process_that_is_not_ready_in_time_is_named_with_the_limit(
    supervisor: Supervisor, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "START_TIMEOUT", 0.5)
    worker = start(time.sleep, scaled(600))
    assert not supervisor._becomes_ready(worker)
    assert caplog.record_tuples == [
        (
            "tusd_py.supervisor",
            logging.ERROR,
            f"process {worker.process.pid} did not accept connections within 0.5 seconds",
        )
    ]


def test_nothing_is_told_of_the_time_of_a_process_that_ends_by_itself(
    supervisor: Supervisor, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    assert not supervisor._becomes_ready(start(time.sleep, 0))
    assert caplog.record_tuples == []
