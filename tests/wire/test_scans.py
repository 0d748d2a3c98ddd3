"""`--clamd`: uploads are scanned before they are complete, or wait until they can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clamd import MALWARE, Clamd
from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place, serving as serving_s3
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Answer, creation_headers, path_of, payload
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, start_patch

CLEAN = payload(3_000_000)
BAD = CLEAN[:1_500_000] + MALWARE + CLEAN[1_500_000:]
SHORT_BAD = b"a" + MALWARE


@pytest.fixture
def clamd() -> Iterator[Clamd]:
    with Clamd() as daemon:
        yield daemon


@pytest.fixture(params=["disk", "shared", "s3"])
def site(request: pytest.FixtureRequest, clamd: Clamd, tmp_path: Path) -> Iterator[ServerProcess]:
    options: dict[str, Any] = {"clamd": clamd.address, "sweep_interval": "0s"}
    if request.param == "s3":
        with serving_s3(tmp_path, Place(s3_server()), **options) as server:
            yield server
        return
    if request.param == "shared":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    with serving(tmp_path, **options) as server:
        yield server


def send(site: ServerProcess, data: bytes, *, at_creation: bool = False) -> tuple[str, Answer]:
    """Upload; return the path, empty if there is no upload, and the last answer."""
    if at_creation:
        answer = request(site.port, "POST", "/files", creation_headers(len(data), data), data)
        return (path_of(answer) if "Location" in answer else ""), answer
    path = create(site.port, len(data))
    return path, patch(site.port, path, 0, data)


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.text.partition(":")[0]


@pytest.mark.parametrize("at_creation", [False, True])
def test_clean_upload_is_complete_and_malware_is_removed(site: ServerProcess, clamd: Clamd, at_creation: bool) -> None:
    for data in (CLEAN, b"short"):
        path, answer = send(site, data, at_creation=at_creation)
        assert answer.status in (201, 204)
        assert_content(site.port, path, data)
    assert clamd.scanned == [len(CLEAN), 5]
    for data in (BAD, SHORT_BAD):
        path, answer = send(site, data, at_creation=at_creation)
        assert code_of(answer) == (422, "ERR_MALWARE_FOUND")
        assert "Test.Malware" in answer.text
        if path:
            assert head(site.port, path).status == 404
            assert request(site.port, "GET", path).status == 404


def test_empty_upload_is_scanned_too(site: ServerProcess, clamd: Clamd) -> None:
    create(site.port, 0)
    assert clamd.scanned == [0]


def test_final_upload_is_scanned_and_its_parts_are_not(site: ServerProcess, clamd: Clamd) -> None:
    half = len(BAD) // 2
    parts = [create(site.port, len(piece), {"Upload-Concat": "partial"}, piece) for piece in (BAD[:half], BAD[half:])]
    assert clamd.scanned == []
    answer = request(site.port, "POST", "/files", TUS | {"Upload-Concat": "final;" + " ".join(parts)})
    assert code_of(answer) == (422, "ERR_MALWARE_FOUND")
    assert [offset_of(site.port, part) for part in parts] == [half, len(BAD) - half]


def test_partial_upload_cannot_be_downloaded(site: ServerProcess) -> None:
    part = create(site.port, len(BAD), {"Upload-Concat": "partial"}, BAD)
    assert offset_of(site.port, part) == len(BAD)
    assert request(site.port, "GET", part).status == 404
    with Connection(site.port) as connection:
        connection.send_head("HEAD", part)
        assert connection.answer().status == 404


@pytest.mark.parametrize("fault", ["UNKNOWN COMMAND", "", "x" * 100_000, "stream: broken ERROR"])
def test_upload_waits_until_it_can_be_scanned(site: ServerProcess, clamd: Clamd, fault: str) -> None:
    clamd.answer = fault
    path, answer = send(site, CLEAN)
    assert code_of(answer) == (503, "ERR_SCAN_UNAVAILABLE")
    assert answer["Retry-After"]
    assert request(site.port, "GET", path).status in (404, 503)
    assert head(site.port, path).status == 423
    assert code_of(patch(site.port, path, len(CLEAN), b"")) == (503, "ERR_SCAN_UNAVAILABLE")
    site.restart()
    clamd.answer = None
    assert patch(site.port, path, len(CLEAN), b"").status == 204
    assert_content(site.port, path, CLEAN)


def test_creation_that_cannot_be_scanned_tells_where_the_upload_is(site: ServerProcess, clamd: Clamd) -> None:
    clamd.answer = ""
    path, answer = send(site, CLEAN, at_creation=True)
    assert code_of(answer) == (503, "ERR_SCAN_UNAVAILABLE")
    clamd.answer = None
    wait_until(lambda: head(site.port, path).status == 200, "the upload is scanned")
    assert_content(site.port, path, CLEAN)


@pytest.mark.parametrize("says_why", [True, False])
def test_file_that_clamd_does_not_take_is_removed(site: ServerProcess, clamd: Clamd, says_why: bool) -> None:
    clamd.max_size, clamd.says_why = 100_000, says_why
    path, answer = send(site, CLEAN)
    assert code_of(answer) == (413, "ERR_SCAN_SIZE_EXCEEDED")
    assert head(site.port, path).status == 404


def test_file_is_scanned_again_after_a_connection_that_clamd_cut_off(site: ServerProcess, clamd: Clamd) -> None:
    """As a clamd does that is stopped while it reads."""
    for data, status in ((CLEAN, 204), (BAD, 422)):
        clamd.max_size, clamd.says_why, clamd.cuts = 100_000, False, 1
        path, answer = send(site, data)
        assert (answer.status, clamd.cuts) == (status, 0)
        if status == 204:
            assert_content(site.port, path, data)
    assert clamd.scanned == [len(CLEAN), len(BAD)]


def test_upload_waits_if_clamd_is_away_after_a_cut(site: ServerProcess, clamd: Clamd) -> None:
    clamd.max_size, clamd.says_why, clamd.cuts, clamd.answer = 100_000, False, 1, ""
    path, answer = send(site, CLEAN)
    assert (code_of(answer), clamd.cuts) == ((503, "ERR_SCAN_UNAVAILABLE"), 0)
    assert head(site.port, path).status == 423
    clamd.answer = None
    assert patch(site.port, path, len(CLEAN), b"").status == 204
    assert_content(site.port, path, CLEAN)


def test_scan_that_takes_too_long_is_given_up(clamd: Clamd, tmp_path: Path) -> None:
    clamd.goes_on.clear()
    with serving(tmp_path, clamd=clamd.address, scan_timeout="2s", sweep_interval="0s") as site:
        path, answer = send(site, b"abcd")
        assert code_of(answer) == (503, "ERR_SCAN_UNAVAILABLE")
        clamd.goes_on.set()
        wait_until(lambda: head(site.port, path).status == 200, "the upload is scanned")


def test_shutdown_does_not_wait_for_a_scan(clamd: Clamd, tmp_path: Path) -> None:
    # The stock protocol class logs the request that it cancels with its stack.
    with ServerProcess(tmp_path / "uploads", clamd=clamd.address, shutdown_grace="500ms") as site:
        path = create(site.port, 4)
        clamd.goes_on.clear()
        with start_patch(site.port, path, 0, 4) as connection:
            connection.send(b"abcd")
            wait_until(lambda: head(site.port, path).status == 423, "the scan has begun")
            site.terminate()
        clamd.goes_on.set()
        site.start_again()
        wait_until(lambda: head(site.port, path).status == 200, "the upload is scanned")


def test_open_server_takes_what_cannot_be_scanned(clamd: Clamd, tmp_path: Path) -> None:
    options = {"clamd": clamd.address, "scan_fail": "open", "scan_max_size": 10_000, "scan_timeout": "60s"}
    with serving(tmp_path, **options) as site:
        for data in (CLEAN, BAD):
            path, answer = send(site, data)
            assert answer.status == 204
            assert_content(site.port, path, data)
        assert clamd.scanned == []
        assert send(site, SHORT_BAD)[1].status == 422
        for fault in ("", "UNKNOWN COMMAND"):
            clamd.answer = fault
            path, answer = send(site, SHORT_BAD)
            assert answer.status == 204
            assert_content(site.port, path, SHORT_BAD)
        log = "".join(site.log)
    assert "is taken although it was not scanned" in log


def test_closed_server_refuses_what_is_too_large_to_be_scanned(clamd: Clamd, tmp_path: Path) -> None:
    with serving(tmp_path, clamd=clamd.address, scan_max_size=10_000) as site:
        assert request(site.port, "OPTIONS", "/files")["Tus-Max-Size"] == "10000"
        answer = request(site.port, "POST", "/files", creation_headers(10_001))
        assert code_of(answer) == (413, "ERR_MAX_SIZE_EXCEEDED")


def test_clamd_on_a_socket_and_clamd_that_is_away(tmp_path: Path) -> None:
    path = tmp_path / "clamd.ctl"
    with serving(tmp_path, clamd=f"unix:{path}", sweep_interval="0s") as site:
        upload, answer = send(site, b"abcd")
        assert code_of(answer) == (503, "ERR_SCAN_UNAVAILABLE")
        assert str(path) not in answer.text
        with Clamd(path) as daemon:
            wait_until(lambda: head(site.port, upload).status == 200, "the upload is scanned")
            assert send(site, SHORT_BAD)[1].status == 422
            assert daemon.scanned == [4, len(SHORT_BAD)]
