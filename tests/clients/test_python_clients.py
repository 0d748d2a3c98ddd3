"""tuspy and aiotus against a real server."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import aiotus
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed
from tusclient.uploader.baseuploader import BaseUploader

from tests.clients.support import KIBI, MEBI, create, downloaded, head, payload, sha256
from tests.support.harness import ServerProcess

# tuspy's asynchronous uploader passes an argument to aiohttp that aiohttp has deprecated.
tuspy_async = pytest.mark.filterwarnings("ignore:The object should be created within an async function")

ONE_ATTEMPT = aiotus.RetryConfiguration(retry_attempts=1)


def url_of(uploader: BaseUploader) -> str:
    return str(uploader.url)


def test_tuspy_uploads_in_chunks(server: ServerProcess) -> None:
    data = payload(1 * MEBI + 17)
    uploader = TusClient(server.url).uploader(
        file_stream=io.BytesIO(data), chunk_size=300 * KIBI, metadata={"filename": "größe.bin", "empty": ""}
    )
    uploader.upload()
    assert uploader.offset == len(data)
    assert downloaded(url_of(uploader)) == sha256(data)
    assert head(url_of(uploader)).headers["upload-metadata"] == "filename Z3LDtsOfZS5iaW4=,empty"


def test_tuspy_uploads_without_metadata(server: ServerProcess) -> None:
    """The client sends an empty Upload-Metadata header then."""
    uploader = TusClient(server.url).uploader(file_stream=io.BytesIO(b"data"))
    uploader.upload()
    assert downloaded(url_of(uploader)) == sha256(b"data")
    assert "upload-metadata" not in head(url_of(uploader)).headers


def test_tuspy_creates_an_empty_file(server: ServerProcess) -> None:
    uploader = TusClient(server.url).uploader(file_stream=io.BytesIO(b""))
    uploader.upload()
    assert downloaded(url_of(uploader)) == sha256(b"")


def test_tuspy_resumes_with_the_url(server: ServerProcess) -> None:
    data = payload(1 * MEBI)
    first = TusClient(server.url).uploader(file_stream=io.BytesIO(data), chunk_size=100 * KIBI)
    first.upload(stop_at=300 * KIBI)

    second = TusClient(server.url).uploader(file_stream=io.BytesIO(data), chunk_size=512 * KIBI, url=first.url)
    assert second.offset == 300 * KIBI
    second.upload()
    assert second.url == first.url
    assert downloaded(url_of(second)) == sha256(data)


def test_tuspy_sends_checksums(server: ServerProcess) -> None:
    data = payload(1 * MEBI + 17)
    uploader = TusClient(server.url).uploader(file_stream=io.BytesIO(data), chunk_size=300 * KIBI, upload_checksum=True)
    uploader.upload()
    assert downloaded(url_of(uploader)) == sha256(data)


def test_tuspy_is_refused_a_chunk_with_another_checksum(server: ServerProcess) -> None:
    client = TusClient(server.url)
    uploader = client.uploader(file_stream=io.BytesIO(b"data"))
    uploader.set_url(uploader.create_url())
    other = base64.b64encode(hashlib.sha1(b"other").digest()).decode()
    client.set_headers({"Upload-Checksum": f"sha1 {other}"})
    with pytest.raises(TusUploadFailed) as refusal:
        uploader.upload()
    assert refusal.value.status_code == 460
    assert head(url_of(uploader)).headers["upload-offset"] == "0"


def test_tuspy_sees_that_an_upload_is_gone(server: ServerProcess) -> None:
    """The client looks only for the Upload-Offset header: a refusal must not carry one."""
    with pytest.raises(TusCommunicationError, match="404"):
        TusClient(server.url).uploader(file_stream=io.BytesIO(b"data"), url=server.url + "/unknown")


@tuspy_async
async def test_tuspy_uploads_asynchronously(server: ServerProcess) -> None:
    data = payload(1 * MEBI + 17)
    uploader = TusClient(server.url).async_uploader(
        file_stream=io.BytesIO(data), chunk_size=300 * KIBI, metadata={"filename": "data.bin"}, upload_checksum=True
    )
    await uploader.upload()
    assert downloaded(url_of(uploader)) == sha256(data)


async def test_aiotus_uploads_and_reads_the_metadata_back(server: ServerProcess) -> None:
    data = payload(2 * MEBI + 17)
    metadata = {"filename": "größe.bin".encode(), "bytes": bytes(range(256)), "bare": None}
    location = await aiotus.upload(server.url, io.BytesIO(data), metadata, config=ONE_ATTEMPT, chunksize=1 * MEBI)
    assert location is not None
    assert downloaded(str(location)) == sha256(data)
    assert await aiotus.metadata(location, config=ONE_ATTEMPT) == metadata


async def test_aiotus_uploads_an_empty_file(server: ServerProcess) -> None:
    location = await aiotus.upload(server.url, io.BytesIO(b""), config=ONE_ATTEMPT)
    assert location is not None
    assert downloaded(str(location)) == sha256(b"")


async def test_aiotus_concatenates_with_path_only_urls(server: ServerProcess) -> None:
    parts = [payload(size, seed) for seed, size in enumerate((1 * MEBI, 0, 300 * KIBI))]
    location = await aiotus.upload_multiple(
        server.url, [io.BytesIO(part) for part in parts], {"filename": b"joined.bin"}, config=ONE_ATTEMPT
    )
    assert location is not None
    assert downloaded(str(location)) == sha256(b"".join(parts))
    assert await aiotus.metadata(location, config=ONE_ATTEMPT) == {"filename": b"joined.bin"}


async def test_aiotus_is_refused_a_file_over_the_maximum(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", max_size="1KiB") as server:
        assert await aiotus.upload(server.url, io.BytesIO(payload(2000)), config=ONE_ATTEMPT) is None


async def test_aiotus_reads_no_metadata_of_an_upload_without(server: ServerProcess) -> None:
    assert await aiotus.metadata(create(server.url, 10), config=ONE_ATTEMPT) == {}
