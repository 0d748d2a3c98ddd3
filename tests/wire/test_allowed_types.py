"""`--allowed-types`: the declared type at the creation, then the first bytes, however they come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import stored, unchanged
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Answer, checksum, creation_headers, metadata, path_of, payload
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, start_patch
from tusd_py import InvalidSettings, TusServer

PNG = b"\x89PNG\r\n\x1a\n" + payload(200_000)
PDF = b"%PDF-1.7\n" + payload(2000)
ZIP = b"PK\3\4" + payload(200_000)
HTML = b"<!doctype html><script>alert(1)</script>" + b" " * 2000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("types"), allowed_types="Image/*, application/pdf;a=b") as server:
        yield server


def filetype(value: str) -> dict[str, str]:
    return {"Upload-Metadata": metadata(filename="a", filetype=value)}


def post(site: ServerProcess, length: int | None, headers: dict[str, str], body: bytes = b"") -> Answer:
    return request(site.port, "POST", "/files", creation_headers(length, body) | headers, body)


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.text.partition(":")[0]) == (415, "ERR_TYPE_NOT_ALLOWED")
    assert "Upload-Offset" not in answer


@pytest.mark.parametrize("body", [b"", PNG])
@pytest.mark.parametrize("declared", ["text/html", "images/png", "application/zip", "IMAGEX/png", "application/pdfx"])
def test_declared_type_that_is_not_allowed_is_refused_before_anything_is_made(
    site: ServerProcess, declared: str, body: bytes
) -> None:
    with unchanged(site):
        assert_refused(post(site, len(PNG), filetype(declared), body))
        assert_refused(post(site, None, filetype(declared)))


@pytest.mark.parametrize("key", ["filetype", "type", "contentType"])
def test_the_type_that_a_download_would_have_is_judged(site: ServerProcess, key: str) -> None:
    def declared(**pairs: str) -> dict[str, str]:
        return {"Upload-Metadata": metadata(filename="a", **pairs)}

    with unchanged(site):
        assert_refused(post(site, len(PNG), declared(**{key: "text/javascript"})))
    path = create(site.port, len(PNG), declared(**{key: "image/png"}), PNG)
    assert request(site.port, "GET", path)["Content-Type"] == "image/png"
    if key != "filetype":  # which counts more
        path = create(site.port, len(PNG), declared(filetype="image/png", **{key: "text/javascript"}), PNG)
        assert request(site.port, "GET", path)["Content-Type"] == "image/png"


@pytest.mark.parametrize("declared", ["image/png", "IMAGE/PNG", "image/png; charset=binary", "null", ""])
@pytest.mark.parametrize("step", [100, 1000, 1024, 5000, 300_000])
def test_upload_of_an_allowed_type_is_complete(site: ServerProcess, declared: str, step: int) -> None:
    path = create(site.port, len(PNG), filetype(declared) if declared else {}, PNG[:step])
    for start in range(step, min(len(PNG), 3 * step), step):
        assert patch(site.port, path, start, PNG[start : start + step]).status == 204
    offset = offset_of(site.port, path)
    assert patch(site.port, path, offset, PNG[offset:]).status == 204
    assert_content(site.port, path, PNG)


@pytest.mark.parametrize("data", [ZIP, HTML, payload(5000), b"text " * 1000], ids=["zip", "html", "bytes", "text"])
@pytest.mark.parametrize("declared", ["image/png", "application/pdf", ""])
@pytest.mark.parametrize("step", [None, 7, 1023, 1024, 1025])
def test_bytes_that_are_not_allowed_end_the_upload_and_nothing_stays(
    site: ServerProcess, data: bytes, declared: str, step: int | None
) -> None:
    headers = filetype(declared) if declared else {}
    with unchanged(site):
        if step is None:
            assert_refused(post(site, len(data), headers, data))
            return
        path = create(site.port, len(data), headers)
        if step < 1024:
            assert patch(site.port, path, 0, data[:step]).status == 204
        offset = offset_of(site.port, path)
        assert_refused(patch(site.port, path, offset, data[offset:]))
        assert head(site.port, path).status == 404


@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("damaged", [HTML, b"\0" * 3000], ids=["html", "zeros"])
def test_damaged_bytes_with_a_checksum_are_sent_again_whatever_their_type(
    site: ServerProcess, before: int, damaged: bytes
) -> None:
    data = PNG[:3000]
    path = create(site.port, len(data), filetype("image/png"))
    if before:
        assert patch(site.port, path, 0, data[:before]).status == 204
    announced, body = checksum(data[before:]), damaged.ljust(len(data))[: len(data) - before]
    assert patch(site.port, path, before, body, announced).status == 460
    assert offset_of(site.port, path) == before
    assert patch(site.port, path, before, data[before:], announced).status == 204
    assert_content(site.port, path, data)


@pytest.mark.parametrize("length", [len(HTML), 10_000])
def test_wrong_type_with_a_right_checksum_is_refused(site: ServerProcess, length: int) -> None:
    with unchanged(site):
        path = create(site.port, length, filetype("image/png"))
        assert_refused(patch(site.port, path, 0, HTML, checksum(HTML)))
        assert head(site.port, path).status == 404


def test_refusal_comes_while_the_rest_of_the_body_is_still_to_come(site: ServerProcess) -> None:
    path = create(site.port, 1 << 40, filetype("image/png"))
    with start_patch(site.port, path, 0, 1 << 40) as connection:
        connection.send(ZIP[:5000])
        assert_refused(connection.answer())
    assert head(site.port, path).status == 404


@pytest.mark.parametrize(
    ("data", "declared", "allowed"),
    [
        (PDF[:9], "application/pdf", True),
        (PDF[:9], "", True),
        (PNG[:8], "", True),
        (PNG[:4], "image/png", False),
        (b"hello", "image/png", False),
        (b"hello", "", False),
        (b"", "image/png", False),
        (b"", "", False),
    ],
)
@pytest.mark.parametrize("at_creation", [True, False])
def test_short_upload_is_judged_when_it_ends(
    site: ServerProcess, data: bytes, declared: str, allowed: bool, at_creation: bool
) -> None:
    headers = filetype(declared) if declared else {}
    if at_creation or not data:
        answer = post(site, len(data), headers, data)
    else:
        path = create(site.port, len(data), headers)
        if len(data) > 4:
            assert patch(site.port, path, 0, data[:4]).status == 204
        answer = patch(site.port, path, offset_of(site.port, path), data[offset_of(site.port, path) :])
    if allowed:
        assert answer.status in (201, 204)
    else:
        assert_refused(answer)


@pytest.mark.parametrize("step", [5, 5000])
def test_upload_is_judged_after_a_kill_too(site: ServerProcess, step: int) -> None:
    for data, allowed in ((PNG, True), (ZIP, False)):
        path = create(site.port, len(data), filetype("image/png"))
        answer = patch(site.port, path, 0, data[:step])
        if step < 1024 or allowed:
            assert answer.status == 204
            site.restart()
            answer = patch(site.port, path, step, data[step:])
        if allowed:
            assert_content(site.port, path, data)
        else:
            assert_refused(answer)
            assert head(site.port, path).status == 404


def test_final_upload_is_judged_by_its_first_bytes(site: ServerProcess) -> None:
    pieces = [PNG[:3], PNG[3:3000], PNG[3000:]]
    parts = [create(site.port, len(piece), {"Upload-Concat": "partial"}, piece) for piece in pieces]

    def concatenate(order: list[str], headers: dict[str, str]) -> Answer:
        given = TUS | {"Upload-Concat": "final;" + " ".join(order)} | headers
        return request(site.port, "POST", "/files", given)

    before = stored(site)
    assert_refused(concatenate(parts[1:], {}))
    assert_refused(concatenate(parts, filetype("video/mp4")))
    assert stored(site) == before
    made = concatenate(parts, filetype("image/png"))
    assert made.status == 201
    assert_content(site.port, path_of(made), PNG)


def test_partial_upload_cannot_be_downloaded(site: ServerProcess) -> None:
    part = create(site.port, len(HTML), {"Upload-Concat": "partial"} | filetype("image/png"), HTML)
    assert offset_of(site.port, part) == len(HTML)
    assert request(site.port, "GET", part).status == 404
    with Connection(site.port) as connection:
        connection.send_head("HEAD", part)
        assert connection.answer().status == 404


def test_partial_upload_with_a_declared_type_that_is_not_allowed_is_refused(site: ServerProcess) -> None:
    assert_refused(post(site, 5, {"Upload-Concat": "partial"} | filetype("video/mp4")))


@pytest.mark.parametrize("types", ["image", "*", "image/png image/gif"])
def test_malformed_setting_is_refused(types: str) -> None:
    with pytest.raises(InvalidSettings, match="allowed_types"):
        TusServer(allowed_types=types)
