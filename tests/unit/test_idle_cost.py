"""Uploads and locks that nothing happens to: they cost next to nothing, however many there are."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.measure import cpu_seconds, process_tree
from tests.contracts.parts import within
from tests.support.harness import ServerProcess
from tests.support.timing import promptly
from tests.support.wire.connection import Connection
from tests.support.wire.requests import create, offset_of, start_patch
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import ClientDisconnected, UploadError
from tusd_py.server import TusServer
from tusd_py.uploads.append import Append
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

COMMIT_INTERVAL = 0.05  # seconds
MANY = 600
MAX_CPU = 0.1  # of one core, for that many idle appends


class SlowSource:
    """A body that gives bytes only when it is woken, as blocks of memory that fill slowly do."""

    declared_size = 1000

    def __init__(self) -> None:
        self.wakes = 0
        self._arrived = b""
        self._arrived_at = time.monotonic()
        self._woken = asyncio.Event()
        self._stop: UploadError | None = None

        self.arrived = None

    def arrive(self, data: bytes) -> None:
        self._arrived += data
        self._arrived_at = time.monotonic()

    async def read(self) -> Buffer | None:
        await self._woken.wait()
        self._woken.clear()
        data, self._arrived = self._arrived, b""
        if self._stop is not None and not data:
            raise self._stop
        return data

    def release(self, buffers: Sequence[Buffer]) -> None: ...

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        await asyncio.wait((reader,))

    def silent_for(self) -> float:
        return time.monotonic() - self._arrived_at

    def interrupt(self, reason: UploadError) -> None:
        self._stop = reason
        self._woken.set()

    def wake(self) -> None:
        self.wakes += 1
        self._woken.set()


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[UploadService]:
    monkeypatch.setattr("tusd_py.composition.UploadOptions", partial(UploadOptions, commit_interval=COMMIT_INTERVAL))
    server = TusServer(upload_dir=tmp_path)
    async with server.lifespan():
        yield server.service


async def committed(service: UploadService, upload_id: str, offset: int) -> None:
    while (await service.get(upload_id)).offset != offset:  # noqa: ASYNC110
        await asyncio.sleep(COMMIT_INTERVAL / 5)


async def test_an_append_without_bytes_wakes_nobody_and_commits_what_comes_later(service: UploadService) -> None:
    upload = await service.create(NewUpload(length=1000))
    source = SlowSource()
    appending = asyncio.create_task(service.append(upload.id, AppendRequest(0, source)))
    source.arrive(b"first")
    await within(committed(service, upload.id, 5))
    await asyncio.sleep(4 * COMMIT_INTERVAL)  # the timer has seen that there is no more
    wakes = source.wakes
    await asyncio.sleep(20 * COMMIT_INTERVAL)
    assert source.wakes <= wakes + 1
    source.arrive(b"second")
    await within(committed(service, upload.id, 11))
    source.interrupt(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await within(appending)


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    """As many descriptors as this process, and the servers that it starts, may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * MANY:
        pytest.skip(f"the limit of descriptors is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_descriptors")
def test_many_open_patches_that_send_nothing_cost_next_to_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server, ExitStack() as stack:
        with Connection(server.port) as connection:
            headers = {"Upload-Length": "10000", "Content-Length": "0"}
            paths = []
            for _ in range(MANY):
                connection.start("POST", "/files", headers)
                paths.append(connection.answer().headers["location"].partition(str(server.port))[2])
        for path in paths:
            patch: Connection = stack.enter_context(start_patch(server.port, path, 0, 10_000))
            patch.send(b"some bytes")
        patch.wait_until_read()
        for path in paths[:: MANY // 5]:
            with promptly("HEAD"):
                assert offset_of(server.port, path) == len("some bytes")
        time.sleep(2.5)  # twice the time between commits, until there is nothing left to commit
        tree = process_tree(server.pid)
        before = cpu_seconds(tree)
        started = time.monotonic()
        time.sleep(3)
        assert cpu_seconds(tree) - before < MAX_CPU * (time.monotonic() - started)
        unheard = create(server.port, 10)
        assert offset_of(server.port, unheard) == 0


async def test_many_that_begin_to_watch_have_the_appends_looked_at_once(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, looked = list[Append](), asyncio.Event()

    def look(append: Append) -> None:
        looks.append(append)
        looked.set()

    monkeypatch.setattr(Append, "watchers_changed", look)
    source = SlowSource()
    upload = await service.create(NewUpload(length=1000))
    appending = asyncio.create_task(service.append(upload.id, AppendRequest(0, source)))
    source.arrive(b"first")
    source.wake()
    while not service._appending._appends:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)
    for _ in range(2):
        looks.clear()
        looked.clear()
        for _ in range(100):
            service.watchers_changed()
        await within(looked.wait())
        assert len(looks) == 1
    source.interrupt(ClientDisconnected())
    with pytest.raises(ClientDisconnected):
        await within(appending)


async def test_offset_of_a_watched_upload_is_committed_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tusd_py.composition.UploadOptions", partial(UploadOptions, commit_interval=3600))
    server = TusServer(upload_dir=tmp_path)
    watched: set[str] = set()
    async with server.lifespan():
        server.service.watch_by(lambda upload: upload.id in watched)
        for is_watched_before in (True, False):
            upload = await server.service.create(NewUpload(length=1000))
            if is_watched_before:
                watched.add(upload.id)
            source = SlowSource()
            appending = asyncio.create_task(server.service.append(upload.id, AppendRequest(0, source)))
            source.arrive(b"first")
            if not is_watched_before:
                source.wake()
                await asyncio.sleep(0.1)
                watched.add(upload.id)
                server.service.watchers_changed()
            await within(committed(server.service, upload.id, 5))
            source.interrupt(ClientDisconnected())
            with pytest.raises(ClientDisconnected):
                await within(appending)
