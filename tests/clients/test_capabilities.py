"""tus-js-client and tuspy with a capability in `Location`, and with a URL that grants one creation."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tusclient.client import TusClient

from tests.auth.signing import creation, signing_files
from tests.auth.site import OWNER, ask, bearer
from tests.clients.support import KIBI, MEBI, payload, sha256
from tests.clients.test_tus_js import Client
from tests.support.harness import ServerProcess
from tests.support.timing import wait_until


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "payload")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "uploads", **signing_files(tmp_path, capability_urls=True)) as server:
        yield server


def end_token(server: ServerProcess, tokens: Path, path: str) -> None:
    """Take the tokens of the owner out of their file, and wait until the server does not know them any more."""
    tokens.write_text("".join(line for line in tokens.read_text().splitlines(True) if not line.startswith("ann:")))
    wait_until(lambda: ask(server, OWNER, "HEAD", path).status == 401)


@pytest.mark.parametrize("interruption", ["connection", "server"])
def test_upload_goes_on_although_its_token_has_ended(
    server: ServerProcess, client: Client, tmp_path: Path, interruption: str
) -> None:
    data, reached = payload(4 * MEBI), 1 * MEBI + 77
    tokens = tmp_path / "tokens"
    before = tokens.read_text()
    options: dict[str, Any] = {"endpoint": server.url, "headers": bearer(OWNER), "hold_after": reached}
    if interruption == "connection":
        run = client.upload(data, ending="abort", **options)
        path = run.url.removeprefix(server.origin).partition("?")[0]
        end_token(server, tokens, path)
        run = client.upload(data, endpoint=server.url, uploadUrl=run.url, headers=bearer(OWNER))
    else:

        def interrupt(event: Mapping[str, Any]) -> None:
            end_token(server, tokens, event["url"].removeprefix(server.origin).partition("?")[0])
            server.restart()

        run = client.upload(data, on_event=interrupt, retryDelays=[200] * 150, **options)
        path = run.url.removeprefix(server.origin).partition("?")[0]
    assert run.error is None
    assert "?k=" in run.url
    answered = [(one.status, one.answered_offset) for one in run.of("HEAD") if one.status is not None]
    assert answered == [(200, str(reached))]
    assert run.patched_offsets[-1] == reached
    tokens.write_text(before)
    wait_until(lambda: ask(server, OWNER, "HEAD", path).status == 200)
    assert sha256(ask(server, OWNER, "GET", path).body) == sha256(data)


def test_parallel_uploads_are_concatenated_by_their_urls_with_capabilities(
    server: ServerProcess, client: Client
) -> None:
    data = payload(1 * MEBI + 1)
    run = client.upload(data, endpoint=server.url, headers=bearer(OWNER), parallelUploads=3)
    assert run.error is None
    assert run.of("POST")[-1].headers["upload-concat"].count("?k=") == 3
    path = run.url.removeprefix(server.origin).partition("?")[0]
    assert "k=" not in ask(server, OWNER, "HEAD", path)["Upload-Concat"]
    assert sha256(ask(server, OWNER, "GET", path).body) == sha256(data)


def test_url_of_one_creation_is_an_endpoint(server: ServerProcess, client: Client) -> None:
    data = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + payload(1 * MEBI + 1)
    endpoint = server.origin + creation(owner="ann", types=["video/*"], metadata={"project": "7"})
    refused = client.upload(data, endpoint=endpoint, metadata={"filetype": "text/plain"})
    assert [(one.method, one.status) for one in refused.requests] == [("POST", 415)]
    run = client.upload(data, endpoint=endpoint, metadata={"filetype": "video/mp4"})
    assert run.error is None
    path = run.url.removeprefix(server.origin).partition("?")[0]
    assert sha256(ask(server, OWNER, "GET", path).body) == sha256(data)
    again = client.upload(data, endpoint=endpoint, metadata={"filetype": "video/mp4"}, retryDelays=[0, 0])
    assert [(one.method, one.status) for one in again.requests] == [("POST", 401)]
    assert "this URL has created its upload" in (again.error or "")


def test_tuspy_needs_no_token_after_the_creation(server: ServerProcess) -> None:
    data = payload(300 * KIBI)
    client = TusClient(server.url, headers=bearer(OWNER))
    uploader = client.uploader(file_stream=io.BytesIO(data), chunk_size=100 * KIBI)
    uploader.upload(stop_at=100 * KIBI)
    stranger = TusClient(server.url, headers=bearer("unknown"))
    resumed = stranger.uploader(file_stream=io.BytesIO(data), chunk_size=100 * KIBI, url=uploader.url)
    assert resumed.offset == 100 * KIBI
    resumed.upload()
    path = str(resumed.url).removeprefix(server.origin).partition("?")[0]
    assert sha256(ask(server, OWNER, "GET", path).body) == sha256(data)


def test_tuspy_uploads_to_the_url_of_one_creation(server: ServerProcess) -> None:
    client = TusClient(server.origin + creation(owner="ann"))
    uploader = client.uploader(file_stream=io.BytesIO(b"data"))
    uploader.upload()
    path = str(uploader.url).removeprefix(server.origin).partition("?")[0]
    assert ask(server, OWNER, "GET", path).body == b"data"
