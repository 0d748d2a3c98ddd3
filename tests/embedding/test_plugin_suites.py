"""The contract suites of `tusd_py.testing` against the backends of a package outside `tusd_py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedding.plugin_package.sample_backends import FileLocker, FolderStorage, RecordTable
from tests.support.watched import watch
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.testing.locker_suite import LockerSuite
from tusd_py.testing.state_suite import StateStoreSuite
from tusd_py.testing.storage_suite import StorageSuite


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    """Make blocking calls in the event loop errors."""
    blockbuster = watch()
    yield
    blockbuster.deactivate()


class TestFolderStorage(StorageSuite):
    def make(self, place: Path) -> Storage:
        return FolderStorage(place / "uploads")


class TestRecordTable(StateStoreSuite):
    def make(self, place: Path) -> StateStore:
        return RecordTable(place / "records.db")


class TestFileLocker(LockerSuite):
    def make(self, place: Path) -> Locker:
        return FileLocker(place / "locks")
