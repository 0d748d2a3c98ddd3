from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that keeps what it acknowledged when it is killed."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server
