from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stalls import OSFaults
from tests.support.redis_server import RedisServer
from tests.support.s3_rig import Rig, no_fault
from tests.support.s3_server import FaultyProxy, s3_server
from tests.support.s3_uploads import Place, serving
from tests.support.services import running_service
from tusd_py.uploads.append import Append
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
def records() -> dict[str, Any]:
    """The settings that say where the records are; SQLite, unless a module says otherwise."""
    return {}


@pytest.fixture
def settings(tmp_path: Path, durability: str, records: dict[str, Any]) -> dict[str, Any]:
    return {
        "upload_dir": tmp_path / "uploads",
        "sweep_interval": 0,
        "durability": durability,
        "lock_timeout": 0.2,
        "max_size": 1 << 20,
        **records,
    }


@pytest.fixture
async def service(settings: dict[str, Any], os_faults: OSFaults) -> AsyncIterator[UploadService]:
    """A service whose disk may fail."""
    async with running_service(settings) as service:
        yield service
        os_faults.clear()


@pytest.fixture
def slow_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the uploads that `Append` has worked on."""
    ids: list[str] = []
    run = Append.run

    async def noted(self: Append, *arguments: object) -> object:
        ids.append(self.upload.id)
        return await run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Append, "run", noted)
    return ids


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A server and a proxy for the tests of one module."""
    place = Place(s3_server())
    options = {"sweep_interval": "0"}  # only requests drive uploads on
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path_factory.mktemp("s3"), place, proxy.server.endpoint, **options) as server,
    ):
        yield Rig(server, proxy, place)


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The shared servers and proxy, which work when the test begins and after it has ended."""
    if shared_rig.server.process.poll() is not None:
        shared_rig.revive()
    shared_rig.proxy.requests.clear()
    yield shared_rig
    shared_rig.proxy.faults = no_fault
