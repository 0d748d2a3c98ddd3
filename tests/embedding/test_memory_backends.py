"""A server with the backends in memory, driven by the client of `tusd_py.testing`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from tusd_py import Status, TusServer
from tusd_py.contracts.storage import Buffer, PieceSize, largest_piece
from tusd_py.core.upload import Upload
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


class _NotedReads(MemoryStorage):
    """A storage that notes its open reads, and yields one byte at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.open_reads = 0

    async def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        self.open_reads += 1
        try:
            for position in range(start, end):
                async for data in super().read(upload, position, position + 1, piece_size):
                    yield data
        finally:
            self.open_reads -= 1


@pytest.mark.parametrize("leaves", ["before the response", "after the first piece"])
async def test_download_whose_client_leaves_closes_its_reader_at_once(tmp_path: Path, leaves: str) -> None:
    storage = _NotedReads()
    tus = TusServer(upload_dir=tmp_path, storage=storage, state=MemoryState(), locker=MemoryLocker())
    app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
    async with tus.lifespan(app):
        client = TusClient(app, "/files")
        path = await client.create(5)
        await client.append(path, 0, b"hello")
        left = asyncio.Event()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start" and leaves == "before the response":
                raise ConnectionResetError
            left.set()
            await asyncio.sleep(0)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("a", 80)}
        with contextlib.suppress(ConnectionResetError):
            await app({**scope, "client": ("192.0.2.1", 1)}, receive, send)

        assert storage.open_reads == 0
