"""Uploads to S3 through real servers: what clients are answered, and what is in the bucket afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.harness import COMMAND, ROOT, ServerProcess
from tests.support.hosts import LEASE, Hosts
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import CREDENTIALS, free_ports, rclone, s3_server
from tests.support.s3_uploads import PART, Place, calls_of, clean, digest_of, fetch, id_of, peak_memory, serving
from tests.support.timing import promptly, scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import (
    KIBI,
    MEBI,
    checksum,
    creation_headers,
    metadata,
    patch_headers,
    path_of,
    payload,
)
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

MAX_MEMORY = 150 * 10**6  # bytes resident, however large an upload is
STORAGE_CLASS = "REDUCED_REDUNDANCY"
MEMORY_MIB = int(os.environ.get("S3_MEMORY_MIB", "512"))  # of the upload in one PATCH
MEMORY_PATCHES_MIB = int(os.environ.get("S3_MEMORY_PATCHES_MIB", "200"))  # of the upload in 100 KiB PATCHes
HOSTILE: dict[str, str | bytes] = {
    "parent": "../../../etc/passwd",
    "dots": "..",
    "dot": ".",
    "absolute": "/etc/passwd",
    "backslashes": "..\\..\\boot.ini",
    "controls": "a\x00b\r\nX-Evil: 1\x7f",
    "field": "{id}{prefix}{metadata.name}",
    "escaped": "%2e%2e%2f%2e%2e",
    "query": "a?uploads&partNumber=1#x",
    "quotes": "a\"b'c;d",
    "other scripts": "Prüfung – 中文 🎧.webm",
    "long": "x" * 3000,
    "empty": "",
    "not text": b"\xff\xfe\x80",
}


@pytest.fixture(scope="module")
def place() -> Place:
    return Place(s3_server())


@pytest.fixture(scope="module")
def server(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that need nothing special of it; they may restart it."""
    with serving(tmp_path_factory.mktemp("s3"), place) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[ServerProcess, Place]]:
    """A server and a prefix for one test."""
    place = Place(s3_server())
    with serving(tmp_path, place) as server:
        yield server, place


def send(server: ServerProcess, path: str, data: bytes, size: int, offset: int = 0) -> None:
    """Send PATCHes of one size, with a HEAD after each."""
    while offset < len(data):
        answer = patch(server.port, path, offset, data[offset : offset + size])
        offset = min(len(data), offset + size)
        assert (answer.status, answer.offset) == (204, offset), answer
        assert offset_of(server.port, path) == offset


def partial(server: ServerProcess, data: bytes, **headers: str) -> str:
    return create(server.port, len(data), {"Upload-Concat": "partial", **headers}, data)


# Sizes.


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
    send(server, path, data, chunk)
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
    send(server, path, data, 4 * MEBI, first)
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
    send(server, path, data, len(data))
    assert patch(server.port, path, len(data), b"").status == 204
    place.assert_alone(path, data)


def test_a_wrong_offset_is_answered_with_the_right_one(server: ServerProcess) -> None:
    path = create(server.port, 3 * PART, body=payload(PART + 5))
    for offset in (0, PART, PART + 4, PART + 6):
        answer = patch(server.port, path, offset, b"data")
        assert (answer.status, answer.offset) == (409, PART + 5)


# Coming back.


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
        send(server, path, data, len(data), offset)
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
        send(server, path, data, len(data), sent)
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
    send(server, path, data, len(data), PART + 100_000)
    place.assert_alone(path, data)


# Checksums.


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


# Putting together.


@pytest.mark.parametrize(
    "sizes",
    [
        (0,),
        (0, 0),
        (7,),
        (1, 2, 3),
        (PART,),
        (PART + 1, PART + 2),
        (6 * MEBI, 100, 5 * MEBI, 3 * MEBI, 0, 7 * MEBI),
        (100, 6 * MEBI, 100),
        (3 * MEBI, 3 * MEBI, 3 * MEBI),
        (12 * MEBI, 1),
    ],
)
def test_partials_of_any_size_make_one_object(server: ServerProcess, place: Place, sizes: tuple[int, ...]) -> None:
    parts = [payload(size, seed) for seed, size in enumerate(sizes)]
    paths = [partial(server, data) for data in parts]
    headers = {"Upload-Concat": "final;" + " ".join(paths), "Upload-Metadata": metadata(filename="joined.bin")}
    answer = request(server.port, "POST", "/files", headers)
    assert answer.status == 201, answer
    final = path_of(answer)
    state = head(server.port, final)
    assert (state.offset, state.headers["upload-length"]) == (sum(sizes), str(sum(sizes)))
    place.assert_alone(final, b"".join(parts))
    assert place.describe(place.key_of(final))["ContentDisposition"] == 'attachment; filename="joined.bin"'
    assert_content(server.port, final, b"".join(parts))
    again = request(server.port, "POST", "/files", headers)
    assert (again.status, path_of(again)) == (201, final)
    assert patch(server.port, final, sum(sizes), b"more").status == 403
    for path, data in zip(paths, parts, strict=True):
        place.assert_alone(path, data)


def test_the_same_partial_twice_and_in_another_order(server: ServerProcess, place: Place) -> None:
    small, large = payload(1000), payload(PART + 5, 2)
    paths = [partial(server, data) for data in (small, large)]
    for order in ((0, 1, 0), (1, 1), (1, 0)):
        header = "final;" + " ".join(paths[number] for number in order)
        answer = request(server.port, "POST", "/files", {"Upload-Concat": header})
        assert answer.status == 201
        place.assert_alone(path_of(answer), b"".join((small, large)[number] for number in order))


def test_an_unfinished_partial_cannot_be_put_together(server: ServerProcess) -> None:
    path = create(server.port, PART + 1, {"Upload-Concat": "partial"}, payload(PART))
    assert request(server.port, "POST", "/files", {"Upload-Concat": f"final;{path}"}).status == 400


# Ending.


@pytest.mark.parametrize(
    ("sent", "restarted"),
    [(0, False), (1000, False), (PART, False), (2 * PART + 1000, False), (3 * PART, False), (2 * PART + 1000, True)],
)
def test_nothing_is_left_of_a_terminated_upload(
    server: ServerProcess, place: Place, sent: int, restarted: bool
) -> None:
    data = payload(3 * PART)
    path = create(server.port, len(data))
    offset = 0
    for end in (sent // 3, sent // 2, sent):
        if end > offset:
            assert patch(server.port, path, offset, data[offset:end]).offset == end
            offset = end
    if sent:
        assert place.traces_of(path)
    if restarted:
        server.restart()
    assert request(server.port, "DELETE", path).status == 204
    assert place.traces_of(path) == []
    assert head(server.port, path).status == 404
    assert request(server.port, "DELETE", path).status == 404
    assert patch(server.port, path, sent, data[sent:]).status == 404
    assert request(server.port, "GET", path).status == 404


def test_nothing_is_left_of_an_upload_that_is_terminated_under_way(server: ServerProcess, place: Place) -> None:
    data = payload(4 * PART)
    path = create(server.port, len(data))
    with start_patch(server.port, path, 0, len(data)) as connection:
        connection.send(data[: 3 * PART + 1000])
        with promptly("DELETE", 5):  # it waits for what is on its way to S3
            assert request(server.port, "DELETE", path).status == 204
        answer = connection.answer_or_closed()
        assert answer is None or answer.status in (404, 423)
    assert head(server.port, path).status == 404
    wait_until(lambda: not place.traces_of(path), "everything is removed", 5)


def test_nothing_is_left_of_an_expired_upload(tmp_path: Path) -> None:
    data = payload(2 * PART)
    place = Place(s3_server())
    with serving(tmp_path, place, expires_after="1.5s", sweep_interval="0.2s") as server:
        finished = create(server.port, 1000, body=data[:1000])
        paths = [create(server.port, len(data), body=data[:size]) for size in (0, 1000, PART, PART + 1000)]
        wait_until(lambda: all(head(server.port, path).status == 404 for path in paths), "they expire")
        wait_until(lambda: place.keys == [place.key_of(finished)], "everything is removed")
        wait_until(lambda: not place.multiparts, "every multipart upload is aborted")
        for path in paths:
            assert patch(server.port, path, 0, data).status == 404
        place.assert_object(finished, data[:1000])


# Downloads.


def test_ranges_of_a_download(server: ServerProcess, place: Place) -> None:
    data = payload(2 * PART + 11)
    path = create(server.port, len(data), {"Upload-Metadata": metadata(filename="a.bin")}, data)
    whole = request(server.port, "GET", path)
    assert (whole.status, digest_of(whole.body)) == (200, digest_of(data))
    assert whole.headers["content-disposition"] == 'attachment; filename="a.bin"'
    end = len(data)
    for text, start, stop in (
        ("bytes=0-0", 0, 1),
        (f"bytes={PART - 1}-{PART}", PART - 1, PART + 1),
        (f"bytes={MEBI}-", MEBI, end),
        ("bytes=-5", end - 5, end),
        (f"bytes=100-{10 * end}", 100, end),
    ):
        answer = request(server.port, "GET", path, {"Range": text})
        assert (answer.status, digest_of(answer.body)) == (206, digest_of(data[start:stop]))
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{end}"
    assert request(server.port, "GET", path, {"Range": f"bytes={end}-"}).status == 416
    assert request(server.port, "GET", path, {"If-None-Match": whole.headers["etag"]}).status == 304


def test_an_unfinished_upload_cannot_be_downloaded(server: ServerProcess) -> None:
    path = create(server.port, 2 * PART, body=payload(PART + 1))
    assert request(server.port, "GET", path).status == 404


def test_an_object_that_somebody_removed_cannot_be_downloaded(server: ServerProcess, place: Place) -> None:
    path = create(server.port, 1000, body=payload(1000))
    place.remove([place.key_of(path)])
    assert request(server.port, "GET", path).status == 404


def test_downloads_by_redirect(tmp_path: Path) -> None:
    data = payload(PART + 1000)
    place = Place(s3_server())
    with serving(tmp_path, place, s3_download="redirect") as server:
        fields = metadata(filename="Prüfung, 100%.html", filetype="text/html")
        path = create(server.port, len(data), {"Upload-Metadata": fields}, data)
        answer = request(server.port, "GET", path)
        assert answer.status == 302
        assert "no-store" in answer.headers["cache-control"]
        location = answer.headers["location"]
        assert location.startswith(place.server.endpoint)
        assert 0 < int(parse_qs(urlsplit(location).query)["X-Amz-Expires"][0]) <= 3600
        stored = fetch(location)
        assert (stored.status, digest_of(stored.body)) == (200, digest_of(data))
        disposition = stored.headers["content-disposition"]
        assert disposition.startswith("attachment; ")
        assert "filename*=UTF-8''Pr%C3%BCfung%2C%20100%25.html" in disposition
        ranged = fetch(location, {"Range": f"bytes={PART}-{PART + 99}"})
        assert (ranged.status, ranged.body) == (206, data[PART : PART + 100])
        assert request(server.port, "GET", path, {"Range": f"bytes={len(data)}-"}).status == 416
        unfinished = create(server.port, len(data), body=data[:1000])
        assert request(server.port, "GET", unfinished).status == 404
        picture = create(server.port, 4, {"Upload-Metadata": metadata(filename="a.png", filetype="image/png")}, b"data")
        shown = fetch(request(server.port, "GET", picture).headers["location"])
        assert shown.headers["content-type"] == "image/png"
        assert shown.headers["content-disposition"] == 'inline; filename="a.png"'
        empty = create(server.port, 0)
        assert fetch(request(server.port, "GET", empty).headers["location"]).body == b""


# The object.


def test_keys_from_hostile_metadata(tmp_path: Path) -> None:
    """An object is below the prefix, at a place that only one upload has, whatever clients say."""
    place = Place(s3_server())
    template = "{prefix}by/{metadata.folder}/{metadata.filename}-{id}.bin"
    data = payload(500)
    with serving(tmp_path, place, s3_key_template=template) as server:
        for value in HOSTILE.values():
            before = set(place.keys)
            fields = metadata(folder=value, filename=value)
            path = create(server.port, len(data), {"Upload-Metadata": fields}, data[:100])
            assert patch(server.port, path, 100, data[100:]).status == 204
            (key,) = set(place.keys) - before
            assert re.fullmatch(rf"{place.prefix}by/[A-Za-z0-9!_.*'()-]+/[^/]*-{id_of(path)}\.bin", key), key
            assert not {".", "..", ""} & set(key.split("/")), key
            assert len(key) <= 1024
            assert place.digest(key) == digest_of(data)
            assert_content(server.port, path, data)
        without = create(server.port, len(data), body=data)
        assert_content(server.port, without, data)
        server.restart()
        before = set(place.keys)
        large = payload(PART + 1)
        path = create(server.port, len(large), {"Upload-Metadata": metadata(folder="a", filename="b")}, large[:1000])
        server.restart()
        send(server, path, large, len(large), 1000)
        assert set(place.keys) - before == {f"{place.prefix}by/a/b-{id_of(path)}.bin"}
        assert_content(server.port, path, large)
        assert request(server.port, "DELETE", path).status == 204
        assert set(place.keys) == before
    assert all(key.startswith(f"{place.prefix}by/") for key in place.keys)


@pytest.mark.parametrize("length", [100, PART + 100])
def test_type_and_name_of_the_object(server: ServerProcess, place: Place, length: int) -> None:
    fields = metadata(filename='Prü"fung.webm', filetype="video/webm")
    path = create(server.port, length, {"Upload-Metadata": fields}, payload(length))
    found = place.describe(place.key_of(path))
    assert found["ContentType"] == "video/webm"
    assert found["ContentDisposition"] == (
        "attachment; filename=\"Pr__fung.webm\"; filename*=UTF-8''Pr%C3%BC%22fung.webm"
    )
    assert found["ContentLength"] == length
    user = {name: value for name, value in found["Metadata"].items() if not name.startswith("tusd-py-")}
    assert user == {}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_types_and_names_are_no_header_fields(server: ServerProcess, place: Place, value: str | bytes) -> None:
    fields = metadata(filename=value, filetype=value)
    path = create(server.port, 10, {"Upload-Metadata": fields}, b"0123456789")
    found = place.describe(place.key_of(path))
    assert found["ContentType"] == "application/octet-stream"
    assert re.fullmatch(r"attachment(; filename=\"[ -~]*\")?(; filename\*=UTF-8''[!-~]+)?", found["ContentDisposition"])
    assert "X-Evil" not in found["ResponseMetadata"]["HTTPHeaders"]
    assert_content(server.port, path, b"0123456789")


def test_tags_and_storage_class_of_the_object(tmp_path: Path) -> None:
    place = Place(s3_server())
    with serving(tmp_path, place, s3_tags="project=press + more,kind=upload", s3_storage_class=STORAGE_CLASS) as server:
        for length in (10, PART + 10):
            path = create(server.port, length, body=payload(length))
            assert place.tags_of(place.key_of(path)) == {"project": "press + more", "kind": "upload"}
            place.assert_alone(path, payload(length))
            assert place.describe(place.key_of(path)).get("StorageClass", STORAGE_CLASS) == STORAGE_CLASS


# Two hosts with one Redis.


@contextmanager
def two_hosts(folder: Path, place: Place, **options: Any) -> Iterator[Hosts]:
    """Two hosts that share only S3 and Redis."""
    options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(6)}:", "lock_ttl": f"{LEASE}s"}
    with (
        serving(folder / "first", place, **options) as first,
        serving(folder / "second", place, **options) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def hosts(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts"), place) as hosts:
        yield hosts


@pytest.mark.parametrize("size", [1000, 900_001, PART + 1])
def test_every_patch_at_another_host(hosts: Hosts, place: Place, size: int) -> None:
    data = payload(9 * size if size < MEBI else 3 * PART + 7)
    path = create(hosts[0].port, len(data))
    for number, offset in enumerate(range(0, len(data), size)):
        end = min(len(data), offset + size)
        assert patch(hosts[number % 2].port, path, offset, data[offset:end]).offset == end
        assert [offset_of(server.port, path) for server in hosts] == [end, end]
    place.assert_alone(path, data)
    for server in hosts:
        assert_content(server.port, path, data)


def test_a_stalled_patch_is_taken_over_by_another_host(hosts: Hosts, place: Place) -> None:
    data = payload(3 * PART)
    path = create(hosts[0].port, len(data))
    with stalled_patch(hosts[0].port, path, data, PART + 333_333):
        with promptly("HEAD"):
            assert offset_of(hosts[1].port, path) == PART + 333_333
        answer = patch(hosts[1].port, path, PART + 333_333, data[PART + 333_333 :])
        assert (answer.status, answer.offset) == (204, len(data))
    place.assert_alone(path, data)
    assert_content(hosts[0].port, path, data)


def test_a_wrong_checksum_at_one_host_keeps_nothing_at_another(hosts: Hosts, place: Place) -> None:
    data = payload(3 * PART)
    path = create(hosts[0].port, len(data), body=data[: PART + 10])
    assert patch(hosts[1].port, path, PART + 10, data[PART + 10 :], checksum(b"other")).status == 460
    for server in hosts:
        assert offset_of(server.port, path) == PART + 10
    assert patch(hosts[0].port, path, PART + 10, data[PART + 10 :]).offset == len(data)
    place.assert_alone(path, data)


def test_partials_of_two_hosts_are_put_together(hosts: Hosts, place: Place) -> None:
    parts = [payload(size, size) for size in (PART + 1, 100, PART)]
    paths = [partial(hosts[number % 2], data) for number, data in enumerate(parts)]
    answers = [
        request(server.port, "POST", "/files", {"Upload-Concat": "final;" + " ".join(paths)}) for server in hosts
    ]
    assert [answer.status for answer in answers] == [201, 201]
    assert len({path_of(answer) for answer in answers}) == 1
    place.assert_alone(path_of(answers[0]), b"".join(parts))


def test_a_termination_at_another_host_leaves_nothing(hosts: Hosts, place: Place) -> None:
    data = payload(2 * PART)
    path = create(hosts[0].port, len(data))
    with stalled_patch(hosts[0].port, path, data, PART + 1000):
        assert offset_of(hosts[1].port, path) == PART + 1000
        assert request(hosts[1].port, "DELETE", path).status == 204
        for server in hosts:
            assert head(server.port, path).status == 404
    wait_until(lambda: not place.traces_of(path), "everything is removed", 5)


# At the start.


@pytest.mark.parametrize(
    ("changes", "environment", "sentence", "code"),
    [
        ({"s3_bucket": "not-there"}, {}, "not-there", 1),
        ({}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "credentials", 1),
        ({}, {"AWS_ACCESS_KEY_ID": "unknown"}, "credentials", 1),
        ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials", 1),
        ({"s3_endpoint": None}, {}, "cannot be reached", 1),
        ({"s3_key_template": "{prefix}everything"}, {}, "{id}", 2),  # a setting that is not accepted
    ],
    ids=["bucket", "secret", "key", "no credentials", "endpoint", "object key"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_mistakes_are_one_clear_line(
    tmp_path: Path, workers: int, changes: dict[str, Any], environment: dict[str, str], sentence: str, code: int
) -> None:
    if "s3_endpoint" in changes:
        changes = {"s3_endpoint": f"http://127.0.0.1:{free_ports(1)[0]}"}
    options = Place(s3_server()).options() | {"workers": workers} | changes
    environment = CREDENTIALS | environment
    del options["env"]
    server = ServerProcess(tmp_path / "records", **options)
    ended = subprocess.run(
        [*COMMAND, *server.arguments()],
        cwd=ROOT,
        env={name: value for name, value in (os.environ | environment).items() if value},
        capture_output=True,
        text=True,
        timeout=scaled(60),
    )
    assert ended.returncode == code, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tusd-py: ")
    assert sentence in line
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in line
    assert ended.stdout == ""


# Another S3 server.


def test_a_server_that_can_do_little(tmp_path: Path) -> None:
    place = Place(rclone())
    with serving(tmp_path, place, s3_dialect="plain") as server:
        for length in (0, 1000, PART, 2 * PART + 99):
            data = payload(length)
            path = create(server.port, length)
            send(server, path, data, 3 * MEBI)
            place.assert_object(path, data)
            assert_content(server.port, path, data)
        data = payload(2 * PART + 99)
        path = create(server.port, len(data), body=data[: PART + 1000])
        server.restart()
        assert offset_of(server.port, path) == PART + 1000
        assert patch(server.port, path, PART + 1000, data[PART + 1000 :]).offset == len(data)
        place.assert_object(path, data)
        assert request(server.port, "DELETE", path).status == 204
        assert place.key_of(path) not in place.keys
        parts = [payload(size, size) for size in (PART + 1, 100, 3 * MEBI)]
        paths = [partial(server, one) for one in parts]
        answer = request(server.port, "POST", "/files", {"Upload-Concat": "final;" + " ".join(paths)})
        assert answer.status == 201
        place.assert_object(path_of(answer), b"".join(parts))


def test_a_server_that_can_do_little_keeps_nothing_of_a_patch_with_a_wrong_checksum(tmp_path: Path) -> None:
    data = payload(2 * PART + 99)
    place = Place(rclone())
    with serving(tmp_path, place, s3_dialect="plain") as server:
        path = create(server.port, len(data), body=data[: PART + 1000])
        assert patch(server.port, path, PART + 1000, data[PART + 1000 :], checksum(b"other")).status == 460
        assert offset_of(server.port, path) == PART + 1000
        answer = patch(server.port, path, PART + 1000, data[PART + 1000 :])
        assert (answer.status, answer.headers.get("upload-offset")) == (204, str(len(data)))
        place.assert_object(path, data)


# Cost.

LOOKING = {"head_object", "list_parts", "get_object", "list_objects_v2"}
CLEARING = {"delete_object", "delete_objects"}


def test_a_small_patch_costs_one_put_at_most(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    data = payload(64 * KIBI)
    path = create(server.port, len(data) + 1)
    before = calls_of(server)
    start = before.copy()
    for offset in range(0, len(data), KIBI):
        assert patch(server.port, path, offset, data[offset : offset + KIBI]).status == 204
        after = calls_of(server)
        changing = {name: after[name] - before[name] for name in after if name not in LOOKING | CLEARING}
        assert sum(changing.values()) == changing.get("put_object", 0) <= 1, changing
        before = after
    total = before - start
    assert total["put_object"] == 64
    assert sum(total[name] for name in CLEARING) <= 64 / 8, total
    assert sum(total[name] for name in LOOKING) <= 64, total
    assert patch(server.port, path, len(data), b"x").status == 204
    place.assert_alone(path, data + b"x")


def test_calls_grow_with_the_number_of_patches_only(own: tuple[ServerProcess, Place]) -> None:
    """200 PATCHes of 100 KiB: one PutObject each, four parts of 5 MiB, and a few requests to begin, clear and end."""
    server, place = own
    size, count = 100 * KIBI, 200
    data = payload(size * count)
    path = create(server.port, len(data))
    start = calls_of(server)
    half = start
    for number in range(count):
        if number == count // 2:
            half = calls_of(server)
        offset = number * size
        assert patch(server.port, path, offset, data[offset : offset + size]).status == 204
    total = calls_of(server) - start
    first = sum((half - start).values())
    print(dict(total))
    assert total["create_multipart_upload"] == total["complete_multipart_upload"] == 1
    assert total["upload_part"] == 4
    assert total["put_object"] <= count
    assert sum(total[name] for name in CLEARING) <= count / 8
    assert sum(total[name] for name in LOOKING) <= 10  # what was sent before is still in memory
    assert sum(total.values()) <= count * 1.2
    assert sum(total.values()) <= 2 * first + 10
    place.assert_alone(path, data)
    assert place.keys == [place.key_of(path)]


# Memory.


@pytest.mark.long
@pytest.mark.timeout(60 + MEMORY_MIB)
@pytest.mark.fresh_interpreter
def test_one_patch_of_any_size_needs_little_memory(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    block = payload(MEBI)
    length = MEMORY_MIB * MEBI
    path = create(server.port, length)
    with start_patch(server.port, path, 0, length) as connection:
        for number in range(MEMORY_MIB):
            connection.send(number.to_bytes(8))
            connection.send(block[8:])
        answer = connection.answer(60)
    assert (answer.status, answer.offset) == (204, length)
    print(f"{MEMORY_MIB} MiB in one PATCH: {peak_memory(server) / 1e6:.0f} MB")
    assert peak_memory(server) < MAX_MEMORY
    assert place.digest(place.key_of(path)) == streamed(block, MEMORY_MIB)
    assert request(server.port, "DELETE", path).status == 204


@pytest.mark.long
@pytest.mark.timeout(60 + MEMORY_PATCHES_MIB)
@pytest.mark.fresh_interpreter
def test_many_patches_need_little_memory(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    size = 100 * KIBI
    count = MEMORY_PATCHES_MIB * MEBI // size
    block = payload(size)
    path = create(server.port, size * count)
    with Connection(server.port) as connection:
        for number in range(count):
            body = number.to_bytes(8) + block[8:]
            headers = patch_headers(number * size) | {"Content-Length": str(size)}
            connection.start("PATCH", path, headers)
            connection.send(body)
            answer = connection.answer()
            assert (answer.status, answer.offset) == (204, (number + 1) * size), answer
    print(f"{MEMORY_PATCHES_MIB} MiB in {count} PATCHes: {peak_memory(server) / 1e6:.0f} MB")
    assert peak_memory(server) < MAX_MEMORY
    assert place.digest(place.key_of(path)) == streamed(block, count)
    assert place.keys == [place.key_of(path)]


def streamed(block: bytes, count: int) -> tuple[int, str]:
    """Return size and SHA-256 of `count` blocks, each with its number at the front."""
    digest = hashlib.sha256()
    for number in range(count):
        digest.update(number.to_bytes(8))
        digest.update(memoryview(block)[8:])
    return len(block) * count, digest.hexdigest()


@pytest.mark.long
@pytest.mark.fresh_interpreter
def test_many_uploads_at_once_need_little_memory(own: tuple[ServerProcess, Place]) -> None:
    """More parts are begun than there is room for; slow ones among them do not stop the others."""
    server, place = own
    data = payload(PART + 700 * KIBI)
    with ExitStack() as stack:
        paths = [create(server.port, len(data)) for _ in range(30)]
        connections = [stack.enter_context(start_patch(server.port, path, 0, len(data))) for path in paths]
        for connection in connections:
            connection.socket.settimeout(60)
        sizes = [0] * len(paths)
        deadline = time.monotonic() + 60
        while any(sent < len(data) for sent in sizes):
            assert time.monotonic() < deadline, sizes
            for number, connection in enumerate(connections):
                piece = data[sizes[number] : sizes[number] + 64 * KIBI]
                with suppress(BlockingIOError):
                    connection.socket.setblocking(False)
                    sizes[number] += connection.socket.send(piece)
        for connection in connections:
            connection.socket.setblocking(True)
            assert connection.answer(60).offset == len(data)
    print(f"{len(paths)} uploads at once: {peak_memory(server) / 1e6:.0f} MB")
    assert peak_memory(server) < MAX_MEMORY + 50 * 10**6  # both budgets in full
    for path in paths:
        place.assert_alone(path, data)
    assert sorted(place.keys) == sorted(place.key_of(path) for path in paths)
