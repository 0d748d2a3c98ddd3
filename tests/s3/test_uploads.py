"""Uploads to S3 through real servers: what clients are answered, and what is in the bucket afterwards."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_uploads import PART, Place, calls_of, clean, send_patches
from tests.support.timing import promptly, wait_until
from tests.support.wire.messages import KIBI, MEBI, checksum, creation_headers, path_of, payload
from tests.support.wire.requests import (
    assert_content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)


@pytest.mark.parametrize(
    ("chunk", "length"),
    [
        (1, 40),
        (KIBI, 50 * KIBI + 1),
        (100 * KIBI, PART + 300 * KIBI + 7),
        (PART - 1, 2 * PART + 99),
        (PART, 2 * PART),
        (PART, 2 * PART + 1),
        (PART + 1, 2 * PART + 2),
        (2 * PART + 77, 4 * PART + 154),
        (6 * PART, 3 * PART + 1),
    ],
)
def test_patches_of_every_size(server: ServerProcess, place: Place, chunk: int, length: int) -> None:
    data = payload(length)
    path = create(server.port, length)
    send_patches(server, path, data, chunk)
    assert head(server.port, path).headers["upload-length"] == str(length)
    place.assert_alone(path, data)
    assert_content(server.port, path, data)


@pytest.mark.parametrize("length", [1, 1000, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 5])
@pytest.mark.parametrize("with_creation", [False, True])
def test_one_request_for_everything(server: ServerProcess, place: Place, length: int, with_creation: bool) -> None:
    data = payload(length)
    if with_creation:
        answer = request(server.port, "POST", "/files", creation_headers(length, data), data)
        assert (answer.status, answer.offset) == (201, length)
        path = path_of(answer)
    else:
        path = create(server.port, length)
        assert patch(server.port, path, 0, data).offset == length
    assert offset_of(server.port, path) == length
    place.assert_alone(path, data)
    assert_content(server.port, path, data)


def test_an_empty_upload_is_an_empty_object(server: ServerProcess, place: Place) -> None:
    path = create(server.port, 0)
    assert offset_of(server.port, path) == 0
    place.assert_alone(path, b"")
    assert_content(server.port, path, b"")


@pytest.mark.parametrize("first", [1, 100 * KIBI, PART - 1, PART, PART + 1])
def test_an_upload_that_goes_on_after_its_creation(server: ServerProcess, place: Place, first: int) -> None:
    data = payload(2 * PART + 17)
    answer = request(server.port, "POST", "/files", creation_headers(len(data), data[:first]), data[:first])
    assert (answer.status, answer.offset) == (201, first)
    path = path_of(answer)
    send_patches(server, path, data, 4 * MEBI, first)
    place.assert_alone(path, data)


@pytest.mark.parametrize("length", [0, 1, 700 * KIBI, PART, 2 * PART + 123])
@pytest.mark.parametrize("declared", ["with the last bytes", "after the last bytes"])
def test_a_length_that_is_declared_at_the_end(server: ServerProcess, place: Place, length: int, declared: str) -> None:
    data = payload(length)
    path = create(server.port, None)
    before = length - min(length, 1000) if declared == "with the last bytes" else length
    for offset in range(0, before, 900_001):
        end = min(before, offset + 900_001)
        assert patch(server.port, path, offset, data[offset:end]).offset == end
        answer = head(server.port, path)
        assert (answer.offset, answer.headers["upload-defer-length"]) == (end, "1")
    answer = patch(server.port, path, before, data[before:], {"Upload-Length": str(length)})
    assert (answer.status, answer.offset) == (204, length)
    assert head(server.port, path).headers["upload-length"] == str(length)
    place.assert_alone(path, data)


def test_a_chunked_body_without_a_length(server: ServerProcess, place: Place) -> None:
    data = payload(2 * PART + 3)
    path = create(server.port, len(data))
    with start_patch(server.port, path, 0, None) as connection:
        for start in range(0, len(data), 777_777):
            piece = data[start : start + 777_777]
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n")
        assert connection.answer().offset == len(data)
    place.assert_alone(path, data)


def test_more_bytes_than_the_length_are_not_stored(server: ServerProcess, place: Place) -> None:
    data = payload(PART + 100)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data + b"more").status == 413
    assert offset_of(server.port, path) == 0
    send_patches(server, path, data, len(data))
    assert patch(server.port, path, len(data), b"").status == 204
    place.assert_alone(path, data)


def test_a_wrong_offset_is_answered_with_the_right_one(server: ServerProcess) -> None:
    path = create(server.port, 3 * PART, body=payload(PART + 5))
    for offset in (0, PART, PART + 4, PART + 6):
        answer = patch(server.port, path, offset, b"data")
        assert (answer.status, answer.offset) == (409, PART + 5)


@pytest.mark.long
def test_kills_between_patches_lose_nothing(own: tuple[ServerProcess, Place]) -> None:
    """Every upload is at another point of its way: nothing yet, a tail, parts, parts and a tail."""
    server, place = own
    data = payload(3 * PART + 12_345)
    sizes = (1, 3000, 700 * KIBI, PART - 1, PART, PART + 1, PART + 900 * KIBI)
    paths = {create(server.port, len(data)): size for size in sizes}
    deferred = create(server.port, None)
    untouched = create(server.port, len(data))
    offsets = dict.fromkeys([*paths, deferred, untouched], 0)
    for _ in range(3):
        for path, size in [*paths.items(), (deferred, 2_000_000)]:
            end = min(len(data), offsets[path] + size)
            if end > offsets[path]:
                assert patch(server.port, path, offsets[path], data[offsets[path] : end]).offset == end
            offsets[path] = end
        server.restart()
        assert {path: offset_of(server.port, path) for path in offsets} == offsets
    for path, offset in offsets.items():
        answer = patch(server.port, path, offset, data[offset:], {"Upload-Length": str(len(data))})
        assert (answer.status, answer.offset) == (204, len(data)), (answer, offset)
        place.assert_alone(path, data)
    assert sorted(place.keys) == sorted(place.key_of(path) for path in offsets)


def test_a_kill_in_the_middle_of_a_patch_keeps_a_prefix(own: tuple[ServerProcess, Place]) -> None:
    """A multipart upload that S3 began while the server died is in no record, and left to the orphan cleanup."""
    server, place = own
    data = payload(3 * PART)
    with ExitStack() as stack:
        paths = {create(server.port, len(data)): sent for sent in (1000, PART - 10, PART + 10, 2 * PART + MEBI)}
        acknowledged = {}
        for path, sent in paths.items():
            connection = stack.enter_context(stalled_patch(server.port, path, data, sent))
            acknowledged[path] = offset_of(server.port, path)
            assert acknowledged[path] == sent
            connection.send(data[sent : sent + 200 * KIBI])
        server.restart()
    for path, sent in paths.items():
        offset = offset_of(server.port, path)
        assert acknowledged[path] <= offset <= sent + 200 * KIBI
        send_patches(server, path, data, len(data), offset)
    server.terminate()
    asyncio.run(clean(server.upload_dir, place))
    for path in paths:
        place.assert_alone(path, data)


def test_bytes_before_a_disconnect_are_kept(server: ServerProcess, place: Place) -> None:
    data = payload(2 * PART)
    for sent in (1, 100 * KIBI, PART + 55):
        path = create(server.port, len(data))
        with start_patch(server.port, path, 0, len(data)) as connection:
            connection.send(data[:sent])
            connection.wait_until_read()
            connection.reset()
        wait_until(lambda path=path, sent=sent: offset_of(server.port, path) == sent, "everything is kept")  # type: ignore[misc]
        send_patches(server, path, data, len(data), sent)
        place.assert_alone(path, data)


def test_a_stalled_patch_blocks_neither_head_nor_the_next_patch(server: ServerProcess, place: Place) -> None:
    data = payload(2 * PART)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, PART + 4321):
        with promptly("HEAD"):
            offset = offset_of(server.port, path)
        assert offset == PART + 4321
        with start_patch(server.port, path, offset, len(data) - offset) as connection:
            connection.send(data[offset:])
            assert connection.answer().offset == len(data)
    place.assert_alone(path, data)


def test_a_shutdown_keeps_what_has_arrived(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    data = payload(3 * PART)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, PART + 100_000) as connection:
        server.terminate()
        answer = connection.answer_or_closed()
        assert answer is None or answer.status == 503
    server.origin = server.url = ""
    server.start()
    assert offset_of(server.port, path) == PART + 100_000
    send_patches(server, path, data, len(data), PART + 100_000)
    place.assert_alone(path, data)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_right_checksum(server: ServerProcess, place: Place, algorithm: str) -> None:
    data = payload(2 * PART + 99)
    path = create(server.port, len(data))
    for start, end in ((0, 1000), (1000, PART + 7), (PART + 7, len(data))):
        answer = patch(server.port, path, start, data[start:end], checksum(data[start:end], algorithm))
        assert (answer.status, answer.offset) == (204, end)
    place.assert_alone(path, data)


@pytest.mark.parametrize("before", [0, 1000, PART, PART + 1000])
@pytest.mark.parametrize("last", [True, False], ids=["to the end", "not to the end"])
def test_a_wrong_checksum_keeps_nothing_of_a_patch_whose_parts_were_uploaded(
    server: ServerProcess, place: Place, before: int, last: bool
) -> None:
    data = payload(before + 2 * PART + 500)
    length = len(data) if last else len(data) + PART
    path = create(server.port, length, body=data[:before])
    wrong = payload(len(data) - before, seed=2)
    for _ in range(2):
        uploaded = calls_of(server)["upload_part"]
        assert patch(server.port, path, before, wrong, checksum(data)).status == 460
        assert calls_of(server)["upload_part"] > uploaded
        assert offset_of(server.port, path) == before
        assert request(server.port, "GET", path).status == 404
    if last and before:
        server.restart()
    assert offset_of(server.port, path) == before
    answer = patch(server.port, path, before, data[before:], checksum(data[before:]))
    assert (answer.status, answer.offset) == (204, len(data))
    more = payload(length - len(data), seed=3)
    if more:
        assert patch(server.port, path, len(data), more).offset == length
    place.assert_alone(path, data + more)


def test_a_wrong_checksum_of_a_little_keeps_nothing(server: ServerProcess, place: Place) -> None:
    data = payload(10_000)
    path = create(server.port, len(data), body=data[:4000])
    assert patch(server.port, path, 4000, data[4000:8000], checksum(b"other")).status == 460
    assert patch(server.port, path, 4000, data[4000:], checksum(b"other")).status == 460
    assert offset_of(server.port, path) == 4000
    assert patch(server.port, path, 4000, data[4000:], checksum(data[4000:])).offset == len(data)
    place.assert_alone(path, data)
