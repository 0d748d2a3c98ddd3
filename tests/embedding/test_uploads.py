"""Uploads used by the application: looked up, read, found as files, removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.asgi_calls import ask, create, offset_stream
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place
from tusd_py import (
    RequestContext,
    TusServer,
    Upload,
    UploadFilter,
    UploadFinished,
    UploadKind,
    UploadTerminated,
)
from tusd_py.core.errors import StorageUnavailable, StoredElsewhere, UploadNotFound
from tusd_py.core.upload import Status
from tusd_py.embedding import UploadReader
from tusd_py.uploads.validation import NewUpload

DATA = bytes(range(256)) * 4096


async def uploaded(tus: TusServer, data: bytes = DATA) -> str:
    path = await create(tus, len(data))
    assert (await ask(tus, "PATCH", path, offset_stream(0), data)).status == 204
    return path.rpartition("/")[2]


async def test_get_returns_the_record_of_an_upload(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    async with tus.lifespan():
        upload_id = (await create(tus, 100)).rpartition("/")[2]
        upload = await tus.uploads.get(upload_id)
        assert (upload.id, upload.length, upload.offset) == (upload_id, 100, 0)
        assert tus.path(upload) is None
        with pytest.raises(UploadNotFound):
            await tus.open(upload)
        with pytest.raises(UploadNotFound):
            await tus.uploads.get("unknown")


async def test_terminate_removes_an_upload_and_tells_subscribers(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    told: list[UploadTerminated] = []
    tus.on(UploadTerminated)(told.append)
    async with tus.lifespan():
        upload_id = await uploaded(tus)
        upload = await tus.uploads.get(upload_id)
        await tus.uploads.terminate(upload_id)
        with pytest.raises(UploadNotFound):
            await tus.uploads.terminate(upload_id)
        with pytest.raises(UploadNotFound):
            await tus.open(upload)
    assert [(event.upload.id, event.request) for event in told] == [(upload_id, None)]
    assert not (tmp_path / upload_id).exists()


async def test_uploads_start_a_server_without_lifespan(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    try:
        with pytest.raises(UploadNotFound):
            await tus.uploads.get("unknown")
    finally:
        await tus.shutdown()


async def test_uploads_of_a_server_that_cannot_start_raise_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tus = TusServer(upload_dir=tmp_path / "file")
    with pytest.raises(StorageUnavailable, match="cannot be used"):
        await tus.uploads.get("unknown")


async def test_a_subscriber_reads_the_file_of_a_finished_upload(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    read: list[bytes] = []

    @tus.on(UploadFinished)
    async def finished(event: UploadFinished) -> None:
        path = tus.path(event.upload)
        assert path is not None
        async with await tus.open(event.upload) as reader:
            read.extend([await asyncio.to_thread(path.read_bytes), await reader.read()])

    async with tus.lifespan():
        await uploaded(tus)
    assert read == [DATA, DATA]


@pytest.mark.parametrize("where", ["disk", "s3"])
async def test_reader_gives_every_byte_once_in_order(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Place(s3_server()).options() if where == "s3" else {}
    for name, value in options.pop("env", {}).items():
        monkeypatch.setenv(name, value)
    tus = TusServer(upload_dir=tmp_path, **options)
    async with tus.lifespan():
        upload = await tus.uploads.get(await uploaded(tus))
        assert (tus.path(upload) is None) == (where == "s3")
        reader = await tus.open(upload)
        assert await reader.read(0) == b""
        assert await reader.read(10) == DATA[:10]
        assert await reader.read(300_000) == DATA[10:300_010]
        assert b"".join([piece async for piece in reader]) == DATA[300_010:]
        assert await reader.read() == await reader.read(5) == b""
        await reader.aclose()


async def test_reader_of_an_empty_upload_has_no_bytes(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    async with tus.lifespan():
        upload = await tus.uploads.get((await create(tus, 0)).rpartition("/")[2])
        async with await tus.open(upload) as reader:
            assert [piece async for piece in reader] == []


async def test_closed_reader_gives_nothing_and_has_let_go() -> None:
    closed = False

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"12"
            yield b"34"
        finally:
            closed = True

    source = pieces()
    reader = UploadReader(source, await anext(source))  # type: ignore[arg-type]
    async with reader:
        assert await reader.read(1) == b"1"
    assert closed
    assert await reader.read() == b""
    await reader.aclose()


def test_path_of_a_record_of_another_storage_is_refused(tmp_path: Path) -> None:
    upload = Upload("id", 0.0, length=0, status=Status.COMPLETE, location='["prefix", "key"]')
    with pytest.raises(StoredElsewhere):
        TusServer(upload_dir=tmp_path).path(upload)


async def test_owner_of_an_upload_is_the_principal_of_the_request_that_created_it(tmp_path: Path) -> None:
    tus = TusServer(upload_dir=tmp_path)
    alice = RequestContext("POST", "/files", {}, principal="alice")
    async with tus.lifespan():
        part = await tus.service.create(NewUpload(0, None, UploadKind.PARTIAL, "partial", context=alice))
        final = await tus.service.concatenate(
            NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,), context=alice)
        )
        nobodys = await tus.service.create(NewUpload(5))
        assert (part.owner, final.owner, nobodys.owner) == ("alice", "alice", "")
        page = await tus.uploads.list(condition=UploadFilter(owner="alice"))
    assert {upload.id for upload in page.uploads} == {part.id, final.id}
    assert page.after is None


@pytest.mark.parametrize(
    ("told", "kept"),
    [("192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1%eth0"), ("x" * 500, "x" * 64), ("a\r\nb", ""), ("", "")],
)
async def test_record_keeps_the_address_of_the_request_that_created_the_upload(
    tmp_path: Path, told: str, kept: str
) -> None:
    tus = TusServer(upload_dir=tmp_path)
    request = RequestContext("POST", "/files", {}, client=told)
    async with tus.lifespan():
        part = await tus.service.create(NewUpload(0, None, UploadKind.PARTIAL, "partial", context=request))
        final = await tus.service.concatenate(
            NewUpload(None, None, UploadKind.FINAL, "final;", (part.id,), context=request)
        )
        assert [(await tus.uploads.get(upload.id)).client for upload in (part, final)] == [kept, kept]
