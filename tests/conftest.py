from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support")  # so that a failed assertion there shows its values too

from tests.faults import clocks
from tests.faults.preload import build
from tests.faults.stalls import OSFaults
from tests.support.harness import ServerProcess
from tests.support.timing import slowness


def pytest_configure() -> None:
    slowness()  # measured in the first process of the run, which starts the others


signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the servers of the tests would ignore it too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under PLAIN_ASGI, leave out what only the server's own protocol class can do."""
    if os.environ.get("PLAIN_ASGI"):
        skip = pytest.mark.skip(reason="needs the protocol class of tusd_py.uvicorn_server")
        for item in items:
            if item.get_closest_marker("integrated"):
                item.add_marker(skip)
    items[:] = long_ones_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage among the collected tests, a million objects: not while they are made, and never after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def long_ones_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Order tests for several workers, each of which gets a share of neighbours (`--dist worksteal`).

    Every share begins with its part of the long ones: at the end of a run the other workers would wait for them.
    """
    if workers == 1:
        return items
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    ordered: list[pytest.Item] = []
    for left in range(workers, 0, -1):
        share = (len(long) + len(short)) // left
        first = -(-len(long) // left)
        ordered += long[:first] + short[: share - first]
        del long[:first], short[: share - first]
    return ordered


@pytest.fixture(autouse=True)
def _everything_stands() -> None:
    """Start shared processes again that have died, so that one test's mishap does not fail all tests after it."""
    for process in list(ServerProcess.running):
        process.revive()
    for name in (
        "tests.support.redis_server",
        "tests.support.s3_server",
    ):  # they need packages that not every test needs
        if name in sys.modules:
            sys.modules[name].revive_shared()


@pytest.fixture(autouse=True)
def _forks_or_not(request: pytest.FixtureRequest) -> None:
    ServerProcess.may_fork = request.node.get_closest_marker("fresh_interpreter") is None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with its default settings."""
    with ServerProcess(tmp_path / "uploads") as process:
        yield process


@pytest.fixture(scope="session")
def preload_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes system calls of server processes fail (`tests.faults.preload`)."""
    return build(require("gcc"), tmp_path_factory.mktemp("preload"))


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes the wall clock of server processes wrong (`tests.faults.clocks`)."""
    return clocks.build(require("gcc"), tmp_path_factory.mktemp("clock"))


@pytest.fixture
def os_faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[OSFaults]:
    """Faults in the system calls of this process; all are lifted at the end."""
    faults = OSFaults(monkeypatch)
    yield faults
    faults.clear()


def require(program: str) -> str:
    """Return the path of a program that some tests need: without it they are skipped, under CI they fail."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
