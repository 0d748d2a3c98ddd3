"""The contract suite of outboxes against the state stores that have one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.parts import prefix_of, redis
from tests.support.redis_server import RedisNodes
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.state import RedisState
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


class TestRedis(OutboxSuite):
    def make(self, place: Path) -> StateStoreWithOutbox:
        return RedisState(redis(), prefix_of(place))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNodes]:
    with RedisNodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


class TestRedisCluster(OutboxSuite):
    @pytest.fixture(autouse=True)
    def use(self, cluster: RedisNodes) -> None:
        self.cluster = cluster

    def make(self, place: Path) -> StateStoreWithOutbox:
        return RedisState(RedisConnection(self.cluster.url), prefix_of(place))
