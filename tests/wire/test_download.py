from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Answer, Headers, identity, metadata, patch_headers, payload, shown
from tests.support.wire.promised import IMF_DATE, ask, ask_on, create, head, offset_of, patch, promised_answer

DATA = payload(1000)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("download")) as server:
        yield server


@pytest.fixture(scope="module")
def thousand(site: ServerProcess) -> str:
    """The URL of a finished upload of 1000 bytes."""
    return create(site.url, len(DATA), body=DATA)


def get(url: str, headers: Headers | None = None) -> Answer:
    return ask("GET", url, headers)


# Finished or not


def test_a_finished_upload_can_be_downloaded(thousand: str) -> None:
    answer = get(thousand)
    assert answer.status == 200
    assert answer.body == DATA
    assert answer["Content-Length"] == "1000"
    assert answer["Accept-Ranges"] == "bytes"
    assert re.fullmatch(r'"[^"]+"', answer["ETag"])
    assert IMF_DATE.fullmatch(answer["Last-Modified"])


def test_head_without_protocol_version_of_a_finished_upload_answers_as_get(site: ServerProcess) -> None:
    location = create(site.url, 1000, {"Upload-Metadata": metadata(filename="a.html", filetype="text/html")}, DATA)
    answer, downloaded = ask("HEAD", location), get(location)
    assert (answer.status, answer.body) == (200, b"")
    for name, value in downloaded.fields:
        if name not in ("date", "tus-resumable"):
            assert answer[name] == value
    assert answer["Content-Length"] == "1000"
    assert answer["Content-Security-Policy"] == "sandbox; default-src 'none'"
    tag = {"If-None-Match": answer["ETag"]}
    assert ask("HEAD", location, tag).status == get(location, tag).status == 304
    assert ask("HEAD", location, {"Range": "bytes=0-1"})["Content-Length"] == "1000"  # ranges are for GET only
    assert ask("HEAD", location, {"Range": "bytes=2000-"}).status == 200


def test_head_without_protocol_version_keeps_the_connection_in_order(thousand: str) -> None:
    with Connection(thousand) as connection:
        for _ in range(3):
            assert ask_on(connection, "HEAD", thousand)["Content-Length"] == "1000"
            assert ask_on(connection, "GET", thousand).body == DATA


def test_head_without_protocol_version_of_an_empty_upload(site: ServerProcess) -> None:
    assert ask("HEAD", create(site.url, 0))["Content-Length"] == "0"


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}, {"If-None-Match": "*"}])
def test_head_without_protocol_version_of_an_unfinished_upload_is_refused(
    site: ServerProcess, headers: Headers
) -> None:
    answer = ask("HEAD", create(site.url, 1001, body=DATA), headers)
    assert answer.status == 412
    assert answer["Tus-Version"] == "1.0.0"


def test_head_without_protocol_version_of_nothing_is_not_found(site: ServerProcess) -> None:
    assert ask("HEAD", f"{site.url}/0123456789abcdef").status == 404


def test_head_with_another_protocol_version_is_refused(thousand: str) -> None:
    assert ask("HEAD", thousand, {"Tus-Resumable": "0.2.2"}).status == 412


def test_head_that_is_a_post_needs_a_protocol_version(thousand: str) -> None:
    """The answer to a POST has a body of its Content-Length."""
    with Connection(thousand) as connection:
        for _ in range(2):
            answer = ask_on(connection, "POST", thousand, {"X-HTTP-Method-Override": "HEAD"}, b"")
            assert answer.status == 412


def test_head_without_protocol_version_where_the_file_was_moved_away(site: ServerProcess) -> None:
    location = create(site.url, 1000, body=DATA)
    (site.upload_dir / identity(location)).unlink()
    assert ask("HEAD", location).status == get(location).status == 404
    assert offset_of(location) == 1000


def test_a_slash_at_the_end_of_the_url_of_an_upload(site: ServerProcess) -> None:
    location = create(site.url, 10) + "/"
    assert patch(location, 0, b"hello").offset == 5
    assert offset_of(location) == 5
    assert patch(location + "?token=a", 5, b"world").offset == 10
    assert get(location).body == b"helloworld"
    assert ask("DELETE", location, TUS).status == 204
    assert head(location).status == 404
    assert head(location + "/").status == 404


@pytest.mark.parametrize("version", ["1.0.0", "0.2.2", "", "nonsense"])
def test_a_download_needs_no_protocol_version(thousand: str, version: str) -> None:
    assert get(thousand, {"Tus-Resumable": version}).body == DATA


def test_a_large_upload_can_be_downloaded(site: ServerProcess) -> None:
    data = payload(7_654_321)
    location = create(site.url, len(data), body=data)
    with Connection(site.url) as connection:
        assert ask_on(connection, "GET", location).body == data
        part = ask_on(connection, "GET", location, {"Range": "bytes=1000000-4999999"})
    assert part.status == 206
    assert part.body == data[1_000_000:5_000_000]


@pytest.mark.parametrize("length", [10, None])
@pytest.mark.parametrize("content", [b"", b"hello"])
def test_an_unfinished_upload_cannot_be_downloaded(site: ServerProcess, length: int | None, content: bytes) -> None:
    location = create(site.url, length, body=content)
    with unchanged(site):
        assert get(location).status == 404
        assert get(location, {"Range": "bytes=0-1"}).status == 404
        assert get(location, {"If-None-Match": "*"}).status == 404
    assert patch(location, len(content), b"x" * (10 - len(content)), {"Upload-Length": "10"}).offset == 10
    assert get(location).body == content + b"x" * (10 - len(content))


def test_an_unknown_upload_cannot_be_downloaded(site: ServerProcess) -> None:
    assert get(site.url + "/0123456789abcdef0123456789abcdef").status == 404


def test_the_creation_url_cannot_be_downloaded(site: ServerProcess) -> None:
    assert get(site.url).status in (404, 405)
    assert get(site.url + "/").status in (404, 405)


def test_downloads_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("off"), disable_download=True) as server:
        location = create(server.url, 5, body=b"hello")
        assert get(location).status in (404, 405)
        assert ask("POST", location, {"X-HTTP-Method-Override": "GET"}, b"").status in (404, 405, 412)
        assert offset_of(location) == 5


def test_a_download_does_not_wait_for_a_lock(site: ServerProcess) -> None:
    location = create(site.url, 5, body=b"hello")
    with Connection(site.url) as writer:
        writer.send_head("PATCH", location, patch_headers(5) | {"Transfer-Encoding": "chunked"})
        for _ in range(3):
            assert get(location).body == b"hello"
        writer.send_chunk(b"")
        assert promised_answer(writer, "PATCH").status == 204


# Ranges


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("0-0", 0, 0),
        ("0-", 0, 999),
        ("0-999", 0, 999),
        ("10-19", 10, 19),
        ("500-", 500, 999),
        ("999-", 999, 999),
        ("999-999", 999, 999),
        ("990-2000", 990, 999),
        ("0-" + "9" * 30, 0, 999),
        ("-1", 999, 999),
        ("-500", 500, 999),
        ("-1000", 0, 999),
        ("-5000", 0, 999),
        ("007-0010", 7, 10),
    ],
)
def test_a_range(thousand: str, wanted: str, first: int, last: int) -> None:
    answer = get(thousand, {"Range": f"bytes={wanted}"})
    assert answer.status == 206
    assert answer.body == DATA[first : last + 1]
    assert answer["Content-Range"] == f"bytes {first}-{last}/1000"
    assert answer["Content-Length"] == str(last - first + 1)
    assert answer["ETag"] == get(thousand)["ETag"]


@pytest.mark.parametrize("wanted", ["1000-", "1000-1000", "5000-6000", "-0", "9" * 30 + "-"])
def test_a_range_outside_of_the_upload(thousand: str, wanted: str) -> None:
    answer = get(thousand, {"Range": f"bytes={wanted}"})
    assert answer.status == 416
    assert answer["Content-Range"] == "bytes */1000"


@pytest.mark.parametrize("wanted", ["items=0-5", "seconds=1-2"])
def test_a_range_in_another_unit_is_ignored(thousand: str, wanted: str) -> None:
    answer = get(thousand, {"Range": wanted})
    assert (answer.status, answer.body) == (200, DATA)


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=0x1-0x2",
        "bytes=+1-2",
        "bytes=1--2",
        "bytes=--5",
        "bytes=1_0-2_0",
        "bytes=1.0-2.0",
        "bytes=0-1;2-3",
        "bytes 0-1",
        "=0-1",
        b"bytes=\xb2-\xb3",
        "bytes=\u0661-\u0662".encode(),
        b"\xff",
        "bytes=" + "9" * 5000 + "-",
        "bytes=0-" + "9" * 5000,
        "bytes=-" + "9" * 5000,
        ("bytes=0-1", "bytes=5-6"),
    ],
    ids=shown,
)
def test_a_malformed_range_is_ignored_or_refused(thousand: str, wanted: str | bytes | tuple[str, ...]) -> None:
    answer = get(thousand, {"Range": wanted})
    assert answer.status in (200, 206, 400, 416)
    if answer.status == 200:
        assert answer.body == DATA
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/1000", answer["Content-Range"])
        assert found is not None
        assert answer.body == DATA[int(found[1]) : int(found[2]) + 1]


@pytest.mark.parametrize("wanted", ["0-1,10-11", "0-0, -1", ",".join(f"{n}-{n}" for n in range(0, 900, 2)), "0-,0-,0-"])
def test_several_ranges_are_answered_whole_or_in_parts(thousand: str, wanted: str) -> None:
    answer = get(thousand, {"Range": f"bytes={wanted}"})
    assert answer.status in (200, 206, 416)
    if answer.status == 200:
        assert answer.body == DATA
    elif answer.status == 206 and "Content-Range" not in answer:
        assert answer["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert len(answer.body) < 100_000


def test_a_range_of_an_empty_upload(site: ServerProcess) -> None:
    location = create(site.url, 0)
    answer = get(location)
    assert (answer.status, answer.body, answer["Content-Length"]) == (200, b"", "0")
    for wanted in ("0-", "0-0", "-1"):
        assert get(location, {"Range": f"bytes={wanted}"}).status in (200, 416)


# Conditions


def test_if_none_match(thousand: str) -> None:
    etag = get(thousand)["ETag"]
    for value in (etag, "*", f'"other", {etag}', f'{etag}, "other"', f"W/{etag}", f'"a,b",{etag}'):
        answer = get(thousand, {"If-None-Match": value})
        assert answer.status == 304, value
        assert answer.body == b""
        assert answer["ETag"] == etag
        assert "Content-Length" not in answer
    for value in ('"other"', etag.strip('"'), etag[:-1] + 'x"', 'W/"other"', "", "nonsense"):
        answer = get(thousand, {"If-None-Match": value})
        assert (answer.status, answer.body) == (200, DATA), value


def test_if_modified_since(thousand: str) -> None:
    modified = get(thousand)["Last-Modified"]
    later = format_datetime(parsedate_to_datetime(modified) + timedelta(hours=1), usegmt=True)
    earlier = format_datetime(parsedate_to_datetime(modified) - timedelta(hours=1), usegmt=True)
    assert get(thousand, {"If-Modified-Since": modified}).status == 304
    assert get(thousand, {"If-Modified-Since": later}).status == 304
    assert get(thousand, {"If-Modified-Since": earlier}).status == 200


@pytest.mark.parametrize(
    "date",
    ["", "yesterday", "0", "Sat, 99 Nov 2026 08:00:00 GMT", "Sat, 1 Nov 99999 08:00:00 GMT", b"\xff"],
    ids=shown,
)
def test_a_malformed_date_is_ignored(thousand: str, date: str | bytes) -> None:
    for name in ("If-Modified-Since", "If-Unmodified-Since"):
        answer = get(thousand, {name: date})
        assert (answer.status, answer.body) == (200, DATA)


def test_if_none_match_comes_before_if_modified_since(thousand: str) -> None:
    answer = get(thousand)
    since = {"If-Modified-Since": answer["Last-Modified"]}
    assert get(thousand, {"If-None-Match": '"other"'} | since).status == 200
    earlier = {"If-Modified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"}
    assert get(thousand, {"If-None-Match": answer["ETag"]} | earlier).status == 304


def test_if_match(thousand: str) -> None:
    etag = get(thousand)["ETag"]
    for value in (etag, "*", f'"other", {etag}'):
        assert get(thousand, {"If-Match": value}).status == 200, value
    assert get(thousand, {"If-Match": '"other"'}).status == 412


def test_if_unmodified_since(thousand: str) -> None:
    assert get(thousand, {"If-Unmodified-Since": get(thousand)["Last-Modified"]}).status == 200
    assert get(thousand, {"If-Unmodified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"}).status == 412


def test_if_range(thousand: str) -> None:
    etag = get(thousand)["ETag"]
    part = get(thousand, {"Range": "bytes=0-9", "If-Range": etag})
    assert (part.status, part.body) == (206, DATA[:10])
    for value in ('"other"', f"W/{etag}", "Thu, 01 Jan 2015 00:00:00 GMT", "nonsense", etag.strip('"')):
        answer = get(thousand, {"Range": "bytes=0-9", "If-Range": value})
        assert (answer.status, answer.body) == (200, DATA), value
    # The range is not looked at, not even if there is no such range.
    assert get(thousand, {"Range": "bytes=5000-", "If-Range": '"other"'}).status == 200


def test_a_condition_comes_before_the_range(thousand: str) -> None:
    etag = get(thousand)["ETag"]
    assert get(thousand, {"Range": "bytes=0-9", "If-None-Match": etag}).status == 304
    assert get(thousand, {"Range": "bytes=5000-", "If-None-Match": etag}).status == 304


def test_uploads_of_the_same_bytes_are_told_apart(site: ServerProcess) -> None:
    first, second = (create(site.url, 5, body=b"hello") for _ in range(2))
    assert get(first)["ETag"] == get(first)["ETag"] != get(second)["ETag"]
