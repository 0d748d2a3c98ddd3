"""tus-js-client in node against a real server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.auth.site import ask, create, jwt_of, token_files
from tests.clients.support import KIBI, MEBI, Sent, downloaded, head, payload, run_node, sent, sha256
from tests.support.harness import ServerProcess, serving


@dataclass(frozen=True)
class Run:
    url: str
    error: str | None
    requests: list[Sent]

    def of(self, method: str) -> list[Sent]:
        return [request for request in self.requests if request.method == method]

    @property
    def patched_offsets(self) -> list[int]:
        return [request.offset for request in self.of("PATCH")]


class Client:
    """A run of tus-js-client with one file; the keywords are its options."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def upload(
        self,
        data: bytes,
        *,
        source: str = "buffer",
        hold_after: int | None = None,
        ending: str = "wait",
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        tokens: Sequence[tuple[str, int]] | None = None,
        **options: object,
    ) -> Run:
        """Upload the file.

        `hold_after` stops the body there until it is stored, `ending` tells what to do then. Each of `tokens` is sent
        with so many requests, the last one with all that follow.
        """
        self.path.write_bytes(data)
        scenario = {
            "path": str(self.path),
            "source": source,
            "hold_after": hold_after,
            "ending": ending,
            "tokens": tokens,
            "options": options,
        }
        result = run_node("tus_js.mjs", "tus-js-client", scenario, on_event)
        return Run(result["url"], result["error"], sent(result))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "payload")


@pytest.mark.parametrize("source", ["buffer", "file"])
def test_plain_upload_is_one_creation_and_one_patch(server: ServerProcess, client: Client, source: str) -> None:
    data = payload(3 * MEBI + 1)
    run = client.upload(data, source=source, endpoint=server.url)
    assert run.error is None
    assert [(one.method, one.status, one.answered_offset) for one in run.requests] == [
        ("POST", 201, "0"),
        ("PATCH", 204, str(len(data))),
    ]
    assert downloaded(run.url) == sha256(data)


def test_creation_url_may_end_in_a_slash(server: ServerProcess, client: Client) -> None:
    data = payload(1000)
    run = client.upload(data, endpoint=server.url.rstrip("/") + "/")
    assert run.error is None
    assert downloaded(run.url) == sha256(data)


def test_chunks_continue_where_the_last_one_ended(server: ServerProcess, client: Client) -> None:
    data = payload(1 * MEBI + 123)
    run = client.upload(data, endpoint=server.url, chunkSize=256 * KIBI)
    assert run.error is None
    assert run.patched_offsets == [0, 256 * KIBI, 512 * KIBI, 768 * KIBI, 1 * MEBI]
    assert {request.status for request in run.of("PATCH")} == {204}
    assert downloaded(run.url) == sha256(data)


def test_empty_file_is_complete_after_its_creation(server: ServerProcess, client: Client) -> None:
    run = client.upload(b"", endpoint=server.url)
    assert run.error is None
    assert [(one.method, one.status, one.headers["upload-length"]) for one in run.requests] == [("POST", 201, "0")]
    assert downloaded(run.url) == sha256(b"")


@pytest.mark.parametrize("workers", [1, 2])
def test_new_upload_object_resumes_an_aborted_request_at_the_byte_it_reached(
    tmp_path: Path, client: Client, workers: int
) -> None:
    data = payload(4 * MEBI)
    reached = 1 * MEBI + 77
    with ServerProcess(tmp_path / "uploads", workers=workers) as server:
        aborted = client.upload(data, endpoint=server.url, hold_after=reached, ending="abort")
        assert [(one.method, one.status) for one in aborted.requests] == [("POST", 201), ("PATCH", None)]

        resumed = client.upload(data, endpoint=server.url, uploadUrl=aborted.url)
        assert resumed.error is None
        assert resumed.url == aborted.url
        assert [(one.method, one.status) for one in resumed.requests] == [("HEAD", 200), ("PATCH", 204)]
        assert resumed.requests[0].answered_offset == str(reached)
        assert resumed.patched_offsets == [reached]
        assert downloaded(resumed.url) == sha256(data)


def test_resuming_a_finished_upload_sends_nothing_again(server: ServerProcess, client: Client) -> None:
    data = payload(1000)
    first = client.upload(data, endpoint=server.url)
    again = client.upload(data, endpoint=server.url, uploadUrl=first.url)
    assert again.error is None
    assert again.url == first.url
    assert [(one.method, one.status) for one in again.requests] == [("HEAD", 200)]


@pytest.mark.parametrize("chunk_size", [4 * MEBI, 512 * KIBI])
def test_upload_survives_the_death_of_the_server(server: ServerProcess, client: Client, chunk_size: int) -> None:
    data = payload(4 * MEBI)
    reached = 1 * MEBI + 77
    run = client.upload(
        data,
        endpoint=server.url,
        hold_after=reached,
        on_event=lambda event: server.restart(),
        retryDelays=[200] * 150,
        chunkSize=chunk_size,
    )
    assert run.error is None
    answered_heads = [request for request in run.of("HEAD") if request.status is not None]
    assert [(one.status, one.answered_offset) for one in answered_heads] == [(200, str(reached))]
    # The restart is between the last data of the first attempt and that HEAD.
    after = run.requests[run.requests.index(answered_heads[0]) + 1 :]
    assert [request.offset for request in after] == list(range(reached, len(data), chunk_size))
    assert downloaded(run.url) == sha256(data)


@pytest.mark.parametrize("size", [0, 2, 1 * MEBI + 1])
def test_parallel_uploads_are_concatenated(server: ServerProcess, client: Client, size: int) -> None:
    """Fewer bytes than parts means partial uploads of no bytes."""
    data = payload(size)
    run = client.upload(data, endpoint=server.url, parallelUploads=3, metadata={"filename": "parallel.bin"})
    assert run.error is None
    *partials, final = run.of("POST")
    part = size // 3
    assert sorted(int(one.headers["upload-length"]) for one in partials) == sorted([part, part, size - 2 * part])
    assert {one.headers["upload-concat"] for one in partials} == {"partial"}
    assert {one.status for one in run.of("POST")} == {201}
    assert {one.status for one in run.of("PATCH")} <= {204}

    state = head(run.url)
    assert state.status == 200
    assert state.headers["upload-concat"] == final.headers["upload-concat"]
    assert state.headers["upload-length"] == str(size)
    assert state.headers["upload-metadata"] == final.headers["upload-metadata"]
    assert downloaded(run.url) == sha256(data)


def test_length_of_a_stream_is_declared_at_its_end(server: ServerProcess, client: Client) -> None:
    data = payload(250 * KIBI + 3)  # not a multiple of the chunk: there the client itself can wait for ever
    run = client.upload(data, source="stream", endpoint=server.url, uploadLengthDeferred=True, chunkSize=100 * KIBI)
    assert run.error is None
    assert run.requests[0].headers["upload-defer-length"] == "1"
    assert "upload-length" not in run.requests[0].headers
    assert [one.headers["upload-length"] for one in run.of("PATCH") if "upload-length" in one.headers] == [
        str(len(data))
    ]
    assert run.patched_offsets[:3] == [0, 100 * KIBI, 200 * KIBI]
    assert downloaded(run.url) == sha256(data)


def test_deferred_length_with_data_during_creation_needs_no_retry(server: ServerProcess, client: Client) -> None:
    """The client sends no body with such a creation, but still reads the offset from its answer."""
    data = payload(150 * KIBI)
    run = client.upload(
        data,
        source="stream",
        endpoint=server.url,
        uploadLengthDeferred=True,
        uploadDataDuringCreation=True,
        chunkSize=100 * KIBI,
    )
    assert run.error is None
    assert run.requests[0].answered_offset == "0"
    assert run.of("HEAD") == []
    assert downloaded(run.url) == sha256(data)


def test_data_during_creation_is_complete_in_one_request(server: ServerProcess, client: Client) -> None:
    data = payload(1 * MEBI)
    run = client.upload(data, endpoint=server.url, uploadDataDuringCreation=True)
    assert run.error is None
    assert [(one.method, one.status, one.answered_offset) for one in run.requests] == [("POST", 201, str(len(data)))]
    assert downloaded(run.url) == sha256(data)


def test_first_chunk_during_creation(server: ServerProcess, client: Client) -> None:
    data = payload(250 * KIBI)
    run = client.upload(data, endpoint=server.url, uploadDataDuringCreation=True, chunkSize=100 * KIBI)
    assert run.error is None
    assert run.requests[0].answered_offset == str(100 * KIBI)
    assert run.patched_offsets == [100 * KIBI, 200 * KIBI]
    assert downloaded(run.url) == sha256(data)


def test_running_upload_is_terminated(server: ServerProcess, client: Client) -> None:
    run = client.upload(
        payload(4 * MEBI), endpoint=server.url, hold_after=1 * MEBI, ending="terminate", retryDelays=[0, 500, 1000]
    )
    assert run.of("DELETE")[-1].status == 204
    state = head(run.url)
    assert state.status == 404
    assert "upload-offset" not in state.headers


def test_finished_upload_is_terminated(server: ServerProcess, client: Client) -> None:
    run = client.upload(payload(1000), endpoint=server.url, ending="terminate")
    assert [(one.method, one.status) for one in run.requests] == [("POST", 201), ("PATCH", 204), ("DELETE", 204)]
    assert head(run.url).status == 404


@pytest.mark.parametrize(
    "metadata",
    [
        {"filename": "Prüfung – 中文 🎧.webm", "empty": "", "filetype": "audio/webm;codecs=opus, x"},
        {"filename": "name", "filetype": ""},
        {"empty": ""},
    ],
)
def test_metadata_is_answered_byte_for_byte(server: ServerProcess, client: Client, metadata: dict[str, str]) -> None:
    run = client.upload(payload(100), endpoint=server.url, metadata=metadata)
    assert run.error is None
    # The space before a last empty value ends the field, where it is not part of the value.
    assert head(run.url).headers["upload-metadata"] == run.requests[0].headers["upload-metadata"].strip()


def test_patch_as_an_overridden_post(server: ServerProcess, client: Client) -> None:
    data = payload(250 * KIBI)
    run = client.upload(data, endpoint=server.url, overridePatchMethod=True, chunkSize=100 * KIBI)
    assert run.error is None
    patches = run.requests[1:]
    assert {(one.method, one.headers["x-http-method-override"], one.status) for one in patches} == {
        ("POST", "PATCH", 204)
    }
    assert [one.offset for one in patches] == [0, 100 * KIBI, 200 * KIBI]
    assert downloaded(run.url) == sha256(data)


def test_upload_over_the_maximum_is_refused_at_once(tmp_path: Path, client: Client) -> None:
    with ServerProcess(tmp_path / "uploads", max_size="1MiB") as server:
        run = client.upload(payload(1 * MEBI + 1), endpoint=server.url, retryDelays=[0, 0])
    assert [(one.method, one.status) for one in run.requests] == [("POST", 413)]
    assert run.error is not None
    assert "413" in run.error


# Tokens that expire.


@pytest.mark.parametrize("refusals", [1, 3])
def test_token_that_expires_in_the_middle_is_renewed_and_the_upload_goes_on(
    tmp_path: Path, client: Client, refusals: int
) -> None:
    data = payload(500 * KIBI)
    tokens = [(jwt_of("ann"), 3), (jwt_of("ann", exp=1), refusals), (jwt_of("ann"), 0)]
    with serving(tmp_path, **token_files(tmp_path)) as server:
        run = client.upload(data, endpoint=server.url, chunkSize=100 * KIBI, retryDelays=[0] * 5, tokens=tokens)
        assert run.error is None
        assert [(one.method, one.status) for one in run.requests] == [
            ("POST", 201),
            ("PATCH", 204),
            ("PATCH", 204),
            ("PATCH", 401),
            *[("HEAD", 423)] * (refusals - 1),
            ("HEAD", 200),
            *[("PATCH", 204)] * 3,
        ]
        assert run.patched_offsets == [offset * 100 * KIBI for offset in (0, 1, 2, 2, 3, 4)]
        assert ask(server, jwt_of("ann"), "GET", run.url.removeprefix(server.origin)).body == data


def test_large_request_with_an_expired_token_is_sent_again_from_its_beginning_only(
    tmp_path: Path, client: Client
) -> None:
    data = payload(16 * MEBI)
    tokens = [(jwt_of("ann"), 1), (jwt_of("ann", exp=1), 2), (jwt_of("ann"), 0)]
    with serving(tmp_path, **token_files(tmp_path)) as server:
        run = client.upload(data, endpoint=server.url, retryDelays=[0] * 5, tokens=tokens)
        assert run.error is None
        created, refused, *others = run.requests
        assert (created.method, created.status) == ("POST", 201)
        assert refused.status in (401, None)  # None: the connection ended under the body before the answer was read
        assert [(one.method, one.status) for one in others] == [("HEAD", 423), ("HEAD", 200), ("PATCH", 204)]
        assert ask(server, jwt_of("ann"), "GET", run.url.removeprefix(server.origin)).body == data


def test_client_that_comes_back_with_an_expired_token_goes_on_where_it_was(tmp_path: Path, client: Client) -> None:
    data = payload(300 * KIBI)
    with serving(tmp_path, **token_files(tmp_path)) as server:
        path = create(server, jwt_of("ann"), len(data), data[: 100 * KIBI])
        options: dict[str, Any] = {"endpoint": server.url, "uploadUrl": server.origin + path, "retryDelays": [0] * 3}
        refused = client.upload(data, tokens=[(jwt_of("ann", exp=1), 0)], **options)
        assert refused.error is not None
        assert [(one.method, one.status) for one in refused.requests] == [("HEAD", 423)] * 4
        assert refused.url == server.origin + path
        run = client.upload(data, tokens=[(jwt_of("ann", exp=1), 2), (jwt_of("ann"), 0)], **options)
        assert run.error is None
        assert [(one.method, one.status) for one in run.requests] == [
            *[("HEAD", 423)] * 2,
            ("HEAD", 200),
            ("PATCH", 204),
        ]
        assert run.patched_offsets == [100 * KIBI]
        assert ask(server, jwt_of("ann"), "GET", path).body == data
