from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import stored, unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Body, Value, identity, patch_headers
from tests.support.wire.promised import (
    IMF_DATE,
    ask,
    content_of,
    create,
    creation,
    delete,
    head,
    offset_of,
    patch,
    promised_answer,
)

UNKNOWN = "/0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("termination")) as server:
        yield server


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that remembers which uploads have ended."""
    options = {"expires_after": "1s", "sweep_interval": "0.5s", "gone_for": "1h"}
    with serving(tmp_path_factory.mktemp("tracking"), **options) as server:
        yield server


# Termination


def statuses(url: str) -> set[int]:
    """Return the statuses of all methods for an upload that is no more."""
    return {head(url).status, patch(url, 0, b"x").status, delete(url).status, ask("GET", url).status}


@pytest.mark.parametrize(
    ("length", "body", "headers"),
    [
        (10, b"", {}),
        (10, b"hello", {}),
        (5, b"hello", {}),
        (0, b"", {}),
        (None, b"hello", {}),
        (10, b"hello", {"Upload-Concat": "partial"}),
        (5, b"hello", {"Upload-Concat": "partial"}),
        (5, b"hello", {"Upload-Metadata": "filename eA=="}),
    ],
)
def test_a_terminated_upload_leaves_nothing(
    site: ServerProcess, length: int | None, body: bytes, headers: dict[str, Value]
) -> None:
    with unchanged(site):
        location = create(site.url, length, headers, body)
        assert identity(location) in stored(site).records
        answer = delete(location)
        assert answer.status == 204
        assert answer.body == b""
    assert statuses(location) == {404}


def test_a_terminated_final_upload_leaves_nothing(site: ServerProcess) -> None:
    part = create(site.url, 5, {"Upload-Concat": "partial"}, b"hello")
    before = stored(site)
    answer = ask("POST", site.url, TUS | {"Upload-Concat": f"final;{part}"}, b"")
    assert delete(answer["Location"]).status == 204
    assert statuses(answer["Location"]) == {404}
    after = stored(site)
    assert (after.files, after.records.keys()) == (before.files, before.records.keys())  # the part may expire earlier
    assert offset_of(part) == 5


def test_the_termination_of_an_unknown_upload(site: ServerProcess) -> None:
    with unchanged(site):
        assert delete(site.url + UNKNOWN).status == 404


@pytest.mark.parametrize("body", [None, b"", []], ids=["no body", "length 0", "no chunks"])
def test_a_termination_may_have_an_empty_body(site: ServerProcess, body: Body) -> None:
    assert ask("DELETE", create(site.url, 5), TUS, body).status == 204


def test_an_upload_that_is_being_received_can_be_terminated(site: ServerProcess) -> None:
    with unchanged(site):
        location = create(site.url, 100)
        with Connection(site.url) as connection:
            connection.send_head("PATCH", location, patch_headers(0) | {"Content-Length": "100"})
            connection.send(b"hello")
            wait_until(lambda: offset_of(location) == 5)
            assert delete(location).status == 204
            assert head(location).status == 404
            with contextlib.suppress(ConnectionError):
                connection.send(b"x" * 95)
                assert promised_answer(connection, "PATCH").status >= 400
        assert statuses(location) == {404}


def test_termination_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("off"), disable_termination=True) as server:
        assert "termination" not in ask("OPTIONS", server.url).listed("Tus-Extension")
        location = create(server.url, 10, body=b"hello")
        with unchanged(server):
            answer = delete(location)
            assert answer.status == 405
            assert "DELETE" not in answer.listed("Allow")
            override = {"X-HTTP-Method-Override": "DELETE"}
            assert ask("POST", location, TUS | override, b"").status == 405
        assert offset_of(location) == 5


# Upload-Expires


def test_every_answer_for_an_unfinished_upload_tells_when_it_expires(site: ServerProcess) -> None:
    answer = creation(site.url, 10)
    location = answer["Location"]
    for one in (answer, patch(location, 0, b"hello"), patch(location, 5, b""), head(location)):
        assert IMF_DATE.fullmatch(one["Upload-Expires"])
        assert parsedate_to_datetime(one["Upload-Expires"]).timestamp() == pytest.approx(time.time() + 86400, abs=60)


@pytest.mark.parametrize(
    ("offset", "headers", "status"),
    [
        (4, {}, 409),
        (5, {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, 460),
        (5, {"Upload-Length": "8"}, 400),
    ],
)
def test_a_refused_patch_tells_when_the_upload_expires(
    site: ServerProcess, offset: int, headers: dict[str, Value], status: int
) -> None:
    """The protocol wants it in every answer to a PATCH if the upload is going to expire."""
    location = create(site.url, 10, body=b"hello")
    answer = patch(location, offset, b"x", headers)
    assert answer.status == status
    assert IMF_DATE.fullmatch(answer["Upload-Expires"])


def test_a_finished_upload_does_not_expire(site: ServerProcess) -> None:
    location = create(site.url, 5)
    for answer in (patch(location, 0, b"hello"), patch(location, 5, None), head(location), patch(location, 0, b"x")):
        assert "Upload-Expires" not in answer


def test_expiration_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("off"), expires_after=0, sweep_interval="0.5s") as server:
        assert "expiration" not in ask("OPTIONS", server.url).listed("Tus-Extension")
        answer = creation(server.url, 10)
        location = answer["Location"]
        for one in (answer, patch(location, 0, b"hello"), head(location)):
            assert "Upload-Expires" not in one
        time.sleep(1.5)
        assert offset_of(location) == 5


# Expired uploads


def test_an_expired_upload_is_removed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("swept"), expires_after="1s", sweep_interval="0.5s") as server:
        finished = create(server.url, 5, {"Upload-Metadata": "filename eA=="}, b"hello")
        empty = create(server.url, 0)
        with unchanged(server):
            expiring = [
                create(server.url, 10),
                create(server.url, 10, body=b"hello"),
                create(server.url, None, body=b"hello"),
                create(server.url, 10, {"Upload-Concat": "partial"}, b"hello"),
            ]
            kept = {identity(finished), identity(empty)}
            wait_until(lambda: stored(server).records.keys() == kept)
        for location in expiring:
            assert statuses(location) == {404}
            assert head(location)["Cache-Control"] == "no-store"
        assert content_of(finished) == b"hello"
        assert content_of(empty) == b""
        assert offset_of(finished) == 5


def test_an_expired_upload_ends_even_if_nobody_sweeps(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("unswept"), expires_after="1s", sweep_interval=0) as server:
        part = create(server.url, 10, {"Upload-Concat": "partial"}, b"hello")
        locations = [part, create(server.url, 10), create(server.url, None, body=b"hello")]
        finished = create(server.url, 5, body=b"hello")
        wait_until(lambda: all(head(location).status == 404 for location in locations))
        assert [patch(location, 0, b"x").status for location in locations] == [404, 404, 404]
        assert [ask("GET", location).status for location in locations] == [404, 404, 404]
        final = ask("POST", server.url, TUS | {"Upload-Concat": f"final;{part}"}, b"")
        assert final.status in (400, 404)
        assert content_of(finished) == b"hello"


def test_a_patch_puts_the_expiry_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("sliding"), expires_after="3s", sweep_interval="0.5s") as server:
        renewed = create(server.url, 100)
        left = create(server.url, 100)
        first = head(renewed)["Upload-Expires"]
        offset = 0

        def is_left_removed() -> bool:
            nonlocal offset
            time.sleep(0.5)
            answer = patch(renewed, offset, b"x")
            assert answer.status == 204
            offset = answer.offset
            return head(left).status == 404

        wait_until(is_left_removed)
        state = head(renewed)
        assert state.offset == offset
        assert parsedate_to_datetime(state["Upload-Expires"]) > parsedate_to_datetime(first)


# Uploads that are tracked


def test_a_tracked_termination_is_410(tracking: ServerProcess) -> None:
    files = stored(tracking).files
    for location in (create(tracking.url, 10, body=b"hello"), create(tracking.url, 5, body=b"hello")):
        assert delete(location).status == 204
        assert statuses(location) == {410}
    assert stored(tracking).files.keys() <= files.keys()
    assert head(tracking.url + UNKNOWN).status == 404


def test_a_tracked_expiry_is_410(tracking: ServerProcess) -> None:
    before = stored(tracking).files
    location = create(tracking.url, 10, body=b"hello")
    finished = create(tracking.url, 5, body=b"hello")
    wait_until(lambda: head(location).status == 410)
    assert statuses(location) == {410}
    wait_until(lambda: len(stored(tracking).files.keys() - before.keys()) == 1)
    assert content_of(finished) == b"hello"
