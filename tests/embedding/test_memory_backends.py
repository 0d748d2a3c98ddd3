"""A server with the backends in memory, driven by the client of `tusd_py.testing`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from tusd_py import Status, TusServer
from tusd_py.testing import MemoryLocker, MemoryState, MemoryStorage, TusClient, TusError


@pytest.fixture
def tus(tmp_path: Path) -> TusServer:
    return TusServer(upload_dir=tmp_path, storage=MemoryStorage(), state=MemoryState(), locker=MemoryLocker())


@pytest.fixture
async def client(tus: TusServer) -> AsyncIterator[TusClient]:
    app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
    async with tus.lifespan(app):
        yield TusClient(app, "/files")


async def test_upload_in_two_requests_is_downloaded(tus: TusServer, client: TusClient) -> None:
    path = await client.create(11, {"filename": "hello.txt"})
    assert await client.append(path, 0, b"hello") == 5
    assert await client.offset(path) == 5
    assert await client.append(path, 5, b" world") == 11
    assert await client.download(path) == b"hello world"
    upload = await tus.uploads.get(path.rpartition("/")[2])
    assert (upload.status, upload.decoded_metadata) == (Status.COMPLETE, {"filename": "hello.txt"})


async def test_length_is_declared_with_the_last_bytes(client: TusClient) -> None:
    path = await client.create(None)
    assert await client.append(path, 0, b"abc", length=3) == 3
    assert await client.download(path) == b"abc"


async def test_wrong_offset_is_refused_with_the_right_one(client: TusClient) -> None:
    path = await client.create(5)
    await client.append(path, 0, b"abc")
    with pytest.raises(TusError, match="409 ERR_MISMATCHED_OFFSET") as refusal:
        await client.append(path, 0, b"abc")
    assert refusal.value.answer.headers["upload-offset"] == "3"


async def test_many_appends_at_once_store_one(client: TusClient) -> None:
    path = await client.create(3)
    results = await asyncio.gather(*(client.append(path, 0, b"abc") for _ in range(5)), return_exceptions=True)
    assert results.count(3) == 1
    assert await client.download(path) == b"abc"


async def test_terminated_upload_is_not_found(client: TusClient) -> None:
    path = await client.create(3)
    await client.terminate(path)
    answer = await client.request("HEAD", path)
    assert answer.status in (404, 410)


async def test_partial_uploads_are_concatenated(client: TusClient) -> None:
    parts = []
    for data in (b"one ", b"two"):
        answer = await client.request("POST", "/files", {"Upload-Length": str(len(data)), "Upload-Concat": "partial"})
        parts.append("/files/" + answer.headers["location"].rpartition("/")[2])
        await client.append(parts[-1], 0, data)
    final = await client.request("POST", "/files", {"Upload-Concat": f"final;{' '.join(parts)}"})
    assert final.status == 201
    assert await client.download("/files/" + final.headers["location"].rpartition("/")[2]) == b"one two"
