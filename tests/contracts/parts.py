"""Every implementation of a contract. Naming a new one here is all that it takes to have it tested."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.support.harness import ROOT
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_config, s3_server
from tests.support.timing import scaled
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.s3 import S3Storage
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage


def redis() -> RedisConnection:
    """A connection to the Redis of this test run."""
    return RedisConnection(shared_redis_url())


def prefix_of(place: Path) -> str:
    return f"{place}:"


# Each makes one instance, not opened yet, as one process has it. Instances of the same place see the same things; a
# place is a directory of its own, and its name will do as a prefix where there are no directories.
STATE_STORES: dict[str, Callable[[Path], StateStore]] = {
    "sqlite": lambda place: SQLiteState(place / "uploads.sqlite3"),
    "redis": lambda place: RedisState(redis(), prefix_of(place)),
}
LOCKERS: dict[str, Callable[[Path], Locker]] = {
    "local": lambda place: LocalLocker(place / "locks"),
    "redis": lambda place: RedisLocker(redis(), prefix_of(place), ttl=2),
}
STORAGES: dict[str, Callable[[Path], Storage]] = {
    "disk": lambda place: DiskStorage(place / "uploads"),
    "shared-disk": lambda place: SharedDiskStorage(place / "uploads", place / "notes"),
    "disk-by-date": lambda place: DiskStorage(place / "uploads", date_folders=True),
    "s3": lambda place: S3Storage(s3_config(s3_server(), place)),
}

PATIENCE = scaled(30.0)  # seconds for anything that has to happen
T = TypeVar("T")


class UploadPart(Protocol):
    """The common part of all contracts."""

    async def open(self) -> None: ...

    async def close(self) -> object: ...


P = TypeVar("P", bound=UploadPart)


class Instances(Generic[P]):
    """Opens instances of one part on one place, as if each were in another process."""

    def __init__(self, make: Callable[[Path], P], place: Path) -> None:
        self._make = make
        self._place = place
        self._opened: list[P] = []

    async def open(self) -> P:
        instance = self._make(self._place)
        self._opened.append(instance)
        await instance.open()
        return instance

    async def close(self, instance: P) -> None:
        self._opened.remove(instance)
        await instance.close()

    async def close_all(self) -> None:
        while self._opened:
            await self._opened.pop().close()


async def within(work: Awaitable[T]) -> T:
    """Bounds the time of something that has to end."""
    async with asyncio.timeout(PATIENCE):
        return await work


@contextlib.contextmanager
def other_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A real other process, to be killed: `other_process.py` with these arguments."""
    command = [sys.executable, "-W", "error", "-m", "tests.contracts.other_process", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that another process prints; empty at its end."""
    assert process.stdout is not None
    return (await within(asyncio.to_thread(process.stdout.readline))).strip()
