"""The contract suite against every storage."""

from __future__ import annotations

from pathlib import Path

from tests.contracts.parts import STORAGES
from tusd_py.backends.memory.storage import MemoryStorage, StoredBytes
from tusd_py.contracts.storage import Storage
from tusd_py.testing.storage_suite import StorageSuite


class TestDisk(StorageSuite):
    def make(self, place: Path) -> Storage:
        return STORAGES["disk"](place)


class TestSharedDisk(StorageSuite):
    def make(self, place: Path) -> Storage:
        return STORAGES["shared-disk"](place)


class TestDiskByDate(StorageSuite):
    def make(self, place: Path) -> Storage:
        return STORAGES["disk-by-date"](place)


class TestS3(StorageSuite):
    def make(self, place: Path) -> Storage:
        return STORAGES["s3"](place)


class TestMemory(StorageSuite):
    def setup_method(self) -> None:
        self.stored: StoredBytes = {}

    def make(self, place: Path) -> Storage:
        return MemoryStorage(self.stored)
