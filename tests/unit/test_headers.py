from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from tests.support.crc32c import bitwise_crc32c
from tests.support.properties import HEADER_TEXT, on_any_machine
from tusd_py.core.errors import ChecksumMismatch
from tusd_py.core.metadata import MetadataLimits
from tusd_py.http.tus.headers import (
    MAX_INTEGER,
    InvalidHeader,
    format_date,
    is_offset_content_type,
    is_version,
    parse_checksum,
    parse_final_concat,
    parse_integer,
    parse_metadata,
    quoted,
    single_values,
)
from tusd_py.uploads.checksum import ALGORITHMS, AnnouncedChecksum, TrailingChecksum

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1, max_size=20)


def base64_of(value: bytes) -> str:
    return base64.b64encode(value).decode()


# Integers.


@on_any_machine
@given(st.integers(0, MAX_INTEGER))
@example(0)
@example(MAX_INTEGER)
def test_every_integer_in_range_is_parsed(number: int) -> None:
    assert parse_integer("Upload-Length", str(number), "ERR") == number


@on_any_machine
@given(st.integers(MAX_INTEGER + 1) | st.integers(max_value=-1))
def test_no_integer_out_of_range_is_parsed(number: int) -> None:
    with pytest.raises(InvalidHeader, match="Upload-Length must be") as raised:
        parse_integer("Upload-Length", str(number), "ERR_SOMETHING")
    assert raised.value.code == "ERR_SOMETHING"


@on_any_machine
@given(HEADER_TEXT)
def test_an_integer_is_digits_or_it_is_none(text: str) -> None:
    try:
        number = parse_integer("Upload-Length", text, "ERR")
    except InvalidHeader:
        return
    assert text.isascii()
    assert text.isdecimal()
    assert 0 <= number <= MAX_INTEGER


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "-0", "+1", "1.0", "1e3", "0x10", "1_000", " 1", "1 ", "1\n", "\n1", "1, 1", "1;"),
        *("½", "²", "٣", "１", "9" * 20, "1" * 5000, "NaN", "Infinity", "None"),
    ],
)
def test_malformed_integer_is_rejected(text: str) -> None:
    with pytest.raises(InvalidHeader):
        parse_integer("Upload-Offset", text, "ERR")


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("00", 0), ("007", 7), ("9223372036854775807", MAX_INTEGER)])
def test_integer_of_a_header_is_parsed(text: str, number: int) -> None:
    assert parse_integer("Upload-Offset", text, "ERR") == number


# The content type.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("application/offset+octet-stream", True),
        ("Application/Offset+Octet-Stream", True),
        ("application/offset+octet-stream; charset=utf-8", True),
        ("application/offset+octet-stream ;x=y", True),
        ("", False),
        ("application/octet-stream", False),
        ("application/offset+octet-streams", False),
        ("application/offset+octet-stream, text/plain", False),
        ("text/plain; application/offset+octet-stream", False),
    ],
)
def test_the_content_type_of_an_append(text: str, expected: bool) -> None:
    assert is_offset_content_type(text) is expected


# Metadata.


@on_any_machine
@given(st.dictionaries(KEYS, st.binary(max_size=40), max_size=10), st.sampled_from([",", ", ", " , ", ",\t"]))
def test_metadata_comes_back(metadata: dict[str, bytes], separator: str) -> None:
    text = separator.join(f"{key} {base64_of(value)}" for key, value in metadata.items())
    assert parse_metadata(text) == metadata


@on_any_machine
@given(HEADER_TEXT)
def test_metadata_is_understood_or_refused(text: str) -> None:
    try:
        metadata = parse_metadata(text)
    except InvalidHeader:
        return
    pairs = [(key, base64_of(value)) for key, value in metadata.items()]
    assert parse_metadata(",".join(f"{key} {value}" for key, value in pairs)) == metadata


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" ", {}),
        ("\t", {}),
        ("is_confidential", {"is_confidential": b""}),
        ("is_confidential ", {"is_confidential": b""}),
        ("a,b,c YQ==", {"a": b"", "b": b"", "c": b"a"}),
        ("filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,a", {"filename": b"world_domination_plan.pdf", "a": b""}),
        (" filename YQ== , b Yg== ", {"filename": b"a", "b": b"b"}),
        ("binary AP+A", {"binary": b"\x00\xff\x80"}),
        ("Name YQ==,name Yg==", {"Name": b"a", "name": b"b"}),
        ("a=b:c;d YQ==", {"a=b:c;d": b"a"}),
        # As some clients send it.
        ("a YQ", {"a": b"a"}),
        ("a YWI", {"a": b"ab"}),
        ("a YWI,b YQ,c", {"a": b"ab", "b": b"a", "c": b""}),
        ("a YQ==,", {"a": b"a"}),
        ("a YQ== , ", {"a": b"a"}),
        ("a ,", {"a": b""}),
        ("a YQ== ,\tb Yg", {"a": b"a", "b": b"b"}),
    ],
)
def test_metadata(text: str, expected: dict[str, bytes]) -> None:
    assert parse_metadata(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (",", "empty key"),
        (",,", "empty key"),
        ("a YQ==,,", "empty key"),
        (", a YQ==", "empty key"),
        (",a YQ==", "empty key"),
        ("a YQ==,,b Yg==", "empty key"),
        ("a  YQ==", "one space"),
        ("a YQ== Yg==", "one space"),
        ("a YQ==,b Yg==,a Yw==", "'a' twice"),
        ("a,a", "'a' twice"),
        ("a YQ=", "not Base64"),
        ("a Y", "not Base64"),
        ("a YQ==YQ==", "not Base64"),
        ("a =YQ=", "not Base64"),
        ("a ====", "not Base64"),
        ("a Y-_=", "not Base64"),
        ("a \xff\xff\xff=", "not Base64"),
        ("na\xefve YQ==", "printable ASCII"),
        ("tab\tbed YQ==", "printable ASCII"),
        ("bell\x07 YQ==", "printable ASCII"),
    ],
)
def test_wrong_metadata_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidHeader, match=f"Upload-Metadata .*{reason}") as raised:
        parse_metadata(text)
    assert raised.value.code == "ERR_INVALID_METADATA"


def test_the_limits_of_metadata() -> None:
    limits = MetadataLimits(header_size=20, pairs=3)
    assert len(parse_metadata("a,b,c", limits)) == 3
    assert parse_metadata("k " + "A" * 16 + ",b", limits)["b"] == b""
    with pytest.raises(InvalidHeader, match="more than 3 pairs"):
        parse_metadata("a,b,c,d", limits)
    with pytest.raises(InvalidHeader, match="longer than 20 bytes"):
        parse_metadata("k " + "A" * 16 + ",bb", limits)
    assert len(parse_metadata(",".join(f"key-{number}" for number in range(64)))) == 64
    with pytest.raises(InvalidHeader, match="64"):
        parse_metadata(",".join(f"key-{number}" for number in range(65)))
    assert parse_metadata("k " + "A" * (16384 - 4)) == {"k": b"\0" * 12285}
    with pytest.raises(InvalidHeader, match="16384"):
        parse_metadata("k " + "A" * 16384)


# Checksums.

DIGESTS = {
    "sha1": hashlib.sha1(b"content").digest(),
    "sha256": hashlib.sha256(b"content").digest(),
    "sha512": hashlib.sha512(b"content").digest(),
    "md5": hashlib.md5(b"content").digest(),
    "crc32": zlib.crc32(b"content").to_bytes(4, "big"),
}


PIECES: list[bytes | bytearray | memoryview] = [b"con", bytearray(b"te"), memoryview(b"nt")]


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_an_announced_checksum_is_verified_as_the_bytes_arrive(algorithm: str) -> None:
    parsed = parse_checksum(f"{algorithm} {base64_of(DIGESTS[algorithm])}")
    assert parsed == (algorithm, DIGESTS[algorithm])
    checksum = AnnouncedChecksum(*parsed)
    for piece in PIECES:
        assert not checksum.matches()
        checksum.update(piece)
    assert checksum.matches()
    checksum.update(b"!")
    assert not checksum.matches()


def test_the_checksum_of_the_protocol() -> None:
    checksum = AnnouncedChecksum(*parse_checksum("sha1 Lve95gjOVATpfV8EL5X4nxwjKHE="))
    checksum.update(b"Hello World!")
    assert checksum.matches()


@pytest.mark.parametrize("algorithm", DIGESTS)
@pytest.mark.parametrize("content", [b"content", b"contend"])
def test_a_checksum_that_follows_the_bytes(algorithm: str, content: bytes) -> None:
    announced: list[tuple[str, bytes]] = []
    checksum = TrailingChecksum(lambda: announced[0])
    for number in range(len(content)):
        checksum.update(content[number : number + 1])
    announced.append((algorithm, DIGESTS[algorithm]))
    assert checksum.matches() is (content == b"content")


def test_a_checksum_that_was_promised_and_never_came() -> None:
    checksum = TrailingChecksum(lambda: None)
    checksum.update(b"content")
    assert not checksum.matches()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "ERR_UNKNOWN_ALGORITHM"),
        (" ", "ERR_UNKNOWN_ALGORITHM"),
        ("sha3 Lve95gjOVATpfV8EL5X4nxwjKHE=", "ERR_UNKNOWN_ALGORITHM"),
        ("Lve95gjOVATpfV8EL5X4nxwjKHE=", "ERR_UNKNOWN_ALGORITHM"),
        ("sha1,sha256 Lve95gjOVATpfV8EL5X4nxwjKHE=", "ERR_UNKNOWN_ALGORITHM"),
        ("sha1", "ERR_INVALID_CHECKSUM"),
        ("sha1 ", "ERR_INVALID_CHECKSUM"),
        ("sha1 Lve95gjOVATpfV8EL5X4nxwjKHE", "ERR_INVALID_CHECKSUM"),
        ("sha1  Lve95gjOVATpfV8EL5X4nxwjKHE=", "ERR_INVALID_CHECKSUM"),
        ("sha1 Lve95gjOVATpfV8EL5X4nxwjKHE= x", "ERR_INVALID_CHECKSUM"),
        ("crc32 \xff\xff", "ERR_INVALID_CHECKSUM"),
    ],
)
def test_wrong_checksums_are_refused(text: str, code: str) -> None:
    with pytest.raises(InvalidHeader) as raised:
        parse_checksum(text)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sha1 2ef7bde608ce5404e97d5f042f95f89f1c232871", "the digest has 30 bytes, a sha1 digest has 20"),
        ("md5 Lve95gjOVATpfV8EL5X4nxwjKHE=", "the digest has 20 bytes, a md5 digest has 16"),
        ("crc32 AAAAAAA=", "the digest has 5 bytes, a crc32 digest has 4"),
    ],
)
def test_parse_checksum_of_a_digest_of_another_size_is_a_mismatch(text: str, reason: str) -> None:
    with pytest.raises(ChecksumMismatch, match=reason):
        parse_checksum(text)


@pytest.mark.skipif("crc32c" not in ALGORITHMS, reason="google-crc32c is not installed")
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [9, 1_000_000])
def test_crc32c_is_that_of_castagnoli_for_any_buffer(kind: Callable[[bytes], Any], size: int) -> None:
    data = (b"123456789" * (size // 9 + 1))[:size]
    expected = 0xE3069283 if size == 9 else bitwise_crc32c(data)
    checksum = AnnouncedChecksum("crc32c", expected.to_bytes(4, "big"))
    checksum.update(kind(data[:7]))
    checksum.update(kind(data[7:]))
    assert checksum.matches()
    checksum.update(kind(b"!"))
    assert not checksum.matches()


@pytest.mark.parametrize(
    ("received", "accepted"),
    [
        ("1.0.0", True),
        ("1.0.0, 1.0.0", True),
        ("1.0.0,1.0.0 ,\t1.0.0", True),
        ("", False),
        ("1.0.0,", False),
        ("1.0.0, 0.2.2", False),
        ("1.0.01.0.0", False),
        ("1.0.0;1.0.0", False),
    ],
)
def test_is_version(received: str, accepted: bool) -> None:
    assert is_version(received, "1.0.0") is accepted


@pytest.mark.parametrize(
    ("received", "shown"),
    [
        ("0.2.2", '"0.2.2"'),
        ("", '""'),
        ("\xff\x1b[31m", '"??[31m"'),
        ("x" * 1000, '"' + "x" * 40 + '..."'),
    ],
)
def test_quoted_shows_printable_ascii_of_limited_length(received: str, shown: str) -> None:
    assert quoted(received) == shown


@on_any_machine
@given(HEADER_TEXT | st.builds("{} {}".format, st.sampled_from(sorted(DIGESTS)), HEADER_TEXT))
def test_any_checksum_is_understood_or_refused(text: str) -> None:
    try:
        parse_checksum(text)
    except (InvalidHeader, ChecksumMismatch):
        return
    assert text.partition(" ")[0] in DIGESTS


# The rest.


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("final;/files/a /files/b", ["/files/a", "/files/b"]),
        ("final; /files/a  /files/b ", ["/files/a", "/files/b"]),
        ("final;https://example.org/files/a?b=c;d", ["https://example.org/files/a?b=c;d"]),
        ("final;final;", ["final;"]),
    ],
)
def test_the_partials_of_a_final_upload(text: str, urls: list[str]) -> None:
    assert parse_final_concat(text) == urls


@pytest.mark.parametrize("text", ["final;", "final; ", "final;   "])
def test_a_final_upload_without_partials(text: str) -> None:
    with pytest.raises(InvalidHeader) as raised:
        parse_final_concat(text)
    assert raised.value.code == "ERR_INVALID_CONCAT"


def test_dates() -> None:
    assert format_date(784111777.9) == "Sun, 06 Nov 1994 08:49:37 GMT"


@on_any_machine
@given(st.integers(0, 250_000_000_000))
def test_dates_come_back(seconds: int) -> None:
    assert parsedate_to_datetime(format_date(seconds)).timestamp() == seconds


def test_header_fields_by_name() -> None:
    fields = [(b"upload-offset", b"1"), (b"x", b" \ta\xff\t "), (b"upload-offset", b"1"), (b"empty", b"")]
    values = single_values(fields)
    assert values == {"upload-offset": "1, 1", "x": "a\xff", "empty": ""}
    with pytest.raises(InvalidHeader):
        parse_integer("Upload-Offset", values["upload-offset"], "ERR")
