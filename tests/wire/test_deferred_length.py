"""The length of an upload that a PATCH declares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.wire.messages import NO_INTEGERS, Body, Value, shown
from tests.support.wire.promised import ask, content_of, create, head, offset_of, patch


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("deferred_length")) as server:
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("small"), max_size=1000) as server:
        yield server


@pytest.mark.parametrize("body", [None, b"", []], ids=["no body", "length 0", "no chunks"])
def test_a_length_is_declared_without_a_body(site: ServerProcess, body: Body) -> None:
    location = create(site.url, None, body=b"hello")
    answer = patch(location, 5, body, {"Upload-Length": "11"})
    assert (answer.status, answer.offset) == (204, 5)
    state = head(location)
    assert (state["Upload-Length"], state.offset) == ("11", 5)
    assert "Upload-Defer-Length" not in state
    assert patch(location, 5, b" world").offset == 11
    assert content_of(location) == b"hello world"


@pytest.mark.parametrize("body", [b" world", [b" wor", b"ld"]], ids=["length", "chunks"])
def test_a_length_is_declared_with_the_last_bytes(site: ServerProcess, body: Body) -> None:
    location = create(site.url, None)
    assert patch(location, 0, b"hello").offset == 5
    assert head(location)["Upload-Defer-Length"] == "1"
    assert patch(location, 5, body, {"Upload-Length": "11"}).offset == 11
    assert "Upload-Defer-Length" not in head(location)
    assert content_of(location) == b"hello world"


@pytest.mark.parametrize("body", [None, b""], ids=["no body", "length 0"])
@pytest.mark.parametrize("content", [b"hello", b""])
def test_a_length_declared_at_the_offset_completes_the_upload(site: ServerProcess, content: bytes, body: Body) -> None:
    location = create(site.url, None, body=content)
    assert ask("GET", location).status == 404
    answer = patch(location, len(content), body, {"Upload-Length": str(len(content))})
    assert (answer.status, answer.offset) == (204, len(content))
    assert "Upload-Expires" not in answer
    assert content_of(location) == content


def test_a_declared_length_may_be_repeated(site: ServerProcess) -> None:
    location = create(site.url, None)
    assert patch(location, 0, b"hello", {"Upload-Length": "11"}).offset == 5
    assert patch(location, 5, None, {"Upload-Length": "11"}).offset == 5
    assert patch(location, 5, b" world", {"Upload-Length": "11"}).offset == 11
    assert patch(location, 11, None, {"Upload-Length": "11"}).offset == 11
    assert content_of(location) == b"hello world"


@pytest.mark.parametrize("length", ["5", "10", "12", "0"])
@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("body", [None, b"x"], ids=["no body", "body"])
def test_a_length_cannot_be_changed(site: ServerProcess, deferred: bool, length: str, body: Body) -> None:
    location = create(site.url, None if deferred else 11, body=b"hello")
    if deferred:
        assert patch(location, 5, b" ", {"Upload-Length": "11"}).status == 204
    offset = offset_of(location)
    with unchanged(site):
        assert patch(location, offset, body, {"Upload-Length": length}).status == 400
    assert head(location)["Upload-Length"] == "11"


def test_the_length_of_a_complete_upload_cannot_be_changed(site: ServerProcess) -> None:
    location = create(site.url, None, body=b"hello")
    assert patch(location, 5, None, {"Upload-Length": "5"}).status == 204
    with unchanged(site):
        assert patch(location, 5, None, {"Upload-Length": "6"}).status == 400
    assert content_of(location) == b"hello"


def test_a_length_cannot_be_smaller_than_the_offset(site: ServerProcess) -> None:
    location = create(site.url, None, body=b"hello")
    with unchanged(site):
        assert patch(location, 5, None, {"Upload-Length": "4"}).status == 400
    assert head(location)["Upload-Defer-Length"] == "1"


def test_a_length_cannot_be_larger_than_the_maximum(small: ServerProcess) -> None:
    location = create(small.url, None, body=b"hello")
    with unchanged(small):
        assert patch(location, 5, b"x", {"Upload-Length": "1001"}).status == 413
    assert head(location)["Upload-Defer-Length"] == "1"
    assert patch(location, 5, None, {"Upload-Length": "1000"}).status == 204


@pytest.mark.parametrize("length", NO_INTEGERS, ids=shown)
def test_a_malformed_length_is_not_declared(site: ServerProcess, length: Value) -> None:
    location = create(site.url, None, body=b"hello")
    with unchanged(site):
        assert patch(location, 5, b"x", {"Upload-Length": length}).status == 400
    assert head(location)["Upload-Defer-Length"] == "1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Upload-Offset": "4"}, 409), ({"Upload-Offset": "?"}, 400), ({"Content-Type": "text/plain"}, 415)],
    ids=shown,
)
def test_a_refused_patch_declares_no_length(site: ServerProcess, headers: dict[str, Value], status: int) -> None:
    location = create(site.url, None, body=b"hello")
    with unchanged(site):
        assert patch(location, 5, b"x", headers | {"Upload-Length": "10"}).status == status
    assert head(location)["Upload-Defer-Length"] == "1"


def test_a_body_longer_than_the_length_it_declares(site: ServerProcess) -> None:
    location = create(site.url, None, body=b"hello")
    assert patch(location, 5, b"123456", {"Upload-Length": "10"}).status == 413
    assert offset_of(location) == 5
