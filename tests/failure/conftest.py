from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.stalls import OSFaults
from tests.support.redis_server import RedisServer
from tests.support.services import running_service
from tusd_py.uploads.service import UploadService


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that keeps what it acknowledged when it is killed."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture(params=["never", "complete"])
def durability(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def service(tmp_path: Path, os_faults: OSFaults, durability: str) -> AsyncIterator[UploadService]:
    """A service whose disk may fail."""
    settings = {
        "upload_dir": tmp_path / "uploads",
        "sweep_interval": 0,
        "durability": durability,
        "lock_timeout": 0.2,
        "max_size": 1 << 20,
    }
    async with running_service(settings) as service:
        yield service
        os_faults.clear()
