"""`tusd-py serve --clamd` with the real clamd: verdicts, its limit of size, and its death in the middle of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clamd_daemon import MARKER, SIGNATURE, STREAM_MAX, ClamdDaemon
from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.timing import wait_until
from tests.support.wire.messages import TUS, Answer, creation_headers, path_of, payload
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, start_patch

CLEAN = payload(STREAM_MAX)
HALF = STREAM_MAX // 2
BAD = CLEAN[: HALF - 10] + MARKER + CLEAN[HALF - 10 + len(MARKER) :]  # from before the middle to behind it
SHORT_BAD = b"a" + MARKER
LONG = payload(8 * STREAM_MAX)


@pytest.fixture(scope="module")
def clamd() -> Iterator[ClamdDaemon]:
    with ClamdDaemon() as daemon:
        yield daemon


@pytest.fixture(scope="module", params=["socket", "port"])
def address(request: pytest.FixtureRequest, clamd: ClamdDaemon) -> str:
    return clamd.on_socket if request.param == "socket" else clamd.on_port


@pytest.fixture(scope="module")
def site(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("closed"), clamd=address, sweep_interval="0s") as server:
        yield server


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.text.partition(":")[0]


def assert_found(answer: Answer) -> None:
    assert code_of(answer) == (422, "ERR_MALWARE_FOUND")
    assert SIGNATURE in answer.text


def post(site: ServerProcess, data: bytes) -> Answer:
    return request(site.port, "POST", "/files", creation_headers(len(data), data), data)


def upload(site: ServerProcess, data: bytes) -> tuple[str, Answer]:
    """Create an upload and send its bytes; return its path and the last answer."""
    path = create(site.port, len(data))
    return path, patch(site.port, path, 0, data)


@pytest.mark.parametrize("data", [CLEAN, b"short", MARKER[:-1], b""], ids=["limit", "short", "part", "empty"])
def test_clean_uploads_are_taken(site: ServerProcess, data: bytes) -> None:
    made = post(site, data)
    assert made.status == 201
    assert_content(site.port, path_of(made), data)
    if data:
        path, answer = upload(site, data)
        assert answer.status == 204
        assert_content(site.port, path, data)


@pytest.mark.parametrize("data", [BAD, SHORT_BAD, MARKER], ids=["long", "short", "alone"])
def test_malware_is_refused_and_removed(site: ServerProcess, data: bytes) -> None:
    with unchanged(site):
        path, answer = upload(site, data)
        assert_found(answer)
        assert head(site.port, path).status == 404
        assert request(site.port, "GET", path).status == 404
        assert_found(post(site, data))


def test_malware_on_both_sides_of_a_boundary_of_requests_is_found(site: ServerProcess) -> None:
    with unchanged(site):
        path = create(site.port, len(BAD))
        assert patch(site.port, path, 0, BAD[:HALF]).status == 204
        assert request(site.port, "GET", path).status == 404
        assert_found(patch(site.port, path, HALF, BAD[HALF:]))
        assert head(site.port, path).status == 404


def test_malware_on_both_sides_of_a_boundary_of_parts_is_found(site: ServerProcess) -> None:
    parts = [create(site.port, HALF, {"Upload-Concat": "partial"}, piece) for piece in (BAD[:HALF], BAD[HALF:])]
    for order, found in ((parts, True), (parts[::-1], False)):
        answer = request(site.port, "POST", "/files", TUS | {"Upload-Concat": "final;" + " ".join(order)})
        if found:
            assert_found(answer)
            assert [offset_of(site.port, part) for part in parts] == [HALF, HALF]
        else:
            assert answer.status == 201
            assert_content(site.port, path_of(answer), BAD[HALF:] + BAD[:HALF])


@pytest.mark.parametrize("more", [1, len(LONG) - STREAM_MAX])
def test_file_beyond_the_stream_length_of_clamd_is_removed(site: ServerProcess, more: int) -> None:
    data = LONG[: STREAM_MAX + more]
    with unchanged(site):
        path, answer = upload(site, data)
        assert code_of(answer) == (413, "ERR_SCAN_SIZE_EXCEEDED")
        assert head(site.port, path).status == 404
        assert code_of(post(site, data)) == (413, "ERR_SCAN_SIZE_EXCEEDED")


def test_file_beyond_the_file_size_of_clamd_is_found_with_the_documented_configuration(tmp_path: Path) -> None:
    """Without AlertExceedsMax clamd calls a file clean that it has not looked at."""
    for alerts, expected in (("yes", 422), ("no", 204)):
        with (
            ClamdDaemon(MaxFileSize="1M", AlertExceedsMax=alerts) as daemon,
            serving(tmp_path / alerts, clamd=daemon.on_socket) as site,
        ):
            answer = upload(site, BAD)[1]
            assert (answer.status, "Limits.Exceeded" in answer.text) == (expected, expected == 422)


def test_scan_max_size_refuses_before_the_first_byte(clamd: ClamdDaemon, tmp_path: Path) -> None:
    with serving(tmp_path, clamd=clamd.on_socket, scan_max_size=STREAM_MAX) as site:
        assert upload(site, CLEAN)[1].status == 204
        refused = request(site.port, "POST", "/files", creation_headers(STREAM_MAX + 1))
        assert code_of(refused) == (413, "ERR_MAX_SIZE_EXCEEDED")


def test_open_server_takes_what_clamd_does_not_and_refuses_malware(
    clamd: ClamdDaemon, address: str, tmp_path: Path
) -> None:
    with serving(tmp_path, clamd=address, scan_fail="open") as site:
        path, answer = upload(site, LONG)
        assert answer.status == 204
        assert_content(site.port, path, LONG)
        assert_found(upload(site, BAD)[1])
        assert "is taken although it was not scanned" in "".join(site.log)


# A daemon that dies.


@pytest.fixture(params=["socket", "port"])
def mortal(request: pytest.FixtureRequest) -> Iterator[tuple[ClamdDaemon, str]]:
    with ClamdDaemon(StreamMaxLength="1G") as daemon:
        yield daemon, daemon.on_socket if request.param == "socket" else daemon.on_port


def kill_in_the_middle_of_a_file(daemon: ClamdDaemon, site: ServerProcess, data: bytes) -> tuple[str, Answer]:
    """Upload to a clamd that stops reading and is killed then; return the path of the upload and the answer.

    The file is longer than what the buffers of the connection take.
    """
    daemon.pause()
    path = create(site.port, len(data))
    with start_patch(site.port, path, 0, len(data)) as connection:
        connection.send(data)
        wait_until(lambda: head(site.port, path).status == 423, "the scan has begun")
        daemon.kill()
        return path, connection.answer()


@pytest.mark.parametrize("data", [LONG, LONG[:-10] + MARKER], ids=["clean", "malware"])
@pytest.mark.parametrize("how", ["PATCH", "HEAD", "sweep", "restart"])
def test_upload_stays_when_clamd_dies_and_is_scanned_when_there_is_one_again(
    mortal: tuple[ClamdDaemon, str], tmp_path: Path, data: bytes, how: str
) -> None:
    daemon, address = mortal
    options: dict[str, Any] = {"clamd": address, "sweep_interval": "100ms" if how == "sweep" else "0s"}
    with serving(tmp_path, **options) as site:
        path, answer = kill_in_the_middle_of_a_file(daemon, site, data)
        assert code_of(answer) == (503, "ERR_SCAN_UNAVAILABLE")
        assert answer["Retry-After"]
        assert head(site.port, path).status == 423
        assert request(site.port, "GET", path).status in (404, 503)
        daemon.start()
        clean = data is LONG
        if how == "PATCH":
            last = patch(site.port, path, len(data), b"")
            assert last.status == 204 if clean else code_of(last) == (422, "ERR_MALWARE_FOUND")
        if how == "restart":
            site.restart()
        wait_until(lambda: head(site.port, path).status == (200 if clean else 404), "the upload is scanned")
        if clean:
            assert_content(site.port, path, data)


def test_open_server_takes_an_upload_when_clamd_dies(mortal: tuple[ClamdDaemon, str], tmp_path: Path) -> None:
    daemon, address = mortal
    with serving(tmp_path, clamd=address, scan_fail="open") as site:
        path, answer = kill_in_the_middle_of_a_file(daemon, site, LONG)
        assert answer.status == 204
        assert_content(site.port, path, LONG)
        assert upload(site, SHORT_BAD)[1].status == 204
        assert "is taken although it was not scanned" in "".join(site.log)
        daemon.start()
        assert_found(upload(site, SHORT_BAD)[1])
