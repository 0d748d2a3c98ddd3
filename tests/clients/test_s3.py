"""tus-js-client in node and tuspy against a server that keeps uploads in S3."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from tusclient.client import TusClient

from tests.clients.support import KIBI, MEBI, downloaded, head, payload, sha256
from tests.clients.test_python_clients import tuspy_async, url_of
from tests.clients.test_tus_js import Client
from tests.support.harness import ServerProcess
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import PART, Place, serving


@pytest.fixture(scope="module")
def place() -> Place:
    return Place(s3_server())


@pytest.fixture(scope="module")
def server(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("s3"), place) as server:
        yield server


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "payload")


def check(place: Place, url: str, data: bytes) -> None:
    """Assert that the object and the download hold `data`, and that nothing else of the upload is left."""
    place.assert_alone(url, data)
    assert downloaded(url) == sha256(data)


@pytest.mark.parametrize("source", ["buffer", "file"])
@pytest.mark.parametrize("size", [0, 1000, PART, 2 * PART + 123])
def test_plain_upload(server: ServerProcess, place: Place, client: Client, source: str, size: int) -> None:
    data = payload(size)
    run = client.upload(data, source=source, endpoint=server.url, metadata={"filename": "größe.bin"})
    assert run.error is None
    expected = [("POST", 201, "0"), *([("PATCH", 204, str(size))] if size else [])]
    assert [(one.method, one.status, one.answered_offset) for one in run.requests] == expected
    check(place, run.url, data)


@pytest.mark.parametrize("chunk_size", [300 * KIBI, 2 * MEBI, PART])
def test_upload_to_s3_in_chunks(server: ServerProcess, place: Place, client: Client, chunk_size: int) -> None:
    data = payload(2 * PART + 123)
    run = client.upload(data, endpoint=server.url, chunkSize=chunk_size)
    assert run.error is None
    assert run.patched_offsets == list(range(0, len(data), chunk_size))
    assert {request.status for request in run.of("PATCH")} == {204}
    check(place, run.url, data)


@pytest.mark.parametrize("size", [0, 2, MEBI + 1, 4 * PART + 7])
def test_parallel_uploads(server: ServerProcess, place: Place, client: Client, size: int) -> None:
    """The parts of the clients are smaller or larger than those that S3 copies."""
    data = payload(size)
    run = client.upload(data, endpoint=server.url, parallelUploads=3, metadata={"filename": "parallel.bin"})
    assert run.error is None
    assert {one.status for one in run.of("POST")} == {201}
    assert {one.status for one in run.of("PATCH")} <= {204}
    assert head(run.url).headers["upload-length"] == str(size)
    check(place, run.url, data)


@pytest.mark.parametrize("chunk_size", [100 * KIBI, 3 * MEBI])
def test_stream_of_unknown_length(server: ServerProcess, place: Place, client: Client, chunk_size: int) -> None:
    data = payload(PART + 250 * KIBI + 3 if chunk_size > MEBI else 250 * KIBI + 3)
    run = client.upload(data, source="stream", endpoint=server.url, uploadLengthDeferred=True, chunkSize=chunk_size)
    assert run.error is None
    assert run.requests[0].headers["upload-defer-length"] == "1"
    check(place, run.url, data)


def test_data_during_creation(server: ServerProcess, place: Place, client: Client) -> None:
    data = payload(PART + 250 * KIBI)
    run = client.upload(data, endpoint=server.url, uploadDataDuringCreation=True, chunkSize=700 * KIBI)
    assert run.error is None
    assert run.requests[0].answered_offset == str(700 * KIBI)
    check(place, run.url, data)


@pytest.mark.parametrize("reached", [77, MEBI + 77, PART + MEBI + 77])
def test_new_upload_object_resumes_where_the_aborted_one_ended(
    server: ServerProcess, place: Place, client: Client, reached: int
) -> None:
    data = payload(2 * PART)
    aborted = client.upload(data, endpoint=server.url, hold_after=reached, ending="abort")
    resumed = client.upload(data, endpoint=server.url, uploadUrl=aborted.url)
    assert resumed.error is None
    assert [(one.method, one.status) for one in resumed.requests] == [("HEAD", 200), ("PATCH", 204)]
    assert resumed.patched_offsets == [reached]
    check(place, resumed.url, data)


@pytest.mark.parametrize("chunk_size", [3 * PART, 2 * MEBI])
def test_upload_survives_the_death_of_the_server(
    server: ServerProcess, place: Place, client: Client, chunk_size: int
) -> None:
    data = payload(2 * PART)
    reached = PART + MEBI + 77
    run = client.upload(
        data,
        endpoint=server.url,
        hold_after=reached,
        on_event=lambda event: server.restart(),
        retryDelays=[200] * 150,
        chunkSize=chunk_size,
    )
    assert run.error is None
    assert len(run.of("POST")) == 1
    answered = [request for request in run.of("HEAD") if request.status is not None]
    assert [(one.status, one.answered_offset) for one in answered] == [(200, str(reached))]
    check(place, run.url, data)


def test_running_upload_is_terminated(server: ServerProcess, place: Place, client: Client) -> None:
    run = client.upload(
        payload(2 * PART), endpoint=server.url, hold_after=PART + MEBI, ending="terminate", retryDelays=[0, 500, 1000]
    )
    assert run.of("DELETE")[-1].status == 204
    assert head(run.url).status == 404
    assert place.traces_of(run.url) == []


@pytest.mark.parametrize("size", [0, 1000, PART + 17])
@pytest.mark.parametrize("verified", [False, True], ids=["plain", "with checksums"])
def test_tuspy_uploads_in_chunks(server: ServerProcess, place: Place, size: int, verified: bool) -> None:
    data = payload(size)
    uploader = TusClient(server.url).uploader(
        file_stream=io.BytesIO(data), chunk_size=900 * KIBI, upload_checksum=verified, metadata={"filename": "a.bin"}
    )
    uploader.upload()
    assert uploader.offset == len(data)
    check(place, url_of(uploader), data)


def test_tuspy_resumes_with_the_url(server: ServerProcess, place: Place) -> None:
    data = payload(PART + MEBI)
    first = TusClient(server.url).uploader(file_stream=io.BytesIO(data), chunk_size=900 * KIBI)
    first.upload(stop_at=4 * 900 * KIBI)
    server.restart()
    second = TusClient(server.url).uploader(file_stream=io.BytesIO(data), chunk_size=2 * MEBI, url=first.url)
    assert second.offset == 4 * 900 * KIBI
    second.upload()
    check(place, url_of(second), data)


@tuspy_async
async def test_tuspy_uploads_asynchronously(server: ServerProcess, place: Place) -> None:
    data = payload(PART + 17)
    uploader = TusClient(server.url).async_uploader(file_stream=io.BytesIO(data), chunk_size=MEBI)
    await uploader.upload()
    check(place, url_of(uploader), data)
