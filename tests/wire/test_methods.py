"""Methods that a header overrides, and those that a URL does not have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.wire.messages import TUS, Value, patch_headers, shown
from tests.support.wire.promised import ask, create, head, offset_of


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("methods")) as server:
        yield server


# X-HTTP-Method-Override


@pytest.mark.parametrize("override", ["PATCH", "patch", "Patch", "pAtCh"])
@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "HEAD", "DELETE"])
def test_the_method_can_be_overridden_with_patch(site: ServerProcess, method: str, override: str) -> None:
    location = create(site.url, 10)
    answer = ask(method, location, patch_headers(0) | {"X-HTTP-Method-Override": override}, b"hello")
    assert (answer.status, answer.offset) == (204, 5)


@pytest.mark.parametrize("override", ["HEAD", "head"])
@pytest.mark.parametrize("method", ["POST", "GET", "PATCH"])
def test_the_method_can_be_overridden_with_head(site: ServerProcess, method: str, override: str) -> None:
    location = create(site.url, 10, body=b"hello")
    answer = ask(method, location, TUS | {"X-HTTP-Method-Override": override}, b"")
    assert (answer.status, answer.offset) == (200, 5)
    assert answer.body == b""
    assert answer["Cache-Control"] == "no-store"


@pytest.mark.parametrize("override", ["DELETE", "delete", "Delete"])
@pytest.mark.parametrize("method", ["POST", "PATCH", "GET"])
def test_the_method_can_be_overridden_with_delete(site: ServerProcess, method: str, override: str) -> None:
    location = create(site.url, 10)
    assert ask(method, location, TUS | {"X-HTTP-Method-Override": override}, b"").status == 204
    assert head(location).status == 404


@pytest.mark.parametrize("method", ["PUT", "GET", "PATCH"])
def test_the_method_can_be_overridden_with_post(site: ServerProcess, method: str) -> None:
    answer = ask(method, site.url, TUS | {"X-HTTP-Method-Override": "post", "Upload-Length": "5"})
    assert (answer.status, answer.offset) == (201, 0)


def test_the_method_can_be_overridden_with_get(site: ServerProcess) -> None:
    location = create(site.url, 5, body=b"hello")
    answer = ask("POST", location, {"X-HTTP-Method-Override": "GET"}, b"")
    assert (answer.status, answer.body) == (200, b"hello")


@pytest.mark.parametrize("override", ["DELETE", "PATCH", "HEAD"])
def test_options_cannot_be_overridden(site: ServerProcess, override: str) -> None:
    location = create(site.url, 10)
    with unchanged(site):
        answer = ask("OPTIONS", location, patch_headers(0) | {"X-HTTP-Method-Override": override})
    assert answer.status == 200
    assert "Tus-Version" in answer
    assert offset_of(location) == 0


@pytest.mark.parametrize("override", ["PUT", "TRACE", "nonsense", "PATCH, PATCH", b"\xff"], ids=shown)
def test_an_unknown_override_is_no_method(site: ServerProcess, override: Value) -> None:
    location = create(site.url, 10)
    with unchanged(site):
        assert ask("POST", location, patch_headers(0) | {"X-HTTP-Method-Override": override}, b"x").status == 405


# Methods that are none here


@pytest.mark.parametrize("method", ["PUT", "POST", "TRACE"])
def test_methods_that_an_upload_does_not_have(site: ServerProcess, method: str) -> None:
    location = create(site.url, 10)
    with unchanged(site):
        answer = ask(method, location, TUS | {"Upload-Length": "5"}, b"")
    assert answer.status == 405
    assert {"HEAD", "PATCH", "DELETE"} <= set(answer.listed("Allow"))


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_methods_that_the_creation_url_does_not_have(site: ServerProcess, method: str) -> None:
    with unchanged(site):
        answer = ask(method, site.url, patch_headers(0), b"")
    assert answer.status == 405
    assert "POST" in answer.listed("Allow")
