"""Support for the contract suites: instances on one place, limits of time, processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

try:
    import pytest
    import pytest_asyncio
except ModuleNotFoundError as error:
    raise ImportError("the contract suites need pytest and pytest-asyncio: pip install 'tusd-py[testing]'") from error

__all__ = ["TIMEOUT", "Component", "Instances", "line_of", "other_process", "pytest", "pytest_asyncio", "within"]

MIN_SLOWNESS = 3.0  # a machine may be slower at times than it is at others
TIMEOUT = 30.0 * max(MIN_SLOWNESS, float(os.environ.get("TEST_SLOWNESS", "1")))  # seconds; only ends a test that hangs
T = TypeVar("T")


class Component(Protocol):
    """The common members of storages, state stores and lockers."""

    async def open(self) -> None:
        """Make the component ready."""

    async def close(self) -> object:
        """Release every resource."""


C = TypeVar("C", bound=Component)


class Instances(Generic[C]):
    """The instances of one component on one place, each as if it were in another process."""

    def __init__(self, make: Callable[[Path], C], place: Path) -> None:
        self._make = make
        self._place = place
        self._opened: list[C] = []

    async def open(self) -> C:
        """Create and open another instance."""
        instance = self._make(self._place)
        self._opened.append(instance)
        await instance.open()
        return instance

    async def close(self, instance: C) -> None:
        """Close one instance."""
        self._opened.remove(instance)
        await instance.close()

    async def close_all(self) -> None:
        """Close every instance that is still open."""
        while self._opened:
            await self._opened.pop().close()


async def within(work: Awaitable[T]) -> T:
    """Return the result of work that has to end; raises `TimeoutError` after `TIMEOUT`."""
    async with asyncio.timeout(TIMEOUT):
        return await work


@contextlib.contextmanager
def other_process(action: str, suite: type, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run an action of `other_process.py` in another process, which is killed at the end of the context.

    Args:
        action: `hold` or `create`.
        suite: the test class, importable there; its `make` makes the component.
        arguments: the place, and whatever else the action takes.
    """
    options = [f"-W{option}" for option in sys.warnoptions]
    command = [sys.executable, *options, "-m", "tusd_py.testing.other_process"]
    command += [action, suite.__module__, suite.__qualname__, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that another process prints; empty at its end."""
    assert process.stdout is not None
    return (await within(asyncio.to_thread(process.stdout.readline))).strip()
