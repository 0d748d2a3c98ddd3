from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator

import pytest

from tests.support.crc32c import bitwise_crc32c
from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import OFFSET_STREAM, TUS, Body, Value, encoded, patch_headers, payload, shown
from tests.support.wire.promised import (
    ask,
    content_of,
    create,
    creation,
    head,
    offset_of,
    patch,
    promised_answer,
    refusal_without_continue,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("checksum")) as server:
        yield server


@pytest.fixture(scope="module")
def unverified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("unverified"), disable_checksum=True) as server:
        yield server


def checksum(data: bytes, algorithm: str = "sha1") -> str:
    if algorithm == "crc32":
        return f"crc32 {encoded(zlib.crc32(data).to_bytes(4, 'big'))}"
    if algorithm == "crc32c":
        return f"crc32c {encoded(bitwise_crc32c(data).to_bytes(4, 'big'))}"
    return f"{algorithm} {encoded(hashlib.new(algorithm, data).digest())}"


def algorithms(server: ServerProcess) -> list[str]:
    return ask("OPTIONS", server.url).listed("Tus-Checksum-Algorithm")


def test_the_algorithms_are_announced(site: ServerProcess) -> None:
    announced = algorithms(site)
    assert "sha1" in announced
    assert all(name.isascii() and name == name.lower() for name in announced)
    assert len(set(announced)) == len(announced)
    assert "checksum" in ask("OPTIONS", site.url).listed("Tus-Extension")


def test_the_example_of_the_protocol(site: ServerProcess) -> None:
    location = create(site.url, 11)
    answer = patch(location, 0, b"hello world", {"Upload-Checksum": "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="})
    assert (answer.status, answer.offset) == (204, 11)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha384", "sha512", "crc32"])
def test_every_announced_algorithm_is_verified(site: ServerProcess, algorithm: str) -> None:
    location = create(site.url, 10)
    if algorithm not in algorithms(site):
        with unchanged(site):
            assert patch(location, 0, b"hello", {"Upload-Checksum": checksum(b"hello", algorithm)}).status == 400
        return
    assert patch(location, 0, b"hello", {"Upload-Checksum": checksum(b"hallo", algorithm)}).status == 460
    assert patch(location, 0, b"hello", {"Upload-Checksum": checksum(b"hello", algorithm)}).offset == 5
    assert patch(location, 5, b"world", {"Upload-Checksum": checksum(b"helloworld", algorithm)}).status == 460
    assert patch(location, 5, b"world", {"Upload-Checksum": checksum(b"world", algorithm)}).offset == 10
    assert content_of(location) == b"helloworld"


@pytest.mark.parametrize("body", [b"hello", [b"hel", b"lo"]], ids=["length", "chunks"])
@pytest.mark.parametrize("length", [5, 10, None])
def test_a_mismatch_stores_nothing(site: ServerProcess, length: int | None, body: Body) -> None:
    location = create(site.url, length)
    answer = patch(location, 0, body, {"Upload-Checksum": checksum(b"other")})
    assert answer.status == 460
    assert offset_of(location) == 0
    assert ask("GET", location).status == 404
    assert patch(location, 0, body, {"Upload-Checksum": checksum(b"hello")}).offset == 5


def test_a_mismatch_keeps_what_was_there(site: ServerProcess) -> None:
    location = create(site.url, 11, body=b"hello")
    with unchanged(site):
        assert patch(location, 5, b" world", {"Upload-Checksum": checksum(b"hello world")}).status == 460
    assert patch(location, 5, b" World").offset == 11
    assert content_of(location) == b"hello World"


def test_a_mismatch_of_megabytes_stores_nothing(site: ServerProcess) -> None:
    data = payload(9_000_000)
    location = create(site.url, len(data) + 5, body=b"hello")
    with unchanged(site):
        assert patch(location, 5, data, {"Upload-Checksum": checksum(b"hello" + data)}).status == 460
    assert patch(location, 5, data, {"Upload-Checksum": checksum(data)}).offset == len(data) + 5
    assert content_of(location) == b"hello" + data


def test_a_mismatch_declares_no_length(site: ServerProcess) -> None:
    location = create(site.url, None, body=b"hello")
    with unchanged(site):
        answer = patch(location, 5, b" world", {"Upload-Checksum": checksum(b"x"), "Upload-Length": "11"})
    assert answer.status == 460
    state = head(location)
    assert state["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in state


def test_an_empty_body_has_a_checksum_too(site: ServerProcess) -> None:
    location = create(site.url, 5)
    assert patch(location, 0, b"", {"Upload-Checksum": checksum(b"")}).offset == 0
    with unchanged(site):
        assert patch(location, 0, b"", {"Upload-Checksum": checksum(b"x")}).status == 460


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha1",
        "sha1 ",
        " " + encoded(bytes(20)),
        "sha1  " + encoded(bytes(20)),
        "sha1," + encoded(bytes(20)),
        "sha1:" + encoded(bytes(20)),
        "sha1=" + encoded(bytes(20)),
        "sha1 " + encoded(bytes(20)) + " x",
        "sha1 " + encoded(bytes(20)) + ", sha1 " + encoded(bytes(20)),
        ("sha1 " + encoded(bytes(20)), "md5 " + encoded(bytes(16))),
        "sha1 !!!!",
        "sha1 " + "=" * 28,
        "sha1 " + encoded(bytes(20)).rstrip("="),
        "sha1 " + encoded(bytes(20)) + "====",
        "sha1 " + encoded(bytes(20))[:-2] + "\u00e9=",
        b"sha1 \xff\xfe",
        b"\xff " + encoded(bytes(20)).encode(),
        "none " + encoded(bytes(20)),
        "sha-1 " + encoded(bytes(20)),
        "sha3 " + encoded(bytes(20)),
        "__class__ " + encoded(bytes(20)),
        "shake_128 " + encoded(bytes(20)),
        "new " + encoded(bytes(20)),
        "a" * 10_000 + " " + encoded(bytes(20)),
    ],
    ids=shown,
)
def test_a_malformed_checksum_or_unknown_algorithm_stores_nothing(site: ServerProcess, value: Value) -> None:
    location = create(site.url, 10)
    with unchanged(site):
        answer = patch(location, 0, b"hello", {"Upload-Checksum": value})
        assert answer.status == 400
        headers = TUS | {"Upload-Length": "5", "Content-Type": OFFSET_STREAM, "Upload-Checksum": value}
        assert ask("POST", site.url, headers, b"hello").status == 400
    assert offset_of(location) == 0


@pytest.mark.parametrize("size", [1, 19, 21, 1000])
def test_a_checksum_of_a_wrong_size_stores_nothing(site: ServerProcess, size: int) -> None:
    location = create(site.url, 10)
    with unchanged(site):
        answer = patch(location, 0, b"hello", {"Upload-Checksum": "sha1 " + encoded(bytes(size))})
        headers = patch_headers(0) | {"Upload-Checksum": "sha1 " + encoded(bytes(size))}
        assert refusal_without_continue("PATCH", location, headers, 5).status == 460
        headers = TUS | {"Upload-Length": "5", "Content-Type": OFFSET_STREAM, "Upload-Checksum": "md5 AAAA"}
        assert ask("POST", site.url, headers, b"hello").status == 460
    assert answer.status == 460
    assert f"the digest has {size} bytes, a sha1 digest has 20" in answer.text


def test_a_creation_with_a_checksum(site: ServerProcess) -> None:
    answer = creation(site.url, 5, {"Upload-Checksum": checksum(b"hello")}, b"hello")
    assert answer.offset == 5
    assert content_of(answer["Location"]) == b"hello"


def test_a_broken_body_with_a_checksum_stores_nothing(site: ServerProcess) -> None:
    location = create(site.url, 10)
    with Connection(site.url) as connection:
        headers = {"Content-Length": "10", "Upload-Checksum": checksum(b"helloworld")}
        connection.send_head("PATCH", location, patch_headers(0) | headers)
        connection.send(b"hello")
    wait_until(lambda: patch(location, 0, b"H").status == 204)
    assert offset_of(location) == 1
    assert patch(location, 1, b"elloWorld").offset == 10
    assert content_of(location) == b"HelloWorld"


def test_a_body_past_the_length_with_its_checksum_stores_nothing(site: ServerProcess) -> None:
    location = create(site.url, 5)
    body = [b"hello", b"world"]
    assert patch(location, 0, body, {"Upload-Checksum": checksum(b"helloworld")}).status == 413
    assert offset_of(location) == 0


@pytest.mark.integrated
@pytest.mark.parametrize(
    ("trailer", "status"),
    [
        (checksum(b"hello"), 204),
        (checksum(b"hello", "md5"), 204),
        (checksum(b"other"), 460),
        ("none " + encoded(bytes(20)), 400),
        ("sha1 !!!!", 400),
        ("sha1 " + encoded(bytes(19)), 460),
        ("sha1", 400),
    ],
    ids=shown,
)
def test_a_checksum_in_a_trailer(site: ServerProcess, trailer: str, status: int) -> None:
    assert "checksum-trailer" in ask("OPTIONS", site.url).listed("Tus-Extension")
    location = create(site.url, 10)
    headers = patch_headers(0) | {"Transfer-Encoding": "chunked", "Trailer": "Upload-Checksum"}
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, headers)
        connection.send_chunk(b"hel")
        connection.send_chunk(b"lo")
        connection.send(b"0\r\nUpload-Checksum: " + trailer.encode() + b"\r\n\r\n")
        assert promised_answer(connection, "PATCH").status == status
    assert offset_of(location) == (5 if status == 204 else 0)


@pytest.mark.skipif(not os.environ.get("PLAIN_ASGI"), reason="trailers can be seen")
def test_a_trailer_that_cannot_be_seen_is_refused_before_the_body(site: ServerProcess) -> None:
    assert "checksum-trailer" not in ask("OPTIONS", site.url).listed("Tus-Extension")
    location = create(site.url, 10)
    headers = patch_headers(0) | {"Transfer-Encoding": "chunked", "Trailer": "Upload-Checksum"}
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, headers)
        assert promised_answer(connection, "PATCH").status == 400
    assert offset_of(location) == 0


def test_switched_off_checksums_are_not_announced(unverified: ServerProcess) -> None:
    answer = ask("OPTIONS", unverified.url)
    assert "checksum" not in answer.listed("Tus-Extension")
    assert "Tus-Checksum-Algorithm" not in answer


def test_switched_off_checksums_are_not_verified(unverified: ServerProcess) -> None:
    location = create(unverified.url, 5)
    answer = patch(location, 0, b"hello", {"Upload-Checksum": checksum(b"other")})
    assert answer.status in (204, 400)
    assert offset_of(location) == (5 if answer.status == 204 else 0)
