"""The contract suites against every backend, in the world that it belongs to."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tests.simulation.contracts import (
    LOCKERS,
    OUTBOX,
    QUERIES,
    QUOTAS,
    SKIPPED,
    STATES,
    STORAGES,
    Case,
    cases,
    run_case,
)
from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.hosts_world import HostsWorld
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.memory.locker import MemoryLocker, MemoryLocks
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.memory.storage import MemoryStorage
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.backends.sqlite.state import SQLiteState

Make = Callable[[Path], Any]
NewMake = Callable[[], Make]  # for each call of a test

URL = "redis://redis.example:6379/0"


async def fulfils(world: DirectedWorld, suite: type, new_make: NewMake) -> None:
    """Run a suite against a component, and complain of every test that fails."""
    for case in cases(suite):
        name = f"contract-{world.next_upload()}"
        await _run(world, suite, case, new_make(), Path(world.machine.files.top, name))
        world.machine.files.mounted.entries.pop(name)
        _forget_keys(world, name)
        world.loop.steps = 0  # the limit is that of one test


def _forget_keys(world: DirectedWorld, prefix: str) -> None:
    """Remove what a test has left in Redis, where scans would take their time for it."""
    if isinstance(world, HostsWorld):
        for key in [key for key in world.redis.store.entries if key.startswith(f"{prefix}:".encode())]:
            del world.redis.store.entries[key]


async def _run(world: DirectedWorld, suite: type, case: Case, make: Make, place: Path) -> None:
    async def run(_: Any) -> None:
        place.mkdir()  # noqa: ASYNC240 - of the world, which takes no time
        await run_case(suite, case, make, place)

    try:
        await world.on(world.host, run)
    except SKIPPED:
        pass
    except (Exception, AssertionError) as error:
        lines = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
        world.complain(f"{suite.__name__}.{case}: {error!r} in {lines}")


def _memory_state() -> Make:
    records = MemoryRecords()
    return lambda _: MemoryState(records)


def _memory_locker() -> Make:
    locks = MemoryLocks()
    return lambda _: MemoryLocker(locks)


def _memory_storage() -> Make:
    stored: Any = {}
    return lambda _: MemoryStorage(stored)


def _sqlite(place: Path) -> SQLiteState:
    return SQLiteState(place / "records")


def _redis(place: Path) -> RedisState:
    return RedisState(RedisConnection(URL), f"{place.name}:")


@scenario("memory")
async def contracts_of_memory(world: DirectedWorld) -> None:
    for suite in (STATES, OUTBOX, QUERIES, QUOTAS):
        await fulfils(world, suite, _memory_state)
    await fulfils(world, LOCKERS, _memory_locker)
    await fulfils(world, STORAGES, _memory_storage)


@scenario()
async def contracts_of_sqlite(world: DirectedWorld) -> None:
    for suite in (STATES, OUTBOX, QUERIES, QUOTAS):
        await fulfils(world, suite, lambda: _sqlite)


@scenario()
async def contract_of_local_locks(world: DirectedWorld) -> None:
    await fulfils(world, LOCKERS, lambda: lambda place: LocalLocker(place / "locks"))


@scenario()
async def contracts_of_disks(world: DirectedWorld) -> None:
    await fulfils(world, STORAGES, lambda: lambda place: DiskStorage(place / "uploads"))
    await fulfils(world, STORAGES, lambda: lambda place: DiskStorage(place / "uploads", date_folders=True))


@scenario("redis")
async def contract_of_a_shared_disk(world: DirectedWorld) -> None:
    await fulfils(world, STORAGES, lambda: lambda place: SharedDiskStorage(place / "uploads", place / "notes"))


@scenario("redis")
async def contracts_of_redis(world: DirectedWorld) -> None:
    for suite in (STATES, OUTBOX, QUERIES, QUOTAS):
        await fulfils(world, suite, lambda: _redis)
    await fulfils(world, LOCKERS, lambda: lambda place: RedisLocker(RedisConnection(URL), f"{place.name}:", ttl=2))


@scenario("s3")
async def contract_of_s3(world: DirectedWorld) -> None:
    def make(place: Path) -> S3Storage:
        return S3Storage(cast(Any, world).config.model_copy(update={"prefix": f"{place.name}/"}))

    await fulfils(world, STORAGES, lambda: make)
