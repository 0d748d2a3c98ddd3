"""Downloads that a proxy in front sends: the answers of the server with `--download-offload`, and a real nginx."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.front import in_front
from tests.support.harness import ServerProcess, serving
from tests.support.hosts import stopped
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tests.support.wire.messages import KIBI, MEBI, Answer, Headers, identity, metadata, payload
from tests.support.wire.promised import ask
from tests.support.wire.requests import create, offset_of, patch, request, start_patch, url_of

DATA = payload(3 * MEBI)
HTML = {"Upload-Metadata": metadata(filename="Prüfung, 100%.html", filetype="text/html")}
SENT_BY_THE_PROXY = ("accept-ranges", "content-range")
OFFLOADED = ("x-accel-redirect", "x-sendfile")
SHIPPED_LOCATION = re.compile(r"^( *)# (location /tusd-py-files/ \{\n(?: *# .*\n)*? *# \}\n)", re.MULTILINE)


@pytest.fixture(scope="module")
def nginx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def accel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server behind nginx."""
    with serving(
        tmp_path_factory.mktemp("accel"), download_offload="x-accel-redirect", trusted_proxies="127.0.0.1"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def sendfile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server behind a proxy that knows X-Sendfile, with a directory whose name needs quotes."""
    with serving(tmp_path_factory.mktemp("send 100% é"), download_offload="x-sendfile") as server:
        yield server


def finished(server: ServerProcess, data: bytes = DATA, headers: Headers | None = None) -> str:
    return create(server.port, len(data), headers or {}, data)


def described(port: int, path: str, headers: Headers | None = None) -> Answer:
    """Return the answer to the HEAD of a client that does not speak tus."""
    answer = ask("HEAD", url_of(port, path), headers)
    assert answer.status == 200, answer
    return answer


def test_nginx_is_told_the_place_of_the_file(accel: ServerProcess) -> None:
    path = finished(accel)
    answer = request(accel.port, "GET", path)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["x-accel-redirect"] == f"/tusd-py-files/{identity(path)}"
    assert answer.headers["content-length"] == "0"
    assert "x-sendfile" not in answer.headers


def test_a_prefix_and_a_folder_by_day_are_parts_of_the_place(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "download_offload": "x-accel-redirect",
        "download_offload_prefix": "/a/b/",
        "date_folders": True,
    }
    with serving(tmp_path, **options) as server:
        place = request(server.port, "GET", finished(server)).headers["x-accel-redirect"]
        assert re.fullmatch(r"/a/b/\d{4}/\d\d/\d\d/[\w-]+", place)
        assert (server.upload_dir / place.removeprefix("/a/b/")).read_bytes() == DATA


def test_x_sendfile_is_the_absolute_path_percent_encoded(sendfile: ServerProcess) -> None:
    path = finished(sendfile)
    answer = request(sendfile.port, "GET", path)
    assert (answer.status, answer.body) == (200, b"")
    folder = str(sendfile.upload_dir.absolute()).replace("%", "%25").replace(" ", "%20").replace("é", "%C3%A9")
    assert answer.headers["x-sendfile"] == f"{folder}/{identity(path)}"


def test_the_other_fields_are_those_of_a_download_without_offload(accel: ServerProcess) -> None:
    path = finished(accel, headers=HTML)
    answer, expected = request(accel.port, "GET", path), described(accel.port, path)
    assert expected["Content-Length"] == str(len(DATA))
    assert not set(OFFLOADED) & set(expected.headers)
    for name in ("content-type", "content-disposition", "content-security-policy", "etag", "last-modified"):
        assert answer[name] == expected[name]
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_ranges_are_left_to_the_proxy(accel: ServerProcess) -> None:
    answer = request(accel.port, "GET", finished(accel), {"Range": "bytes=10-19"})
    assert (answer.status, answer.body) == (200, b"")
    assert not set(SENT_BY_THE_PROXY) & set(answer.headers)


def test_conditions_are_met_by_the_server(accel: ServerProcess) -> None:
    path = finished(accel)
    tag = described(accel.port, path)["ETag"]
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-Match": '"other"'}, 412),
        ({"Range": f"bytes={len(DATA)}-"}, 416),
    ):
        answer = request(accel.port, "GET", path, headers)
        assert answer.status == status
        assert not set(OFFLOADED) & set(answer.headers)


def test_if_match_of_the_right_tag_is_answered_with_the_bytes(accel: ServerProcess) -> None:
    """A proxy would compare it with a tag of its own."""
    path = finished(accel)
    tag = described(accel.port, path)["ETag"]
    answer = request(accel.port, "GET", path, {"If-Match": tag})
    assert (answer.status, answer.body) == (200, DATA)


def test_an_upload_that_is_not_finished_or_not_there_is_not_offloaded(accel: ServerProcess) -> None:
    for path in (create(accel.port, len(DATA), body=DATA[:1000]), "/files/0123456789abcdef"):
        answer = request(accel.port, "GET", path)
        assert answer.status == 404
        assert not set(OFFLOADED) & set(answer.headers)


def test_a_file_that_is_gone_or_too_short_is_not_offloaded(accel: ServerProcess) -> None:
    path = finished(accel)
    file = accel.upload_dir / identity(path)
    with file.open("r+b") as stored:
        stored.truncate(1000)
    assert request(accel.port, "GET", path).status == 500
    file.unlink()
    answer = request(accel.port, "GET", path)
    assert answer.status == 404
    assert not set(OFFLOADED) & set(answer.headers)


def test_bytes_behind_the_end_of_an_upload_are_never_sent(accel: ServerProcess) -> None:
    path = finished(accel)
    with (accel.upload_dir / identity(path)).open("ab") as stored:
        stored.write(b"more")
    answer = request(accel.port, "GET", path)
    assert answer.body == DATA
    assert not set(OFFLOADED) & set(answer.headers)


def test_downloads_are_sent_by_the_server_by_default(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = request(server.port, "GET", finished(server))
        assert answer.body == DATA
        assert not set(OFFLOADED) & set(answer.headers)


def test_segments_of_a_shared_disk_are_one_file_when_they_are_offloaded(tmp_path: Path) -> None:
    """A host that stands still leaves a file to which no other host writes: the next one begins a second file."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        options: dict[str, Any] = {"redis_url": redis.url, "lock_ttl": "1s", "download_offload": "x-sendfile"}
        first, second = (stack.enter_context(ServerProcess(tmp_path / "uploads", **options)) for _ in range(2))
        path = create(first.port, len(DATA))
        connection = stack.enter_context(start_patch(first.port, path, 0, len(DATA)))
        connection.send(DATA[:MEBI])
        wait_until(lambda: offset_of(first.port, path) == MEBI, "what was sent is stored")
        with stopped(first):
            wait_until(lambda: patch(second.port, path, MEBI, DATA[MEBI:]).status == 204, "the lease has ended")
            answer = request(second.port, "GET", path)
            assert answer.status == 200
            stored = tmp_path / "uploads" / identity(path)
            assert answer.headers["x-sendfile"] == str(stored.absolute())
            assert stored.read_bytes() == DATA


# A real nginx.


def shipped_location(text: str, uploads: Path) -> str:
    """Return the shipped configuration with its location for downloads switched on."""
    found = SHIPPED_LOCATION.search(text)
    assert found is not None
    location = re.sub(r"^( *)# ", r"\1", found[0], flags=re.MULTILINE)
    assert "/srv/tusd-py" in location
    return text.replace(found[0], location.replace("/srv/tusd-py", str(uploads)))


@pytest.fixture(scope="module")
def front(accel: ServerProcess, nginx_folder: Path) -> Iterator[int]:
    """The port of nginx."""

    def edit(text: str) -> str:
        return shipped_location(text, accel.upload_dir)

    with in_front("nginx", nginx_folder / "front", accel.port, edit=edit) as port:
        yield port


def test_nginx_sends_the_bytes_with_the_fields_of_the_server(front: int, accel: ServerProcess) -> None:
    path = finished(accel, headers=HTML)
    answer = request(front, "GET", path, {"Origin": "https://app.example.org"})
    expected = described(accel.port, path, {"Origin": "https://app.example.org"})
    assert (answer.status, answer.body) == (200, DATA)
    assert not set(OFFLOADED) & set(answer.headers)
    for name in expected.headers.keys() - {"date", "server", "upload-offset"}:
        assert (name, answer.all(name)) == (name, expected.all(name))


def test_nginx_sends_ranges(front: int, accel: ServerProcess) -> None:
    path = finished(accel)
    tag = described(front, path)["ETag"]
    for condition in ({}, {"If-Range": tag}):
        answer = request(front, "GET", path, {"Range": f"bytes={MEBI}-{MEBI + 99}", **condition})
        assert (answer.status, answer.body) == (206, DATA[MEBI : MEBI + 100])
        assert answer.headers["content-range"] == f"bytes {MEBI}-{MEBI + 99}/{len(DATA)}"
    whole = request(front, "GET", path, {"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (whole.status, whole.body) == (200, DATA)
    assert request(front, "GET", path, {"Range": f"bytes={len(DATA)}-"}).status == 416


def test_conditions_through_nginx(front: int, accel: ServerProcess) -> None:
    path = finished(accel)
    tag, modified = described(front, path)["ETag"], described(front, path)["Last-Modified"]
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Match": tag}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": "Thu, 01 Jan 1998 00:00:00 GMT"}, 200),
        ({"If-Unmodified-Since": modified}, 200),
        ({"If-Unmodified-Since": "Thu, 01 Jan 1998 00:00:00 GMT"}, 412),
    ):
        answer = request(front, "GET", path, headers)
        assert (headers, answer.status) == (headers, status)
        assert answer.body == (DATA if status == 200 else answer.body)


def test_nobody_reaches_the_files_around_the_server(front: int, accel: ServerProcess) -> None:
    path = finished(accel, payload(KIBI))
    for place in (identity(path), ".tusd-py/uploads.sqlite3"):
        assert request(front, "GET", f"/tusd-py-files/{place}").status == 404
