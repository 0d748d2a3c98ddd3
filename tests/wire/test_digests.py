"""The digest of a whole upload, named at its creation, verified before it becomes complete."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import PART, Place, serving as serving_s3
from tests.support.wire.messages import (
    TUS,
    Answer,
    creation_headers,
    encoded,
    metadata,
    path_of,
    payload,
)
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, start_patch

SIZES = [0, 13, 200_000, 2 * PART + 100]
KINDS = ["disk", "shared", "s3"]


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving_kind(request.param, tmp_path_factory) as server:
        yield server


@contextlib.contextmanager
def serving_kind(kind: str, folders: pytest.TempPathFactory, **options: Any) -> Iterator[ServerProcess]:
    folder = folders.mktemp(kind)
    if kind == "s3":
        with serving_s3(folder, Place(s3_server()), **options) as server:
            yield server
        return
    if kind == "shared":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{folder.name}:"}
    with serving(folder, **options) as server:
        yield server


def repr_digest(data: bytes, algorithm: str = "sha-256") -> dict[str, str]:
    digest = hashlib.new(algorithm.replace("-", ""), data).digest()
    return {"Repr-Digest": f"{algorithm}=:{encoded(digest)}:"}


def hex_metadata(data: bytes) -> dict[str, str]:
    return {"Upload-Metadata": metadata(filename="a.bin", sha256=hashlib.sha256(data).hexdigest())}


NAMED: dict[str, Callable[[bytes], dict[str, str]]] = {
    "sha-256": repr_digest,
    "sha-512": lambda data: repr_digest(data, "sha-512"),
    "metadata": hex_metadata,
    "all": lambda data: (
        {"Repr-Digest": ", ".join([repr_digest(data, name)["Repr-Digest"] for name in ("sha-256", "sha-512")])}
        | hex_metadata(data)
    ),
}


def post(site: ServerProcess, length: int | None, headers: dict[str, str], body: bytes = b"") -> Answer:
    return request(site.port, "POST", "/files", creation_headers(length, body) | headers, body)


def send(site: ServerProcess, data: bytes, headers: dict[str, str], pieces: int) -> Answer:
    """Upload in so many PATCHes, or with the creation if there are none; return the last answer."""
    if not pieces:
        return post(site, len(data), headers, data)
    created = post(site, len(data), headers)
    if created.status != 201:  # it was empty
        return created
    path, step = path_of(created), -(-len(data) // pieces)
    answer = created
    for start in range(0, len(data), max(1, step)):
        answer = patch(site.port, path, start, data[start : start + step])
    return answer


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.text.partition(":")[0]) == (460, "ERR_DIGEST_MISMATCH")
    assert "Upload-Offset" not in answer


@pytest.mark.parametrize("pieces", [0, 1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("named", NAMED)
def test_upload_with_its_digest_is_complete(site: ServerProcess, named: str, size: int, pieces: int) -> None:
    data, headers = payload(size), NAMED[named](payload(size))
    created = post(site, size, headers, data if not pieces else b"")
    assert created.status == 201
    path = path_of(created)
    step = max(1, -(-size // max(1, pieces)))
    for start in range(created.offset, size, step):
        assert patch(site.port, path, start, data[start : start + step]).status == 204
    assert offset_of(site.port, path) == size
    assert_content(site.port, path, data)


@pytest.mark.parametrize("pieces", [0, 1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("named", NAMED)
def test_upload_with_another_digest_is_refused_and_removed(
    site: ServerProcess, named: str, size: int, pieces: int
) -> None:
    data, headers = payload(size), NAMED[named](payload(size + 1))
    if pieces and size:
        created = post(site, size, headers)
        path, step = path_of(created), -(-size // pieces)
        for start in range(0, size, step):
            answer = patch(site.port, path, start, data[start : start + step])
        assert head(site.port, path).status == 404
        assert request(site.port, "GET", path).status == 404
    else:
        answer = post(site, size, headers, data)
    assert_refused(answer)


@pytest.mark.parametrize("wrong", ["sha-256", "sha-512", "metadata"])
def test_every_named_digest_has_to_match(site: ServerProcess, wrong: str) -> None:
    data = payload(200_000)
    of = {name: data[::-1] if name == wrong else data for name in ("sha-256", "sha-512", "metadata")}
    fields = [repr_digest(of[name], name)["Repr-Digest"] for name in ("sha-256", "sha-512")]
    headers = {"Repr-Digest": ", ".join(fields)} | hex_metadata(of["metadata"])
    assert_refused(send(site, data, headers, 2))


@pytest.mark.parametrize("wrong", [False, True])
def test_deferred_length(site: ServerProcess, wrong: bool) -> None:
    data = payload(200_000)
    path = create(site.port, None, repr_digest(data[::-1] if wrong else data))
    assert patch(site.port, path, 0, data[:1000]).status == 204
    answer = patch(site.port, path, 1000, data[1000:], {"Upload-Length": str(len(data))})
    if wrong:
        assert_refused(answer)
    else:
        assert_content(site.port, path, data)


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("size", [13, 200_000, 2 * PART + 100])
def test_bytes_from_before_a_kill_count(site: ServerProcess, size: int, wrong: bool) -> None:
    data = payload(size)
    path = create(site.port, size, repr_digest(data[::-1] if wrong else data))
    assert patch(site.port, path, 0, data[: size // 2]).status == 204
    site.restart()
    offset = offset_of(site.port, path)
    answer = patch(site.port, path, offset, data[offset:])
    if wrong:
        assert_refused(answer)
        assert head(site.port, path).status == 404
    else:
        assert answer.status == 204
        assert_content(site.port, path, data)


def test_an_upload_that_goes_on_after_a_broken_connection(site: ServerProcess) -> None:
    data = payload(200_000)
    path = create(site.port, len(data), repr_digest(data))
    with start_patch(site.port, path, 0, len(data)) as connection:
        connection.send(data[:70_000])
    offset = offset_of(site.port, path)
    assert patch(site.port, path, offset, data[offset:]).status in (204, 409)
    offset = offset_of(site.port, path)
    assert patch(site.port, path, offset, data[offset:]).status == 204
    assert_content(site.port, path, data)


@pytest.mark.parametrize("named", NAMED)
def test_final_upload(site: ServerProcess, named: str) -> None:
    halves = payload(100_000), payload(50_000, seed=2)
    parts = [create(site.port, len(half), {"Upload-Concat": "partial"} | repr_digest(half), half) for half in halves]
    whole = b"".join(halves)

    def concatenate(data: bytes) -> Answer:
        headers = TUS | {"Upload-Concat": f"final;{parts[0]} {parts[1]}"} | NAMED[named](data)
        return request(site.port, "POST", "/files", headers)

    assert_refused(concatenate(whole[::-1]))
    made = concatenate(whole)
    assert made.status == 201
    assert_content(site.port, path_of(made), whole)
    assert concatenate(whole)["Location"] == made["Location"]
    assert [offset_of(site.port, part) for part in parts] == [len(half) for half in halves]


@pytest.mark.parametrize(
    "headers",
    [
        {"Repr-Digest": "sha-256=abc"},
        {"Repr-Digest": f"sha-256=:{encoded(bytes(31))}:"},
        {"Repr-Digest": f"sha-512=:{encoded(bytes(32))}:"},
        {"Repr-Digest": "sha-256"},
        {"Repr-Digest": ","},
        {"Upload-Metadata": metadata(sha256="abc")},
        {"Upload-Metadata": metadata(sha256=b"\xff" * 64)},
        {"Upload-Metadata": "sha256"},
    ],
    ids=str,
)
@pytest.mark.parametrize("body", [b"", b"abcd"])
def test_malformed_digest_is_refused(site: ServerProcess, headers: dict[str, str], body: bytes) -> None:
    answer = post(site, 4, headers, body)
    assert (answer.status, answer.text.partition(":")[0]) == (400, "ERR_INVALID_DIGEST")


def test_unknown_algorithm_is_ignored(site: ServerProcess) -> None:
    assert send(site, b"abcd", {"Repr-Digest": f"md5=:{encoded(bytes(16))}:"}, 1).status == 204


def test_digests_are_ignored_where_checksums_are_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving_kind("disk", tmp_path_factory, disable_checksum=True) as server:
        assert send(server, b"abcd", repr_digest(b"other"), 1).status == 204
        assert send(server, b"abcd", {"Repr-Digest": "sha-256=abc"} | hex_metadata(b"other"), 1).status == 204


@pytest.mark.parametrize("wrong", [False, True])
def test_several_hosts_append_to_one_upload(tmp_path_factory: pytest.TempPathFactory, wrong: bool) -> None:
    data, folder = payload(300_000), tmp_path_factory.mktemp("hosts")
    options = {"redis_url": shared_redis_url(), "redis_prefix": f"{folder.name}-hosts:"}
    with serving(folder, **options) as one, serving(folder, **options) as other:
        path = create(one.port, len(data), repr_digest(data[::-1] if wrong else data))
        answers = [
            patch(site.port, path, start, data[start : start + 100_000])
            for start, site in zip(range(0, len(data), 100_000), (one, other, one), strict=True)
        ]
        if wrong:
            assert_refused(answers[-1])
            assert head(other.port, path).status == 404
        else:
            assert answers[-1].status == 204
            assert_content(other.port, path, data)
