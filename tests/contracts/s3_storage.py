"""Storages of S3 on a place of a test, and requests to them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.s3_server import (
    Fault,
    Faults,
    FaultyProxy,
    Request,
    S3Server,
    s3_config,
    s3_server,
)
from tusd_py.backends.s3.config import MIN_PART
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation, NoInstrumentation
from tusd_py.contracts.storage import Writer
from tusd_py.core.errors import UploadError
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import (
    TOKEN,
    Record,
    committed,
    finish,
)

PART = MIN_PART
DATA = random.Random(5).randbytes(4 * PART + 12345)
QUICK: dict[str, Any] = {"attempts": 1}  # what fails, fails at once


class Calls(Counter[str], NoInstrumentation):
    """A counter of requests by operation."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def s3_request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        with self._lock:
            self[operation] += 1
            self.outcomes[operation, outcome] += 1


@pytest.fixture
def server() -> S3Server:
    return s3_server()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server) as proxy:
        yield proxy


@pytest.fixture
def calls() -> Calls:
    return Calls()


Opener = Callable[..., Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    """A function that opens storages on the place of the test."""
    storages: list[S3Storage] = []

    async def open_storage(server: S3Server, calls: Instrumentation = NO_INSTRUMENTATION, **changes: Any) -> S3Storage:
        storage = S3Storage(s3_config(server, tmp_path, **changes), calls)
        storages.append(storage)
        await storage.open()
        return storage

    yield open_storage
    for storage in storages:
        await storage.close()


@pytest.fixture
async def storage(opened: Opener, server: S3Server, calls: Calls) -> S3Storage:
    storage: S3Storage = await opened(server, calls)
    calls.clear()
    return storage


def blocks_of(data: bytes, size: int = 1 << 20) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def write_all(writer: Writer, data: bytes) -> None:
    for block in blocks_of(data):
        await writer.write([block])
    await writer.flush(sync=True)


async def send(storage: S3Storage, upload: Upload, data: bytes, **options: Any) -> Record:
    """Append `data` in one request, which may fail; return the record as committed after it."""
    writer = storage.writer(upload, TOKEN, **options)
    try:
        await write_all(writer, data)
    except UploadError:
        pass
    finally:
        record = committed(upload, writer)
        await writer.close()
    return record


async def send_all(storage: S3Storage, upload: Upload, data: bytes) -> Record:
    """Append the last bytes of an upload; return its record when it is complete."""
    writer = storage.writer(upload, TOKEN)
    try:
        for block in blocks_of(data):
            await writer.write([block])
        whole = await writer.finish(sync=True)
        record = committed(upload, writer)
    finally:
        await writer.close()
    return record if whole else await finish(storage, record)


def once(operation: str, fault: Fault, *, part: int = 0, after: int = 0) -> Faults:
    """Return faults with `fault` for one request, after so many of the kind."""
    seen = 0
    lock = threading.Lock()

    def choose(request: Request) -> Fault:
        nonlocal seen
        with lock:
            if request.operation != operation or (part and request.part != part):
                return Fault.NONE
            seen += 1
            return fault if seen == after + 1 else Fault.NONE

    return choose
