from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import stored, unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import MAX_INTEGER, OFFSET_STREAM, TUS, Answer, Value, identity, payload, shown
from tests.support.wire.promised import ask, content_of, create, delete, head, offset_of, patch, promised_answer

PARTIAL: dict[str, Value] = {"Upload-Concat": "partial"}
UNKNOWN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("concatenation")) as server:
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("small"), max_size=1000) as server:
        yield server


def partial(server: ServerProcess, content: bytes) -> str:
    """Return the URL of a finished partial upload."""
    return create(server.url, len(content), PARTIAL, content)


def concatenate(server: ServerProcess, *urls: str, **headers: str) -> Answer:
    given = TUS | {"Upload-Concat": "final;" + " ".join(urls)}
    return ask("POST", server.url, given | {name.replace("_", "-"): value for name, value in headers.items()}, b"")


def path(url: str) -> str:
    """/files/ID of http://127.0.0.1:PORT/files/ID"""
    return "/" + url.split("/", 3)[3]


# Partial uploads


def test_a_partial_upload_says_so(site: ServerProcess) -> None:
    location = create(site.url, 10, PARTIAL, b"hello")
    state = head(location)
    assert state["Upload-Concat"] == "partial"
    assert (state["Upload-Length"], state.offset) == ("10", 5)
    assert patch(location, 5, b"world", PARTIAL).offset == 10
    state = head(location)
    assert state["Upload-Concat"] == "partial"
    assert state.offset == 10


def test_a_partial_upload_of_deferred_length(site: ServerProcess) -> None:
    location = create(site.url, None, PARTIAL, b"hello")
    assert head(location)["Upload-Concat"] == "partial"
    with unchanged(site):
        assert concatenate(site, location).status == 400
    assert patch(location, 5, None, {"Upload-Length": "5"}).status == 204
    answer = concatenate(site, location)
    assert (answer.status, answer.offset) == (201, 5)


# The final upload


def test_partial_uploads_become_one_upload(site: ServerProcess) -> None:
    parts = [partial(site, b"hello"), partial(site, b" world")]
    answer = concatenate(site, *parts)
    assert answer.status == 201
    assert answer.offset == 11
    assert "Upload-Expires" not in answer
    location = answer["Location"]
    assert location.startswith(site.url + "/")
    assert location not in parts
    state = head(location)
    assert state.status == 200
    assert (state["Upload-Length"], state["Upload-Offset"]) == ("11", "11")
    assert state["Upload-Concat"] == "final;" + " ".join(parts)
    assert content_of(location) == b"hello world"


def test_the_order_is_that_of_the_list(site: ServerProcess) -> None:
    parts = [partial(site, letter) for letter in (b"a", b"b", b"c")]
    assert content_of(concatenate(site, parts[2], parts[0], parts[1])["Location"]) == b"cab"


def test_megabytes_become_one_upload(site: ServerProcess) -> None:
    contents = [payload(3_000_000 + seed, seed) for seed in range(3)]
    answer = concatenate(site, *(partial(site, content) for content in contents))
    assert answer.offset == 9_000_003
    assert content_of(answer["Location"]) == b"".join(contents)


def test_metadata_belongs_to_the_final_upload_only(site: ServerProcess) -> None:
    part = create(site.url, 5, PARTIAL | {"Upload-Metadata": "filename cGFydA=="}, b"hello")
    plain = concatenate(site, part)["Location"]
    assert "Upload-Metadata" not in head(plain)
    named = concatenate(site, part, Upload_Metadata="filename d2hvbGU=")["Location"]
    assert head(named)["Upload-Metadata"] == "filename d2hvbGU="


def test_the_urls_may_be_written_in_many_ways(site: ServerProcess) -> None:
    first, second, third, fourth = (partial(site, letter) for letter in (b"a", b"b", b"c", b"d"))
    urls = [first, path(second), third + "?token=a&b=c%2Fd", path(fourth) + "?v=1"]
    answer = concatenate(site, *urls)
    assert answer.status == 201
    assert head(answer["Location"])["Upload-Concat"] == "final;" + " ".join(urls)
    assert content_of(answer["Location"]) == b"abcd"


@pytest.mark.parametrize(
    "form",
    [
        "{part}",
        "files/{part}",
        "/{part}",
        "/uploads/{part}",
        "/a/b/c/{part}?token=1#2",
        "/files/{part}/",
        "/files/%s{part[1:]}",
        "//other.example/files/{part}",
        "http://other.example/files/{part}",
        "https://127.0.0.1:1/{part}",
        "http://{authority}:99999/files/{part}",
        "{site}/../{part}",
    ],
)
def test_a_part_is_named_by_its_id_whatever_a_proxy_made_of_its_url(site: ServerProcess, form: str) -> None:
    part = identity(partial(site, b"hello"))
    if "%s" in form:
        url = form.replace("%s", f"%{ord(part[0]):02x}").replace("{part[1:]}", part[1:])
    else:
        url = form.format(part=part, site=site.url, authority=site.origin[7:])
    answer = concatenate(site, url, url)
    assert answer.status == 201, answer
    assert head(answer["Location"])["Upload-Concat"] == f"final;{url} {url}"
    assert content_of(answer["Location"]) == b"hellohello"


@pytest.mark.parametrize("spaces", ["final; {}", "final;{}  {}", "final;{} "])
def test_head_answers_upload_concat_byte_for_byte(site: ServerProcess, spaces: str) -> None:
    part = partial(site, b"hello")
    value = spaces.replace("{}", part)
    location = ask("POST", site.url, TUS | {"Upload-Concat": value}, b"")["Location"]
    assert head(location)["Upload-Concat"] == value.strip(" ")


def test_the_partial_upload_of_another_server_is_unknown(site: ServerProcess, small: ServerProcess) -> None:
    other = partial(small, b"hello")
    with unchanged(site):
        assert concatenate(site, other).status == 404


def test_a_final_upload_of_one_part(site: ServerProcess) -> None:
    assert content_of(concatenate(site, partial(site, b"hello"))["Location"]) == b"hello"


def test_a_part_may_be_used_twice(site: ServerProcess) -> None:
    part, other = partial(site, b"ab"), partial(site, b"c")
    answer = concatenate(site, part, other, part)
    assert (answer.status, answer.offset) == (201, 5)
    assert content_of(answer["Location"]) == b"abcab"
    again = concatenate(site, other, part)
    assert again["Location"] != answer["Location"]
    assert content_of(again["Location"]) == b"cab"


def test_parts_may_be_empty(site: ServerProcess) -> None:
    empty = create(site.url, 0, PARTIAL)
    part = partial(site, b"hello")
    answer = concatenate(site, empty, part, empty)
    assert (answer.status, answer.offset) == (201, 5)
    assert content_of(answer["Location"]) == b"hello"


def test_all_parts_may_be_empty(site: ServerProcess) -> None:
    answer = concatenate(site, create(site.url, 0, PARTIAL), create(site.url, 0, PARTIAL))
    assert (answer.status, answer.offset) == (201, 0)
    state = head(answer["Location"])
    assert (state["Upload-Length"], state["Upload-Offset"]) == ("0", "0")
    assert content_of(answer["Location"]) == b""


def test_a_hundred_parts(site: ServerProcess) -> None:
    parts = [partial(site, b"hello") for _ in range(10)]
    answer = concatenate(site, *[path(part) for part in parts] * 10)
    assert (answer.status, answer.offset) == (201, 500)
    assert content_of(answer["Location"]) == b"hello" * 100


def test_the_parts_survive(site: ServerProcess) -> None:
    parts = [partial(site, b"hello"), partial(site, b"world")]
    final = concatenate(site, *parts)["Location"]
    assert [offset_of(part) for part in parts] == [5, 5]
    assert [delete(part).status for part in parts] == [204, 204]
    assert content_of(final) == b"helloworld"


def test_the_parts_survive_the_termination_of_the_final_upload(site: ServerProcess) -> None:
    part = partial(site, b"hello")
    assert delete(concatenate(site, part)["Location"]).status == 204
    assert offset_of(part) == 5
    assert content_of(concatenate(site, part)["Location"]) == b"hello"


def test_a_repeated_concatenation_gives_the_same_upload(site: ServerProcess) -> None:
    parts = [partial(site, b"hello"), partial(site, b"world")]
    first = concatenate(site, *parts, Upload_Metadata="filename eA==")
    with unchanged(site):
        second = concatenate(site, *parts, Upload_Metadata="filename eA==")
    assert (second.status, second["Location"], second.offset) == (201, first["Location"], 10)


def test_a_concatenation_that_is_sent_twice_at_once_gives_one_upload(site: ServerProcess) -> None:
    contents = [payload(2_000_000, seed) for seed in range(3)]
    headers = TUS | {"Upload-Concat": "final;" + " ".join(partial(site, content) for content in contents)}
    before = stored(site).records
    with Connection(site.url) as first, Connection(site.url) as second:
        for connection in (first, second):
            connection.send_head("POST", site.url, headers | {"Content-Length": "0"})
        answers = [promised_answer(connection, "POST") for connection in (first, second)]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0]["Location"] == answers[1]["Location"]
    assert len(stored(site).records) == len(before) + 1
    assert content_of(answers[0]["Location"]) == b"".join(contents)


def test_another_order_is_another_upload(site: ServerProcess) -> None:
    first, second = partial(site, b"hello"), partial(site, b"world")
    assert concatenate(site, first, second)["Location"] != concatenate(site, second, first)["Location"]


# PATCH


@pytest.mark.parametrize("offset", [0, 5, 10, 11, 99])
@pytest.mark.parametrize("body", [None, b"x", [b"x"]], ids=["no body", "length", "chunk"])
def test_a_final_upload_cannot_be_patched(site: ServerProcess, offset: int, body: bytes | list[bytes] | None) -> None:
    final = concatenate(site, partial(site, b"hello"), partial(site, b"world"))["Location"]
    with unchanged(site):
        assert patch(final, offset, body).status == 403
    assert content_of(final) == b"helloworld"


def test_the_length_of_a_final_upload_cannot_be_changed(site: ServerProcess) -> None:
    final = concatenate(site, partial(site, b"hello"))["Location"]
    with unchanged(site):
        assert patch(final, 5, None, {"Upload-Length": "6"}).status == 403


# Refusals


@pytest.mark.parametrize(
    "url",
    [
        "/files/{unknown}",
        "{site}/{unknown}",
        "ftp://{authority}/files/{part}",
        "{site}",
        "{site}/",
        "{site}/{part}/more",
        "/files/..%2f{part}",
        "/files/{part}%00",
        "/files/{part}%2f..%2f{part}",
        "/files/.tusd-py",
        "/files/" + "a" * 129,
        "/files/{part}.info",
        "http://[::1/files/{part}",
        "/files/{part},{part}",
        "//{part}",
        "http://",
        "?",
        "\u00e9",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../../etc/passwd",
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_url_that_names_no_partial_upload_creates_nothing(site: ServerProcess, url: str, alone: bool) -> None:
    part = partial(site, b"hello")
    url = url.format(site=site.url, authority=site.origin[7:], part=identity(part), unknown=UNKNOWN)
    with unchanged(site):
        assert concatenate(site, *([url] if alone else [part, url])).status in (400, 404)


def test_an_unfinished_part_creates_nothing(site: ServerProcess) -> None:
    assert "concatenation-unfinished" not in ask("OPTIONS", site.url).listed("Tus-Extension")
    finished, unfinished = partial(site, b"hello"), create(site.url, 10, PARTIAL, b"hello")
    with unchanged(site):
        assert concatenate(site, finished, unfinished).status == 400
        assert concatenate(site, unfinished).status == 400


def test_only_partial_uploads_are_parts(site: ServerProcess) -> None:
    part, whole = partial(site, b"hello"), create(site.url, 5, body=b"hello")
    final = concatenate(site, part)["Location"]
    with unchanged(site):
        assert concatenate(site, part, whole).status == 400
        assert concatenate(site, final).status == 400


def test_a_terminated_part_creates_nothing(site: ServerProcess) -> None:
    part = partial(site, b"hello")
    assert delete(part).status == 204
    with unchanged(site):
        assert concatenate(site, part).status in (400, 404)


@pytest.mark.parametrize("length", ["0", "5", "6"])
def test_a_final_upload_has_no_length_of_its_own(site: ServerProcess, length: str) -> None:
    part = partial(site, b"hello")
    with unchanged(site):
        assert concatenate(site, part, Upload_Length=length).status == 400


def test_bytes_do_not_belong_to_a_concatenation(site: ServerProcess) -> None:
    part = partial(site, b"hello")
    headers = TUS | {"Upload-Concat": f"final;{part}", "Content-Type": OFFSET_STREAM}
    answer = ask("POST", site.url, headers, b"more")
    assert answer.status in (201, 400, 403, 413)
    if answer.status == 201:
        assert content_of(answer["Location"]) == b"hello"


@pytest.mark.parametrize(
    "value",
    [
        "whole",
        "parti",
        "partial;",
        "partial; /files/a",
        "partial;/files/{part}",
        "partial,partial",
        ("partial", "partial"),
        "final",
        "final;",
        "final; ",
        "final;;",
        "final:/files/{part}",
        "final /files/{part}",
        "finale;/files/{part}",
        "/files/{part}",
        ";",
        "1",
        b"\xff",
        b"final;\xff",
        "final;/files/{part},/files/{part}",
        ("final;/files/{part}", "final;/files/{part}"),
        "final;" + "x" * 10_000,
    ],
    ids=shown,
)
@pytest.mark.parametrize("length", ["5", None])
def test_a_malformed_concatenation_creates_nothing(site: ServerProcess, value: Value, length: str | None) -> None:
    part = identity(partial(site, b"hello"))
    if isinstance(value, str):
        value = value.replace("{part}", part)
    elif isinstance(value, tuple):
        value = tuple(one.replace("{part}", part) for one in value if isinstance(one, str))
    headers: dict[str, Value] = {**TUS, "Upload-Concat": value}
    if length is not None:
        headers["Upload-Length"] = length
    with unchanged(site):
        assert ask("POST", site.url, headers, b"").status in (400, 404)


def test_more_parts_than_the_limit_create_nothing(site: ServerProcess) -> None:
    parts = [path(partial(site, b"hello")) for _ in range(101)]
    with unchanged(site):
        answer = concatenate(site, *parts * 10)
    assert answer.status == 400
    assert "at most 1000 partial uploads, not 1010" in answer.text
    assert concatenate(site, *parts[:100] * 10).offset == 5000


def test_a_part_that_is_named_too_often_creates_nothing(site: ServerProcess) -> None:
    part, other = path(partial(site, bytes(100_000))), path(partial(site, b"hello"))
    with unchanged(site):
        answer = concatenate(site, other, *[part] * 11)
    assert answer.status == 400
    assert "the same partial upload at most 10 times, not 11 times" in answer.text


def test_the_limits_on_parts_are_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("limits")
    with serving(folder, concatenation_parts=3, concatenation_repeats=2) as server:
        part, other = partial(server, b"hello"), partial(server, b"world")
        assert concatenate(server, part, part, other).status == 201
        assert concatenate(server, part, part, part).status == 400
        assert concatenate(server, part, part, other, other).status == 400


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_sum_that_no_header_can_tell_is_refused(tmp_path_factory: pytest.TempPathFactory, unfinished: bool) -> None:
    options = {"concatenation_unfinished": True} if unfinished else {}
    with serving(tmp_path_factory.mktemp("overflow"), **options) as server:
        parts = [create(server.url, MAX_INTEGER, PARTIAL) for _ in range(2)]
        with unchanged(server):
            answer = concatenate(server, *parts)
        assert answer.status == (413 if unfinished else 400)
        assert offset_of(parts[0]) == 0


def test_a_sum_over_the_maximum_creates_nothing(small: ServerProcess) -> None:
    parts = [partial(small, bytes(400)) for _ in range(3)]
    with unchanged(small):
        assert concatenate(small, *parts).status == 413
    assert concatenate(small, *parts[:2]).offset == 800
    assert offset_of(parts[2]) == 400


# The options


def test_parts_are_removed_after_their_grace_period(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("grace")
    with serving(folder, partial_retention="1s", sweep_interval="0.5s") as server:
        parts = [partial(server, b"hello"), partial(server, b"world")]
        unused = partial(server, b"unused")
        final = concatenate(server, *parts)["Location"]
        wait_until(lambda: {head(part).status for part in parts} == {404})
        wait_until(lambda: stored(server).records.keys() == {identity(unused), identity(final)})
        assert len(stored(server).files) == 2
        assert content_of(final) == b"helloworld"
        assert concatenate(server, unused).status == 201


def test_concatenation_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("off"), disable_concatenation=True) as server:
        assert "concatenation" not in ask("OPTIONS", server.url).listed("Tus-Extension")
        before = stored(server)
        answer = ask("POST", server.url, TUS | PARTIAL | {"Upload-Length": "5"}, b"")
        if answer.status == 201:
            assert "Upload-Concat" not in head(answer["Location"])
        else:
            assert 400 <= answer.status < 500
            assert stored(server) == before
        whole = create(server.url, 5, body=b"hello")
        with unchanged(server):
            assert 400 <= concatenate(server, whole).status < 500
