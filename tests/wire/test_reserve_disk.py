"""`--reserve-disk`: no new uploads below it, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.wire.messages import TUS, Headers, creation_headers, path_of
from tests.support.wire.requests import assert_content, create, offset_of, patch, request

TOO_MUCH = "1000000TiB"
DATA = b"all the bytes"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, str, str]]:
    """A server below its reserve, with an unfinished and a partial upload from before."""
    folder = tmp_path_factory.mktemp("reserve")
    with serving(folder) as server:
        unfinished = create(server.port, len(DATA), body=DATA[:4])
        part = create(server.port, len(DATA), {"Upload-Concat": "partial"}, DATA)
    with serving(folder, reserve_disk=TOO_MUCH) as server:
        yield server, unfinished, part


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (creation_headers(len(DATA)), b""),
        (creation_headers(0), b""),
        (creation_headers(None), b""),
        (creation_headers(len(DATA), DATA), DATA),
        (creation_headers(len(DATA)) | {"Upload-Concat": "partial"}, b""),
        (creation_headers(len(DATA)) | {"X-HTTP-Method-Override": "POST"}, b""),
    ],
    ids=["plain", "empty", "deferred", "with bytes", "partial", "override"],
)
def test_new_upload_below_the_reserve_is_answered_507_with_retry_after(
    full: tuple[ServerProcess, str, str], headers: Headers, body: bytes
) -> None:
    server, _, _ = full
    before = sorted(server.upload_dir.iterdir())
    answer = request(server.port, "POST", "/files", headers, body)
    assert (answer.status, answer.text.partition(":")[0]) == (507, "ERR_STORAGE_FULL")
    assert answer["Retry-After"]
    assert sorted(server.upload_dir.iterdir()) == before


def test_new_final_upload_below_the_reserve_is_refused_and_its_part_stays(
    full: tuple[ServerProcess, str, str],
) -> None:
    server, _, part = full
    answer = request(server.port, "POST", "/files", TUS | {"Upload-Concat": f"final;{part}"})
    assert answer.status == 507
    assert offset_of(server.port, part) == len(DATA)


def test_unfinished_upload_goes_on_below_the_reserve(full: tuple[ServerProcess, str, str]) -> None:
    server, unfinished, _ = full
    assert patch(server.port, unfinished, offset_of(server.port, unfinished), DATA[4:]).status == 204
    assert_content(server.port, unfinished, DATA)
    assert request(server.port, "DELETE", unfinished, TUS).status == 204


def test_a_reserve_that_is_free_refuses_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("free"), reserve_disk="1B") as server:
        answer = request(server.port, "POST", "/files", creation_headers(len(DATA), DATA), DATA)
        assert answer.status == 201
        assert_content(server.port, path_of(answer), DATA)
