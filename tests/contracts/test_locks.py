"""The contract suite against every locker."""

from __future__ import annotations

from pathlib import Path

from tests.contracts.parts import LOCKERS
from tusd_py.backends.memory.locker import MemoryLocker, MemoryLocks
from tusd_py.contracts.locks import Locker
from tusd_py.testing.locker_suite import LockerSuite


class TestLocal(LockerSuite):
    def make(self, place: Path) -> Locker:
        return LOCKERS["local"](place)


class TestRedis(LockerSuite):
    def make(self, place: Path) -> Locker:
        return LOCKERS["redis"](place)


class TestMemory(LockerSuite):
    spans_processes = False

    def setup_method(self) -> None:
        self.locks = MemoryLocks()

    def make(self, place: Path) -> Locker:
        return MemoryLocker(self.locks)
