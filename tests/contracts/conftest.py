from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contracts.parts import LOCKERS, STATE_STORES, STORAGES, Instances
from tests.support.proxies import FaultyNetwork
from tests.support.redis_hosts import Host
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.watched import watch
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage, SupportsConcatenation


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    """Make blocking calls in the event loop errors."""
    blockbuster = watch()
    yield
    blockbuster.deactivate()


@pytest.fixture(params=STATE_STORES)
async def states(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Instances[StateStore]]:
    instances = Instances(STATE_STORES[request.param], tmp_path)
    yield instances
    await instances.close_all()


@pytest.fixture
async def state(states: Instances[StateStore]) -> StateStore:
    return await states.open()


@pytest.fixture
async def other_state(states: Instances[StateStore], state: StateStore) -> StateStore:
    """The same records, seen from another process."""
    return await states.open()


@pytest.fixture(params=LOCKERS)
async def lockers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Instances[Locker]]:
    instances = Instances(LOCKERS[request.param], tmp_path)
    yield instances
    await instances.close_all()


@pytest.fixture
async def locker(lockers: Instances[Locker]) -> Locker:
    return await lockers.open()


@pytest.fixture(params=["same process", "other process"])
async def neighbour(request: pytest.FixtureRequest, lockers: Instances[Locker], locker: Locker) -> Locker:
    """The locker of the next request: in the process of `locker`, or in another one."""
    return locker if request.param == "same process" else await lockers.open()


@pytest.fixture(params=STORAGES)
async def storages(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Instances[Storage]]:
    instances = Instances(STORAGES[request.param], tmp_path)
    yield instances
    await instances.close_all()


@pytest.fixture
async def storage(storages: Instances[Storage]) -> Storage:
    return await storages.open()


@pytest.fixture
def concatenates(storage: Storage) -> SupportsConcatenation:
    if not isinstance(storage, SupportsConcatenation):
        pytest.skip("this storage does not put uploads together")
    return storage


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """The beginning of the keys in Redis of one test."""
    return f"{tmp_path.name}:"


@pytest.fixture
async def host(prefix: str) -> AsyncIterator[Host]:
    """The records and locks of one process in Redis."""
    async with Host(shared_redis_url(), prefix) as one:
        yield one


@pytest.fixture
async def other(prefix: str) -> AsyncIterator[Host]:
    """The same records and locks as those of `host`, in another process."""
    async with Host(shared_redis_url(), prefix) as one:
        yield one


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis for one test, which makes trouble for it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def network(redis: RedisServer) -> Iterator[FaultyNetwork]:
    """A network in front of that Redis, which may fail."""
    with FaultyNetwork(redis.port) as proxy:
        yield proxy
