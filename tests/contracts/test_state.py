"""The contract suite against every state store."""

from __future__ import annotations

from pathlib import Path

from tests.contracts.parts import STATE_STORES
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.contracts.state import StateStore
from tusd_py.testing.state_suite import StateStoreSuite


class TestSQLite(StateStoreSuite):
    def make(self, place: Path) -> StateStore:
        return STATE_STORES["sqlite"](place)


class TestRedis(StateStoreSuite):
    def make(self, place: Path) -> StateStore:
        return STATE_STORES["redis"](place)


class TestMemory(StateStoreSuite):
    outlives_process = False

    def setup_method(self) -> None:
        self.records = MemoryRecords()

    def make(self, place: Path) -> StateStore:
        return MemoryState(self.records)
