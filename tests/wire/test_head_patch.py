from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import stored, unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import (
    MAX_INTEGER,
    NO_INTEGERS,
    OFFSET_STREAM,
    TUS,
    Body,
    Value,
    identity,
    patch_headers,
    payload,
    shown,
)
from tests.support.wire.promised import (
    ask,
    ask_on,
    content_of,
    create,
    creation,
    head,
    offset_of,
    patch,
    promised_answer,
    refusal_without_continue,
)

UNKNOWN = "/0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("head_patch")) as server:
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("small"), max_size=1000) as server:
        yield server


# HEAD


def test_head_tells_the_state_of_an_upload(site: ServerProcess) -> None:
    state = head(create(site.url, 10, {"Upload-Metadata": "filename eA=="}, b"hello"))
    assert state.status == 200
    assert state["Cache-Control"] == "no-store"
    assert (state["Upload-Offset"], state["Upload-Length"]) == ("5", "10")
    assert state["Upload-Metadata"] == "filename eA=="
    assert "Upload-Expires" in state
    assert "Upload-Defer-Length" not in state
    assert "Upload-Concat" not in state


def test_head_tells_that_an_upload_is_complete(site: ServerProcess) -> None:
    state = head(create(site.url, 5, body=b"hello"))
    assert state.status == 200
    assert state["Cache-Control"] == "no-store"
    assert (state["Upload-Offset"], state["Upload-Length"]) == ("5", "5")
    assert "Upload-Expires" not in state


def test_head_of_an_unknown_upload(site: ServerProcess) -> None:
    state = head(site.url + UNKNOWN)
    assert state.status == 404
    assert state["Cache-Control"] == "no-store"
    assert "Upload-Length" not in state


@pytest.mark.parametrize("version", [None, "", "0.2.2", "1.0.1"], ids=shown)
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_another_protocol_version_changes_nothing(site: ServerProcess, method: str, version: str | None) -> None:
    location = create(site.url, 10)
    headers: dict[str, Value] = {"Content-Type": OFFSET_STREAM, "Upload-Offset": "0"}
    if version is not None:
        headers["Tus-Resumable"] = version
    with unchanged(site):
        answer = ask(method, location, headers, b"hello" if method == "PATCH" else None)
    assert answer.status == 412
    assert "1.0.0" in answer.listed("Tus-Version")
    assert offset_of(location) == 0


def test_an_upload_concat_of_a_client_is_ignored_after_the_creation(site: ServerProcess) -> None:
    location = create(site.url, 5)
    assert ask("HEAD", location, TUS | {"Upload-Concat": "partial"}).status == 200
    assert patch(location, 0, b"hello", {"Upload-Concat": "partial"}).status == 204
    assert "Upload-Concat" not in head(location)


# PATCH


def test_patches_are_put_one_after_the_other(site: ServerProcess) -> None:
    location = create(site.url, 11)
    with Connection(site.url) as connection:
        for offset, part, expected in ((0, b"hello", 5), (5, b" ", 6), (6, b"world", 11)):
            answer = ask_on(connection, "PATCH", location, patch_headers(offset), part)
            assert answer.status == 204
            assert answer["Upload-Offset"] == str(expected)
            assert "Content-Length" not in answer
            assert ("Upload-Expires" in answer) == (expected < 11)
    assert content_of(location) == b"hello world"


@pytest.mark.parametrize(
    "body", [b"hello", [b"hello"], [b"h", b"ell", b"o"], [bytes([byte]) for byte in b"hello"]], ids=shown
)
def test_a_body_may_have_a_length_or_chunks(site: ServerProcess, body: Body) -> None:
    location = create(site.url, 5)
    assert patch(location, 0, body).offset == 5
    assert content_of(location) == b"hello"


def test_a_body_may_have_megabytes(site: ServerProcess) -> None:
    data = payload(6_000_000)
    location = create(site.url, len(data))
    assert patch(location, 0, data[:2_500_001]).offset == 2_500_001
    assert patch(location, 2_500_001, [data[2_500_001:4_000_000], data[4_000_000:]]).offset == len(data)
    assert content_of(location) == data


def test_chunk_extensions_and_trailers_are_no_content(site: ServerProcess) -> None:
    location = create(site.url, 5)
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, patch_headers(0) | {"Transfer-Encoding": "chunked"})
        connection.send(b'2;name="value"\r\nhe\r\n0003\r\nllo\r\n0\r\nX-Trailer: value\r\n\r\n')
        assert promised_answer(connection, "PATCH").offset == 5
    assert content_of(location) == b"hello"


def test_a_patch_waits_for_100_continue(site: ServerProcess) -> None:
    location = create(site.url, 5)
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, patch_headers(0) | {"Content-Length": "5", "Expect": "100-continue"})
        connection.expect_continue()
        connection.send(b"hello")
        answer = promised_answer(connection, "PATCH")
    assert (answer.status, answer.offset) == (204, 5)


def test_chunks_after_100_continue(site: ServerProcess) -> None:
    location = create(site.url, 5)
    headers = patch_headers(0) | {"Transfer-Encoding": "chunked", "Expect": "100-continue"}
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, headers)
        connection.expect_continue()
        connection.send_chunk(b"hello")
        connection.send_chunk(b"")
        answer = promised_answer(connection, "PATCH")
    assert (answer.status, answer.offset) == (204, 5)


@pytest.mark.parametrize("content_type", [OFFSET_STREAM.upper(), "Application/Offset+Octet-Stream"])
def test_the_content_type_may_be_in_any_case(site: ServerProcess, content_type: str) -> None:
    assert patch(create(site.url, 5), 0, b"hello", {"Content-Type": content_type}).status == 204


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/partial-upload",
        "text/plain",
        OFFSET_STREAM + "s",
        f"text/plain, {OFFSET_STREAM}",
    ],
    ids=shown,
)
@pytest.mark.parametrize("body", [b"hello", [b"hello"]], ids=["length", "chunk"])
def test_a_foreign_content_type_stores_nothing(site: ServerProcess, content_type: str | None, body: Body) -> None:
    location = create(site.url, 5)
    headers = patch_headers(0)
    del headers["Content-Type"]
    if content_type is not None:
        headers["Content-Type"] = content_type
    with unchanged(site):
        assert ask("PATCH", location, headers, body).status == 415
    assert offset_of(location) == 0


@pytest.mark.parametrize("offset", [None, *NO_INTEGERS], ids=shown)
def test_a_malformed_offset_stores_nothing(site: ServerProcess, offset: Value | None) -> None:
    location = create(site.url, 10, body=b"hello")
    given: dict[str, Value] = {} if offset is None else {"Upload-Offset": offset}
    headers = TUS | {"Content-Type": OFFSET_STREAM} | given
    with unchanged(site):
        assert ask("PATCH", location, headers, b"world").status == 400
    assert offset_of(location) == 5


@pytest.mark.parametrize("offset", [0, 4, 6, 10, 11, MAX_INTEGER])
def test_another_offset_is_answered_with_the_true_one(site: ServerProcess, offset: int) -> None:
    location = create(site.url, 10, body=b"hello")
    with unchanged(site):
        answer = patch(location, offset, b"x")
    assert (answer.status, answer.offset) == (409, 5)
    assert offset_of(location) == 5


@pytest.mark.parametrize("length", [5, 10, None])
def test_a_repeated_patch_changes_nothing(site: ServerProcess, length: int | None) -> None:
    location = create(site.url, length)
    assert patch(location, 0, b"hello").offset == 5
    with unchanged(site):
        answer = patch(location, 0, b"hello")
    assert (answer.status, answer.offset) == (409, 5)


def test_a_large_repeated_patch_gets_to_know_the_true_offset(site: ServerProcess) -> None:
    """The client sends everything before it reads the answer."""
    data = payload(4_000_000)
    location = create(site.url, len(data) + 1)
    assert patch(location, 0, data).offset == len(data)
    answer = patch(location, 0, data)
    assert (answer.status, answer.offset) == (409, len(data))


def test_patch_of_an_unknown_upload(site: ServerProcess) -> None:
    with unchanged(site):
        assert patch(site.url + UNKNOWN, 0, b"hello").status == 404


@pytest.mark.parametrize("body", [None, b"", []], ids=["no body", "length 0", "no chunks"])
@pytest.mark.parametrize(("length", "first"), [(5, b"hello"), (0, b""), (10, b"hello"), (10, b""), (None, b"hello")])
def test_an_empty_patch_changes_nothing(site: ServerProcess, length: int | None, first: bytes, body: Body) -> None:
    location = create(site.url, length, body=first)
    with unchanged(site):
        answer = patch(location, len(first), body)
    assert (answer.status, answer.offset) == (204, len(first))


def test_a_body_without_length_is_empty_and_the_connection_goes_on(site: ServerProcess) -> None:
    location = create(site.url, 5)
    with Connection(site.url) as connection:
        assert ask_on(connection, "PATCH", location, patch_headers(0)).offset == 0
        assert ask_on(connection, "PATCH", location, patch_headers(0), b"hello").offset == 5


def test_a_stored_part_of_a_broken_body_can_be_continued(site: ServerProcess) -> None:
    location = create(site.url, 100)
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, patch_headers(0) | {"Content-Length": "100"})
        connection.send(b"a" * 40)
    wait_until(lambda: offset_of(location) == 40)
    wait_until(lambda: patch(location, 40, b"b" * 60).status == 204)
    assert content_of(location) == b"a" * 40 + b"b" * 60


def test_endless_empty_patches_are_slowed_down(site: ServerProcess) -> None:
    location = create(site.url, None, body=b"hello")
    answered = 0
    end = time.monotonic() + 3
    with Connection(site.url) as connection:
        while time.monotonic() < end:
            assert ask_on(connection, "PATCH", location, patch_headers(5), b"").offset == 5
            answered += 1
    assert answered < 150


def test_occasional_empty_patches_between_bytes_are_not_slowed_down(site: ServerProcess) -> None:
    location = create(site.url, None)
    started = time.monotonic()
    with Connection(site.url) as connection:
        for offset in range(10):
            assert ask_on(connection, "PATCH", location, patch_headers(offset), b"").offset == offset
            assert ask_on(connection, "PATCH", location, patch_headers(offset), b"x").offset == offset + 1
    assert time.monotonic() - started < 4  # 10 empty ones took 5 seconds when each was slowed down


# More bytes than the length


@pytest.mark.parametrize(("length", "offset"), [(5, 0), (5, 3), (5, 5), (0, 0)])
def test_a_body_longer_than_the_upload_is_refused(site: ServerProcess, length: int, offset: int) -> None:
    location = create(site.url, length, body=b"hello"[:offset])
    with unchanged(site):
        answer = patch(location, offset, b"x" * (length - offset + 1))
    assert answer.status == 413
    assert offset_of(location) == offset


def test_a_body_longer_than_the_upload_is_refused_before_a_byte(site: ServerProcess) -> None:
    location = create(site.url, 5)
    with unchanged(site), Connection(site.url) as connection:
        connection.send_head("PATCH", location, patch_headers(0) | {"Content-Length": "6"})
        assert promised_answer(connection, "PATCH").status == 413


@pytest.mark.parametrize("chunks", [[b"0123456789x"], [b"01234", b"56789", b"x"], [b"01234", b"56789xyz", b"more"]])
def test_chunks_past_the_length_are_not_stored(site: ServerProcess, chunks: list[bytes]) -> None:
    before = stored(site)
    location = create(site.url, 10)
    with Connection(site.url) as connection:
        connection.send_head("PATCH", location, patch_headers(0) | {"Transfer-Encoding": "chunked"})
        for part in chunks:  # and no last one: the answer does not wait for it
            connection.send_chunk(part)
        assert promised_answer(connection, "PATCH").status == 413
    offset = offset_of(location)
    assert offset <= 10
    after = stored(site)
    assert all(after.files[name] <= 10 for name in after.files.keys() - before.files.keys())
    assert patch(location, offset, b"0123456789"[offset:]).status == 204
    assert content_of(location) == b"0123456789"


def test_chunks_after_the_end_are_not_stored(site: ServerProcess) -> None:
    location = create(site.url, 5, body=b"hello")
    with unchanged(site):
        assert patch(location, 5, [b"x"]).status == 413
    assert content_of(location) == b"hello"


@pytest.mark.parametrize("body", [b"x" * 1001, [b"x" * 600, b"x" * 600]], ids=["length", "chunks"])
def test_bytes_past_the_maximum_are_not_stored(small: ServerProcess, body: Body) -> None:
    before = stored(small)
    location = create(small.url, None)
    assert patch(location, 0, body).status == 413
    assert offset_of(location) <= 1000
    after = stored(small)
    assert all(after.files[name] <= 1000 for name in after.files.keys() - before.files.keys())


# Refusals that the headers decide


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Upload-Offset": "five"}, 400),
        ({"Upload-Offset": "4"}, 409),
        ({"Upload-Length": "ten"}, 400),
        ({"Upload-Length": "11"}, 400),
        ({"Upload-Checksum": "none eA=="}, 400),
        ({"Upload-Checksum": "sha1"}, 400),
        ({"Tus-Resumable": "2.0.0"}, 412),
        ({}, 413),
    ],
    ids=shown,
)
def test_a_patch_is_refused_before_100_continue(site: ServerProcess, headers: dict[str, Value], status: int) -> None:
    location = create(site.url, 10, body=b"hello")
    declared = 5 if headers else 6
    with unchanged(site):
        answer = refusal_without_continue("PATCH", location, patch_headers(5) | headers, declared)
    assert answer.status == status


def test_a_patch_of_an_unknown_upload_is_refused_before_100_continue(site: ServerProcess) -> None:
    assert refusal_without_continue("PATCH", site.url + UNKNOWN, patch_headers(0), 5).status == 404


def test_a_patch_over_the_maximum_is_refused_before_100_continue(small: ServerProcess) -> None:
    location = create(small.url, None, body=b"hello")
    with unchanged(small):
        assert refusal_without_continue("PATCH", location, patch_headers(5), 996).status == 413


# Two writers


def test_a_patch_that_stalls_makes_way_for_the_next_one(site: ServerProcess) -> None:
    location = create(site.url, 10)
    with Connection(site.url) as stalled, Connection(site.url, timeout=6) as connection:
        stalled.send_head("PATCH", location, patch_headers(0) | {"Content-Length": "10"})
        stalled.send(b"hello")
        wait_until(lambda: offset_of(location) == 5)
        answer = ask_on(connection, "PATCH", location, patch_headers(5), b"WORLD")
        assert (answer.status, answer.offset) == (204, 10)
    assert content_of(location) == b"helloWORLD"


def test_a_patch_that_is_sent_twice_at_once_is_stored_once(site: ServerProcess) -> None:
    data = payload(3_000_000)
    location = create(site.url, len(data))
    request = patch_headers(0) | {"Content-Length": str(len(data))}
    with Connection(site.url) as first, Connection(site.url) as second:
        for connection in (first, second):
            connection.send(connection.head_of("PATCH", location, request))
        for connection in (first, second):
            with contextlib.suppress(ConnectionError):  # the one that has lost may be sent away
                connection.send(data)
                assert promised_answer(connection, "PATCH").status in (204, 409, 423)
    offset = offset_of(location)
    assert patch(location, offset, data[offset:]).offset == len(data)
    assert content_of(location) == data


# A lock that is not to be had


def test_a_lock_that_is_not_obtained_in_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another server on the same directory holds the lock, and has stopped to do anything."""
    folder = tmp_path_factory.mktemp("locked")
    with serving(folder) as holder, serving(folder, lock_timeout=1) as server, Connection(holder.url) as connection:
        location = create(holder.url, 10)
        here = f"{server.url}/{identity(location)}"
        connection.send_head("PATCH", location, patch_headers(0) | {"Content-Length": "10"})
        connection.send(b"hello")
        wait_until(lambda: offset_of(location) == 5)
        holder.process.send_signal(signal.SIGSTOP)
        try:
            answer = patch(here, 5, b"world")
            assert answer.status == 423
            assert int(answer["Retry-After"]) > 0
            state = head(here)
            assert state.status in (200, 423)
            assert state.status == 200 or int(state["Retry-After"]) > 0
        finally:
            holder.process.send_signal(signal.SIGCONT)
        wait_until(lambda: patch(here, 5, b"world").status == 204)
        assert content_of(here) == b"helloworld"


# The connection after a refusal


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Upload-Offset": "3"}, b"hello"),
        ({"Upload-Offset": "3"}, [b"hello"]),
        ({"Content-Type": "text/plain"}, b"hello"),
        ({"Content-Type": "text/plain"}, [b"hello"]),
        ({}, b"hello world"),
        ({}, [b"hello world"]),
    ],
    ids=shown,
)
def test_a_refused_body_is_not_taken_for_a_request(
    site: ServerProcess, headers: dict[str, Value], body: bytes | list[bytes]
) -> None:
    location = create(site.url, 5)
    with Connection(site.url) as connection:
        assert ask_on(connection, "PATCH", location, patch_headers(0) | headers, body).status in (409, 413, 415)
        try:
            answer = ask_on(connection, "HEAD", location, TUS)
        except ConnectionError:
            return  # closed, which is fine
        assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content-Type": "text/plain"}, 415), ({"Upload-Offset": "x"}, 400), ({"Tus-Resumable": "0"}, 412), ({}, 413)],
    ids=shown,
)
def test_the_answer_to_a_large_refused_body_arrives(
    site: ServerProcess, headers: dict[str, Value], status: int
) -> None:
    location = create(site.url, 5)
    assert patch(location, 0, payload(4_000_000), headers).status == status


def test_creations_and_patches_on_one_connection(site: ServerProcess) -> None:
    with Connection(site.url) as connection:
        for number in range(3):
            created = ask_on(connection, "POST", site.url, TUS | {"Upload-Length": "5"}, b"")
            assert created.status == 201
            data = b"%05d" % number
            assert ask_on(connection, "PATCH", created["Location"], patch_headers(0), data).status == 204
            assert ask_on(connection, "HEAD", created["Location"], TUS).offset == 5
            assert ask_on(connection, "GET", created["Location"]).body == data


def test_a_finished_upload_of_one_byte(site: ServerProcess) -> None:
    answer = creation(site.url, 1)
    assert patch(answer["Location"], 0, b"x").offset == 1
    assert content_of(answer["Location"]) == b"x"
