"""Uppy in a headless Chromium, on a page of another origin, against a real server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.auth.site import ask, jwt_of, token_files
from tests.clients.support import KIBI, MEBI, Sent, downloaded, head, payload, run_node, sent, sha256
from tests.conftest import require
from tests.support.harness import ServerProcess, serving


@dataclass(frozen=True)
class Run:
    urls: list[str]
    errors: list[str]
    requests: list[Sent]
    stored_at_pause: int | None
    requests_at_pause: int | None

    @property
    def steps(self) -> list[tuple[str, int | None]]:
        return [(request.method, request.status) for request in self.requests]


class Browser:
    """Uploads one file with Uppy; the keywords are options of its tus plugin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chromium = require("chromium")

    def upload(
        self,
        data: bytes,
        *,
        pause_after: int | None = None,
        cancel: bool = False,
        slow: bool = False,
        tokens: Sequence[tuple[str, int]] | None = None,
        **options: object,
    ) -> Run:
        """Upload a file.

        `pause_after` pauses after so many bytes on a slow network, then resumes or cancels; `slow` is for a slow
        network to the end. Each of `tokens` is sent with so many requests, the last one with all that follow.
        """
        self.path.write_bytes(data)
        scenario = {
            "chromium": self.chromium,
            "path": str(self.path),
            "pause_after": pause_after,
            "bytes_per_second": 2 * MEBI if slow or pause_after else None,
            "cancel": cancel,
            "tokens": tokens,
            "options": {"retryDelays": []} | options,
        }
        result = run_node("uppy.mjs", "uppy", scenario)
        return Run(
            result["urls"],
            result["errors"],
            sent(result),
            result["stored_at_pause"],
            result["requests_at_pause"],
        )


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path / "payload")


def test_page_of_another_origin_uploads(server: ServerProcess, browser: Browser) -> None:
    data = payload(2 * MEBI + 5)
    run = browser.upload(data, endpoint=server.url)
    assert run.errors == []
    assert run.steps == [("POST", 201), ("PATCH", 204)]
    (url,) = run.urls
    assert downloaded(url) == sha256(data)
    assert head(url).headers["upload-metadata"] == run.requests[0].headers["upload-metadata"]


def test_page_uploads_in_chunks_with_data_during_creation(server: ServerProcess, browser: Browser) -> None:
    data = payload(1 * MEBI + 5)
    run = browser.upload(data, endpoint=server.url, chunkSize=512 * KIBI, uploadDataDuringCreation=True)
    assert run.errors == []
    assert run.steps == [("POST", 201), ("PATCH", 204), ("PATCH", 204)]
    assert [request.offset for request in run.requests[1:]] == [512 * KIBI, 1 * MEBI]
    assert downloaded(run.urls[0]) == sha256(data)


def test_page_uploads_parts_in_parallel(server: ServerProcess, browser: Browser) -> None:
    data = payload(1 * MEBI + 5)
    run = browser.upload(data, endpoint=server.url, parallelUploads=2)
    assert run.errors == []
    assert run.steps.count(("POST", 201)) == 3
    assert run.steps.count(("PATCH", 204)) == 2
    assert downloaded(run.urls[0]) == sha256(data)


def test_paused_upload_continues_at_the_byte_it_reached(server: ServerProcess, browser: Browser) -> None:
    data = payload(6 * MEBI)
    # Uppy's own delays: right after the pause the aborted request may still hold the upload, which answers 423.
    run = browser.upload(data, endpoint=server.url, pause_after=2 * MEBI, retryDelays=[100, 1000, 3000, 5000])
    assert run.errors == []
    assert run.stored_at_pause is not None
    assert run.requests_at_pause is not None
    before, after = run.requests[: run.requests_at_pause], run.requests[run.requests_at_pause :]
    assert [(request.method, request.status) for request in before] == [("POST", 201), ("PATCH", None)]

    assert {request.method for request in after} == {"HEAD", "PATCH"}
    known = next(request for request in after if request.method == "HEAD" and request.status == 200)
    offsets = [request.offset for request in after if request.method == "PATCH"]
    assert known.answered_offset == str(offsets[0])
    assert 0 < run.stored_at_pause <= offsets[0] < len(data)
    assert after[-1].status == 204
    assert downloaded(run.urls[0]) == sha256(data)


def test_cancelled_upload_is_terminated(server: ServerProcess, browser: Browser) -> None:
    run = browser.upload(payload(6 * MEBI), endpoint=server.url, pause_after=1 * MEBI, cancel=True)
    assert run.steps == [("POST", 201), ("PATCH", None), ("DELETE", 204)]
    assert head(run.requests[-1].url).status == 404


def test_origin_that_matches_a_pattern_may_upload(tmp_path: Path, browser: Browser) -> None:
    data = payload(100 * KIBI)
    with ServerProcess(tmp_path / "uploads", cors_origins="https://app.example,http://127.0.0.1:*") as server:
        run = browser.upload(data, endpoint=server.url)
        assert run.errors == []
        assert downloaded(run.urls[0]) == sha256(data)


def test_origin_that_is_not_allowed_fails_before_anything_is_created(tmp_path: Path, browser: Browser) -> None:
    with ServerProcess(tmp_path / "uploads", cors_origins="https://app.example") as server:
        run = browser.upload(payload(100 * KIBI), endpoint=server.url)
    assert run.urls == []
    assert len(run.errors) == 1
    assert run.steps == [("POST", None)]  # the preflight's answer forbids it, it is never sent


def test_token_that_expires_in_the_middle_is_renewed_and_the_upload_goes_on(tmp_path: Path, browser: Browser) -> None:
    data = payload(2 * MEBI + 5)
    tokens = [(jwt_of("ann"), 2), (jwt_of("ann", exp=1), 3), (jwt_of("ann"), 0)]
    with serving(tmp_path, **token_files(tmp_path)) as server:
        run = browser.upload(data, endpoint=server.url, chunkSize=1 * MEBI, retryDelays=[0] * 5, tokens=tokens)
        assert run.errors == []
        assert run.steps == [
            ("POST", 201),
            ("PATCH", 204),
            ("PATCH", 401),
            *[("HEAD", 423)] * 2,
            ("HEAD", 200),
            *[("PATCH", 204)] * 2,
        ]
        assert [request.offset for request in run.requests if request.status == 204] == [0, 1 * MEBI, 2 * MEBI]
        assert ask(server, jwt_of("ann"), "GET", run.urls[0].removeprefix(server.origin)).body == data


def test_large_request_with_an_expired_token_makes_no_second_upload(tmp_path: Path, browser: Browser) -> None:
    """The body takes longer than the server reads a refused one, so that the page may see the connection end only."""
    data = payload(8 * MEBI)
    tokens = [(jwt_of("ann"), 1), (jwt_of("ann", exp=1), 2), (jwt_of("ann"), 0)]
    with serving(tmp_path, **token_files(tmp_path)) as server:
        run = browser.upload(data, slow=True, endpoint=server.url, retryDelays=[0] * 5, tokens=tokens)
        assert run.errors == []
        assert [method for method, _ in run.steps] == ["POST", "PATCH", "HEAD", "HEAD", "PATCH"]
        assert run.steps[2:] == [("HEAD", 423), ("HEAD", 200), ("PATCH", 204)]
        assert ask(server, jwt_of("ann"), "GET", run.urls[0].removeprefix(server.origin)).body == data
