"""Every implementation of a contract. A new one that is listed here is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_config, s3_server
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.testing.support import TIMEOUT, Instances, line_of, within

__all__ = ["LOCKERS", "STATE_STORES", "STORAGES", "TIMEOUT", "Instances", "line_of", "prefix_of", "redis", "within"]


def redis() -> RedisConnection:
    """Return a connection to the Redis of this test run."""
    return RedisConnection(shared_redis_url())


def prefix_of(place: Path) -> str:
    return f"{place}:"


# Each function creates one instance, not opened yet, as one process has it. Instances of the same place share their
# data; a place is a directory of its own, whose name serves as a prefix where there are no directories.
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
