"""The contract suite of outboxes against the state stores that have one."""

from __future__ import annotations

from pathlib import Path

from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.outbox import StateStoreWithOutbox
from tusd_py.testing.outbox_suite import OutboxSuite


class TestSQLite(OutboxSuite):
    def make(self, place: Path) -> StateStoreWithOutbox:
        return SQLiteState(place / "records")


class TestMemory(OutboxSuite):
    outlives_process = False

    def setup_method(self) -> None:
        self.records = MemoryRecords()

    def make(self, place: Path) -> StateStoreWithOutbox:
        return MemoryState(self.records)
