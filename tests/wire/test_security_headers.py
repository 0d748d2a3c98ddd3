"""The header fields by which browsers are told to be careful, on every answer of a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Answer, Headers, creation_headers, metadata, patch_headers
from tests.support.wire.requests import create, request

DATA = b"<html>"
PREFLIGHT = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "PATCH"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("headers"), no_pages=True) as server:
        yield server


@pytest.fixture(scope="module")
def finished(site: ServerProcess) -> str:
    return create(site.port, len(DATA), {"Upload-Metadata": metadata(filetype="text/html")}, DATA)


def assert_careful(answer: Answer) -> None:
    assert answer.all("X-Content-Type-Options") == ["nosniff"], answer
    assert answer.all("Referrer-Policy") == ["no-referrer"], answer


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("OPTIONS", "/files", {}, 200),
        ("OPTIONS", "/files", PREFLIGHT, 200),
        ("POST", "/files", creation_headers(4), 201),
        ("POST", "/files", {"Tus-Resumable": "0.2.2"}, 412),
        ("POST", "/files", TUS, 400),
        ("PUT", "/files", TUS, 405),
        ("GET", "/files/unknown", {}, 404),
        ("HEAD", "/files/unknown", TUS, 404),
        ("PATCH", "/files/unknown", patch_headers(0), 404),
        ("GET", "/nothing", {}, 404),
        ("GET", "/", {}, 200),
        ("GET", "/healthz", {}, 200),
        ("POST", "/healthz", {}, 405),
        ("GET", "/readyz", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("DELETE", "/metrics", {}, 405),
    ],
)
def test_answer_is_careful(site: ServerProcess, method: str, path: str, headers: Headers, status: int) -> None:
    answer = request(site.port, method, path, headers)
    assert answer.status == status
    assert_careful(answer)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_text_loads_nothing_and_is_part_of_no_page(site: ServerProcess, path: str) -> None:
    answer = request(site.port, "GET", path)
    assert answer.all("Content-Security-Policy") == ["default-src 'none'; frame-ancestors 'none'"]


@pytest.mark.parametrize(("method", "headers"), [("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=9-"})])
def test_answer_about_finished_upload_is_careful(
    site: ServerProcess, finished: str, method: str, headers: Headers
) -> None:
    assert_careful(request(site.port, method, finished, headers))


def test_download_of_what_a_browser_could_run_is_a_sandboxed_attachment(site: ServerProcess, finished: str) -> None:
    answer = request(site.port, "GET", finished)
    assert answer["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer["Content-Disposition"].startswith("attachment")


@pytest.mark.integrated
def test_answer_to_what_is_no_request_is_careful(site: ServerProcess) -> None:
    with Connection(site.port) as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert_careful(connection.answer())
