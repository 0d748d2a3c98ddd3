from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import new_upload, stored, unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import (
    MAX_INTEGER,
    NO_INTEGERS,
    OFFSET_STREAM,
    TUS,
    Body,
    Value,
    encoded,
    identity,
    patch_headers,
    payload,
    shown,
)
from tests.support.wire.promised import (
    ID,
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
    refusal_without_continue,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("creation")) as server:
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with low limits."""
    with serving(tmp_path_factory.mktemp("small"), max_size=1000, metadata_size=100, metadata_pairs=3) as server:
        yield server


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without the optional ways to create an upload."""
    options = {"disable_creation_with_upload": True, "disable_creation_defer_length": True}
    with serving(tmp_path_factory.mktemp("bare"), **options) as server:
        yield server


# The answer to a creation


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_creation_is_answered_with_an_absolute_location(site: ServerProcess, slash: str) -> None:
    answer = creation(site.url + slash, 5)
    location = answer["Location"]
    assert re.fullmatch(re.escape(site.url) + "/" + ID, location)
    assert "," not in location
    assert answer.offset == 0
    assert answer.body == b""
    assert offset_of(location) == 0


def test_every_creation_is_an_upload_of_its_own(site: ServerProcess) -> None:
    locations = {create(site.url, 5) for _ in range(20)}
    assert len(locations) == 20


def test_a_creation_tells_when_the_upload_expires(site: ServerProcess) -> None:
    expires = creation(site.url, 5)["Upload-Expires"]
    assert IMF_DATE.fullmatch(expires)
    assert parsedate_to_datetime(expires).timestamp() == pytest.approx(time.time() + 86400, abs=60)


def test_an_upload_of_no_bytes_is_complete_at_once(site: ServerProcess) -> None:
    answer = creation(site.url, 0)
    assert answer.offset == 0
    assert "Upload-Expires" not in answer
    state = head(answer["Location"])
    assert (state["Upload-Length"], state["Upload-Offset"]) == ("0", "0")
    assert "Upload-Expires" not in state
    assert content_of(answer["Location"]) == b""


def test_the_largest_length_is_accepted(site: ServerProcess) -> None:
    location = create(site.url, MAX_INTEGER)
    assert head(location)["Upload-Length"] == str(MAX_INTEGER)
    assert delete(location).status == 204


def test_leading_zeros_are_digits_too(site: ServerProcess) -> None:
    answer = ask("POST", site.url, TUS | {"Upload-Length": "0005"})
    assert answer.status == 201
    assert int(head(answer["Location"])["Upload-Length"]) == 5


def test_the_length_can_be_deferred(site: ServerProcess) -> None:
    answer = creation(site.url, None)
    assert answer.offset == 0
    state = head(answer["Location"])
    assert state["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in state


# The protocol version


@pytest.mark.parametrize("version", ["1.0.0, 1.0.0", "1.0.0,1.0.0", ("1.0.0", "1.0.0")], ids=shown)
def test_a_protocol_version_that_comes_twice_is_that_version(site: ServerProcess, version: Value) -> None:
    answer = ask("POST", site.url, {"Tus-Resumable": version, "Upload-Length": "5"}, b"")
    assert answer.status == 201
    assert ask("HEAD", answer["Location"], {"Tus-Resumable": version}).offset == 0
    assert ask("PATCH", answer["Location"], patch_headers(0) | {"Tus-Resumable": version}, b"hello").offset == 5


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "Tus-Resumable must be 1.0.0, none came"),
        ({"Tus-Resumable": "0.2.2"}, 'Tus-Resumable must be 1.0.0, "0.2.2" came'),
        ({"Tus-Resumable": b"\x9b31m<b>"}, 'Tus-Resumable must be 1.0.0, "?31m<b>" came'),
    ],
)
def test_a_refused_protocol_version_is_told(site: ServerProcess, headers: dict[str, Value], reason: str) -> None:
    answer = ask("POST", site.url, headers | {"Upload-Length": "5"}, b"")
    assert (answer.status, answer["Content-Type"]) == (412, "text/plain; charset=utf-8")
    assert answer.text == f"ERR_UNSUPPORTED_VERSION: {reason}\n"


@pytest.mark.parametrize(
    "version", [None, "", "0.2.2", "1.0", "1.0.1", "2.0.0", "1.0.0, 0.2.2", "v1.0.0", b"\xff"], ids=shown
)
def test_another_protocol_version_creates_nothing(site: ServerProcess, version: Value | None) -> None:
    headers: dict[str, Value] = {"Upload-Length": "5", "Content-Type": OFFSET_STREAM}
    if version is not None:
        headers["Tus-Resumable"] = version
    with unchanged(site):
        answer = ask("POST", site.url, headers, b"hello")
    assert answer.status == 412
    assert "1.0.0" in answer.listed("Tus-Version")


# The length


@pytest.mark.parametrize("length", NO_INTEGERS, ids=shown)
def test_a_malformed_length_creates_nothing(site: ServerProcess, length: Value) -> None:
    with unchanged(site):
        assert ask("POST", site.url, TUS | {"Upload-Length": length}).status == 400


@pytest.mark.parametrize("defer", ["", "0", "2", "-1", "01", "+1", "1.0", "true", "yes", "1, 1", b"\xb9"], ids=shown)
def test_a_deferred_length_is_announced_with_1_only(site: ServerProcess, defer: Value) -> None:
    with unchanged(site):
        assert ask("POST", site.url, TUS | {"Upload-Defer-Length": defer}).status == 400


def test_a_creation_needs_a_length_or_that_it_is_deferred(site: ServerProcess) -> None:
    with unchanged(site):
        assert ask("POST", site.url, TUS).status == 400


def test_a_length_cannot_be_given_and_deferred(site: ServerProcess) -> None:
    with unchanged(site):
        assert ask("POST", site.url, TUS | {"Upload-Length": "5", "Upload-Defer-Length": "1"}).status == 400


def test_a_length_over_the_maximum_creates_nothing(small: ServerProcess) -> None:
    create(small.url, 1000)
    with unchanged(small):
        creation(small.url, 1001, answered=413)
        creation(small.url, MAX_INTEGER, answered=413)


def test_a_switched_off_deferred_length_creates_nothing(bare: ServerProcess) -> None:
    with unchanged(bare):
        creation(bare.url, None, answered=400)
    create(bare.url, 5)


# The metadata


@pytest.mark.parametrize(
    "metadata",
    [
        "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential",
        "is_confidential",
        "a,b,c",
        "a,A",
        "a ,b eA==",  # the space in front of an empty value
        "b eA==,a eQ==",  # not in the order of the alphabet
        "empty,name eHl6,other",
        "key!#$%&'*+-.^_`|~/:;=?@()[]{}<> eA==",
        "k" * 200 + " eA==",
        "bytes " + encoded(bytes(range(256))),
        "lines " + encoded("a\r\nSet-Cookie: a=b\r\n\r\n"),
    ],
    ids=shown,
)
def test_metadata_comes_back_byte_for_byte(site: ServerProcess, metadata: str) -> None:
    location = create(site.url, 5, {"Upload-Metadata": metadata})
    state = head(location)
    assert state["Upload-Metadata"] == metadata
    assert "Set-Cookie" not in state


def test_metadata_of_a_finished_upload_comes_back(site: ServerProcess) -> None:
    location = create(site.url, 5, {"Upload-Metadata": "filename eC50eHQ="}, b"hello")
    assert head(location)["Upload-Metadata"] == "filename eC50eHQ="


@pytest.mark.parametrize("metadata", [None, "", "   "], ids=shown)
def test_empty_metadata_is_no_metadata(site: ServerProcess, metadata: str | None) -> None:
    location = create(site.url, 5, {} if metadata is None else {"Upload-Metadata": metadata})
    assert "Upload-Metadata" not in head(location)


@pytest.mark.parametrize(
    "metadata",
    [
        "a eA==,a eQ==",  # the same key
        "a eA==,a eA==",
        "a,a",
        "a,b,a eA==",
        "a !!!!",  # no base64
        "a eA=",
        "a eA===",
        "a =",
        "a e",
        "a eHh4e",
        "a eA==eA==",
        "a e A = =",
        "a eA==\tx",
        "a eHh4\u00e9",
        "a  eA==",  # two spaces
        "a eA== b",
        ",",  # no key
        "a eA==,,",
        ",a eA==",
        "a eA==,,b eA==",
    ],
    ids=shown,
)
def test_malformed_metadata_creates_nothing(site: ServerProcess, metadata: str) -> None:
    with unchanged(site):
        answer = creation(site.url, 5, {"Upload-Metadata": metadata}, answered=400)
    assert re.match("[A-Z_]+: .*[a-z]", answer.text), "the reason is told"


@pytest.mark.parametrize("key", [b"\xc3\xa4", b"\xe4", b"\xff\xfe", b"a\x80b"], ids=shown)
def test_a_key_that_is_not_ascii_comes_back_or_is_refused(site: ServerProcess, key: bytes) -> None:
    before = stored(site)
    answer = ask("POST", site.url, TUS | {"Upload-Length": "5", "Upload-Metadata": key + b" eA=="})
    if answer.status == 201:
        assert head(answer["Location"])["Upload-Metadata"].encode("latin-1") == key + b" eA=="
    else:
        assert answer.status == 400
        assert stored(site) == before


def test_metadata_is_at_most_16_kib_long(site: ServerProcess) -> None:
    longest = "key " + encoded("a" * 3 * 4095)
    assert len(longest) == 16384
    assert head(create(site.url, 5, {"Upload-Metadata": longest}))["Upload-Metadata"] == longest
    with unchanged(site):
        answer = creation(site.url, 5, {"Upload-Metadata": "a" + longest}, answered=400)
    assert re.search("16384|16 Ki?B", answer.text)


def test_metadata_has_at_most_64_pairs(site: ServerProcess) -> None:
    pairs = [f"key{number} eA==" for number in range(65)]
    create(site.url, 5, {"Upload-Metadata": ",".join(pairs[:64])})
    with unchanged(site):
        answer = creation(site.url, 5, {"Upload-Metadata": ",".join(pairs)}, answered=400)
    assert "64" in answer.text


def test_the_length_of_metadata_is_limited_as_configured(small: ServerProcess) -> None:
    create(small.url, 5, {"Upload-Metadata": "a" * 100})
    with unchanged(small):
        answer = creation(small.url, 5, {"Upload-Metadata": "a" * 101}, answered=400)
    assert "100" in answer.text


def test_the_number_of_pairs_is_limited_as_configured(small: ServerProcess) -> None:
    create(small.url, 5, {"Upload-Metadata": "a,b,c"})
    with unchanged(small):
        answer = creation(small.url, 5, {"Upload-Metadata": "a,b,c,d"}, answered=400)
    assert "3" in answer.text


# The content type


@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", OFFSET_STREAM, "", "nonsense"])
@pytest.mark.parametrize("body", [None, b"", []], ids=["no body", "length 0", "no chunks"])
def test_an_empty_creation_may_have_any_content_type(site: ServerProcess, content_type: str, body: Body) -> None:
    answer = ask("POST", site.url, TUS | {"Upload-Length": "5", "Content-Type": content_type}, body)
    assert answer.status == 201
    assert answer.offset == 0


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/octet-stream", "text/plain", "multipart/form-data; boundary=x", OFFSET_STREAM + "s"],
)
@pytest.mark.parametrize("body", [b"hello", [b"hel", b"lo"]], ids=["length 5", "chunks"])
def test_bytes_of_a_foreign_content_type_create_nothing(
    site: ServerProcess, content_type: str | None, body: Body
) -> None:
    headers = TUS | {"Upload-Length": "5"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    with unchanged(site):
        assert ask("POST", site.url, headers, body).status == 415


# Creation with upload


@pytest.mark.parametrize("body", [b"hello", [b"hello"], [b"h", b"el", b"lo"]], ids=["length", "chunk", "chunks"])
@pytest.mark.parametrize("content_type", [OFFSET_STREAM, OFFSET_STREAM.upper()])
def test_a_creation_can_carry_the_whole_upload(site: ServerProcess, body: Body, content_type: str) -> None:
    answer = creation(site.url, 5, {"Content-Type": content_type}, body)
    assert answer.offset == 5
    assert "Upload-Expires" not in answer
    assert content_of(answer["Location"]) == b"hello"


def test_a_creation_can_carry_the_first_bytes(site: ServerProcess) -> None:
    answer = creation(site.url, 11, body=b"hello")
    assert answer.offset == 5
    assert "Upload-Expires" in answer
    assert offset_of(answer["Location"]) == 5
    assert patch(answer["Location"], 5, b" world").offset == 11
    assert content_of(answer["Location"]) == b"hello world"


def test_a_creation_can_carry_bytes_while_the_length_is_deferred(site: ServerProcess) -> None:
    answer = creation(site.url, None, body=b"hello")
    assert answer.offset == 5
    state = head(answer["Location"])
    assert (state.offset, state["Upload-Defer-Length"]) == (5, "1")


def test_a_creation_can_carry_megabytes(site: ServerProcess) -> None:
    data = payload(5_000_000)
    answer = creation(site.url, len(data), body=data)
    assert answer.offset == len(data)
    assert content_of(answer["Location"]) == data


def test_a_creation_waits_for_100_continue(site: ServerProcess) -> None:
    headers = TUS | {"Upload-Length": "5", "Content-Type": OFFSET_STREAM, "Expect": "100-continue"}
    with Connection(site.url) as connection:
        connection.send_head("POST", site.url, headers | {"Content-Length": "5"})
        connection.expect_continue()
        connection.send(b"hello")
        answer = promised_answer(connection, "POST")
    assert (answer.status, answer.offset) == (201, 5)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": "5"}, 413),  # of 6 bytes
        ({"Upload-Length": "6", "Content-Type": "text/plain"}, 415),
        ({"Upload-Length": "six"}, 400),
        ({"Upload-Length": "6", "Upload-Metadata": "a,a"}, 400),
        ({"Upload-Length": "6", "Upload-Checksum": "none eA=="}, 400),
        ({"Upload-Length": "6", "Upload-Concat": "whole"}, 400),
        ({"Upload-Length": "6", "Tus-Resumable": "2.0.0"}, 412),
    ],
    ids=shown,
)
def test_a_creation_is_refused_before_100_continue(site: ServerProcess, headers: dict[str, Value], status: int) -> None:
    with unchanged(site):
        answer = refusal_without_continue("POST", site.url, TUS | {"Content-Type": OFFSET_STREAM} | headers, 6)
    assert answer.status == status


def test_a_creation_over_the_maximum_is_refused_before_100_continue(small: ServerProcess) -> None:
    headers = TUS | {"Content-Type": OFFSET_STREAM}
    with unchanged(small):
        answer = refusal_without_continue("POST", small.url, headers | {"Upload-Length": "1001"}, 5)
        assert answer.status == 413
        answer = refusal_without_continue("POST", small.url, headers | {"Upload-Defer-Length": "1"}, 1001)
        assert answer.status == 413


def test_more_bytes_than_announced_create_nothing(site: ServerProcess) -> None:
    with unchanged(site):
        creation(site.url, 5, body=b"hello!", answered=413)


def test_chunks_past_the_length_are_not_stored(site: ServerProcess) -> None:
    before = stored(site)
    answer = creation(site.url, 10, body=[b"01234", b"56789 and more"])
    state = head(answer["Location"])
    assert state.offset == answer.offset <= 10
    added = stored(site).files.keys() - before.files.keys()
    assert all(stored(site).files[name] <= 10 for name in added)
    if state.offset < 10:
        assert patch(answer["Location"], state.offset, b"0123456789"[state.offset :]).status == 204
    assert content_of(answer["Location"]) == b"0123456789"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_creation_that_breaks_off_leaves_a_usable_upload(site: ServerProcess, chunked: bool) -> None:
    before = stored(site)
    headers = TUS | {"Upload-Length": "11", "Content-Type": OFFSET_STREAM}
    with Connection(site.url) as connection:
        if chunked:
            connection.send_head("POST", site.url, headers | {"Transfer-Encoding": "chunked"})
            connection.send_chunk(b"hello")
        else:
            connection.send_head("POST", site.url, headers | {"Content-Length": "11"})
            connection.send(b"hello")
        wait_until(lambda: stored(site).records != before.records)
        location = new_upload(site, before)
        wait_until(lambda: offset_of(location) == 5)
    wait_until(lambda: patch(location, 5, b" world").status == 204)
    assert content_of(location) == b"hello world"


def test_a_creation_with_a_wrong_checksum_leaves_an_empty_upload(site: ServerProcess) -> None:
    answer = creation(site.url, 5, {"Upload-Checksum": "sha1 " + encoded(bytes(20))}, b"hello")
    assert answer.offset == 0
    assert offset_of(answer["Location"]) == 0
    assert patch(answer["Location"], 0, b"HELLO").status == 204
    assert content_of(answer["Location"]) == b"HELLO"


@pytest.mark.parametrize("body", [b"hello", [b"hello"]], ids=["length", "chunk"])
def test_a_switched_off_creation_with_upload_takes_no_bytes(bare: ServerProcess, body: Body) -> None:
    before = stored(bare)
    answer = ask("POST", bare.url, TUS | {"Upload-Length": "5", "Content-Type": OFFSET_STREAM}, body)
    if answer.status == 201:
        assert answer.offset == 0
        assert offset_of(answer["Location"]) == 0
    else:
        assert stored(bare) == before
    location = create(bare.url, 5)
    assert identity(location) in stored(bare).records
