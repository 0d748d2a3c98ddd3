from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import example, given, strategies as st

from tests.support.properties import HEADER_TEXT, on_any_machine
from tusd_py.core.metadata import content_disposition, file_name
from tusd_py.core.upload import Status, Upload
from tusd_py.http.download import describe, entity_tag, select
from tusd_py.http.tus.headers import format_date

COMPLETED = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT
UPLOAD = Upload("abc", 784000000.0, length=10, offset=10, status=Status.COMPLETE, completed_at=COMPLETED + 0.75)
TAG = '"abc-10-2c90b39810000"'
BEFORE, AT, AFTER = (format_date(COMPLETED + seconds) for seconds in (-1, 0, 1))


def described(**metadata: str) -> dict[str, str]:
    text = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())
    return describe(replace(UPLOAD, metadata=text))


def selected(**headers: str) -> tuple[int, int, int]:
    selection = select(UPLOAD, {name.replace("_", "-"): value for name, value in headers.items()})
    return selection.status, selection.start, selection.end


def test_tag_is_of_one_upload_though_its_id_and_length_are_used_again() -> None:
    assert entity_tag(replace(UPLOAD, created_at=UPLOAD.created_at + 0.001)) != entity_tag(UPLOAD)


# Ranges.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", (206, 0, 1)),
        ("bytes=0-9", (206, 0, 10)),
        ("bytes=0-", (206, 0, 10)),
        ("bytes=3-5", (206, 3, 6)),
        ("bytes=9-", (206, 9, 10)),
        ("bytes=9-100", (206, 9, 10)),
        ("bytes=5-99999999999999999999999", (206, 5, 10)),
        ("bytes=-1", (206, 9, 10)),
        ("bytes=-10", (206, 0, 10)),
        ("bytes=-100", (206, 0, 10)),
        (" bytes=3-5 ", (206, 3, 6)),
        ("bytes=10-", (416, 0, 0)),
        ("bytes=10-20", (416, 0, 0)),
        ("bytes=99999999999999999999999-", (416, 0, 0)),
        ("bytes=-0", (416, 0, 0)),
        # A range that is not understood is ignored.
        ("", (200, 0, 10)),
        ("bytes", (200, 0, 10)),
        ("bytes=", (200, 0, 10)),
        ("bytes=-", (200, 0, 10)),
        ("bytes=5-3", (200, 0, 10)),
        ("bytes=0-1,3-4", (200, 0, 10)),
        ("bytes=a-b", (200, 0, 10)),
        ("bytes=0x1-2", (200, 0, 10)),
        ("bytes=--5", (200, 0, 10)),
        ("bytes=1-2-3", (200, 0, 10)),
        ("bytes=²-³", (200, 0, 10)),
        ("items=0-1", (200, 0, 10)),
    ],
)
def test_ranges(value: str, expected: tuple[int, int, int]) -> None:
    assert selected(range=value) == expected


@pytest.mark.parametrize("value", ["bytes=0-{}", "bytes={}-", "bytes=-{}", "bytes={}-{}"])
def test_numbers_of_any_length(value: str) -> None:
    status, start, end = selected(range=value.replace("{}", "9" * 6000))
    assert status in (200, 206, 416)
    assert 0 <= start <= end <= 10


NUMBERS = st.one_of(st.none(), st.integers(0, 30), st.integers(0, 1 << 70))


@on_any_machine
@given(st.integers(0, 20), NUMBERS, NUMBERS)
def test_a_range_is_never_outside_of_the_upload(length: int, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    selection = select(replace(UPLOAD, length=length, offset=length), {"range": header})
    assert 0 <= selection.start <= selection.end <= length
    whole = range(length)
    if selection.status == 206:
        if first is None:
            assert last
            assert selection.start == max(0, length - last)
            assert selection.end == length
        else:
            assert selection.start == first
            assert selection.end == (length if last is None else min(length, last + 1))
        assert len(whole[selection.start : selection.end]) > 0
    elif selection.status == 416:
        assert length == 0 or (last == 0 if first is None else first >= length)
    else:
        assert selection.status == 200
        assert (selection.start, selection.end) == (0, length)


CONDITIONS = ["range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]


@on_any_machine
@given(
    st.dictionaries(st.sampled_from(CONDITIONS), HEADER_TEXT | st.from_regex(r"bytes=[0-9]*-[0-9]*", fullmatch=True))
)
@example({"if-modified-since": "Mon, 32 Foo 99999 25:61:61 GMT"})
@example({"if-unmodified-since": "Mon, 01 Jan 0001 00:00:00 +2359"})
@example({"if-range": "1 Jan 10000 00:00 -9999"})
def test_selection_of_arbitrary_headers_has_a_status_and_bounds(headers: dict[str, str]) -> None:
    selection = select(UPLOAD, headers)
    assert selection.status in (200, 206, 304, 412, 416)
    assert 0 <= selection.start <= selection.end <= 10


# Conditions.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if_none_match": TAG}, 304),
        ({"if_none_match": f"W/{TAG}"}, 304),
        ({"if_none_match": f'"other", {TAG}'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"other"'}, 200),
        ({"if_none_match": "abc-10"}, 200),
        ({"if_modified_since": AT}, 304),
        ({"if_modified_since": AFTER}, 304),
        ({"if_modified_since": BEFORE}, 200),
        ({"if_modified_since": "yesterday"}, 200),
        ({"if_none_match": '"other"', "if_modified_since": AFTER}, 200),
        ({"if_match": TAG}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": f'"other",{TAG}'}, 200),
        ({"if_match": '"other"'}, 412),
        ({"if_match": f"W/{TAG}"}, 412),
        ({"if_unmodified_since": AT}, 200),
        ({"if_unmodified_since": AFTER}, 200),
        ({"if_unmodified_since": BEFORE}, 412),
        ({"if_unmodified_since": "tomorrow"}, 200),
        ({"if_match": TAG, "if_unmodified_since": BEFORE}, 200),
        ({"if_match": '"other"', "if_none_match": TAG}, 412),
        ({"if_match": TAG, "if_none_match": TAG}, 304),
        # A condition that is not met wins over a range.
        ({"if_none_match": TAG, "range": "bytes=0-1"}, 304),
        ({"if_match": '"other"', "range": "bytes=99-"}, 412),
        # The range counts only if the client has the rest of the same bytes.
        ({"if_range": TAG, "range": "bytes=0-1"}, 206),
        ({"if_range": AT, "range": "bytes=0-1"}, 206),
        ({"if_range": "", "range": "bytes=0-1"}, 206),
        ({"if_range": '"other"', "range": "bytes=0-1"}, 200),
        ({"if_range": f"W/{TAG}", "range": "bytes=0-1"}, 200),
        ({"if_range": BEFORE, "range": "bytes=0-1"}, 200),
        ({"if_range": AFTER, "range": "bytes=0-1"}, 200),
        ({"if_range": "nonsense", "range": "bytes=0-1"}, 200),
        ({"if_range": '"other"', "range": "bytes=99-"}, 200),
    ],
)
def test_conditions(headers: dict[str, str], status: int) -> None:
    assert selected(**headers)[0] == status


def test_validators_of_an_answer_match_as_conditions() -> None:
    headers = describe(UPLOAD)
    assert headers["ETag"] == entity_tag(UPLOAD) == TAG
    assert headers["Last-Modified"] == AT
    assert selected(if_none_match=headers["ETag"])[0] == 304
    assert selected(if_modified_since=headers["Last-Modified"])[0] == 304
    assert selected(if_range=headers["Last-Modified"], range="bytes=1-1") == (206, 1, 2)


# Descriptions.


@pytest.mark.parametrize(
    ("metadata", "content_type", "disposition"),
    [
        ({}, "application/octet-stream", "attachment"),
        ({"filetype": "image/png"}, "image/png", "inline"),
        ({"filetype": "IMAGE/PNG"}, "IMAGE/PNG", "inline"),
        ({"type": "video/mp4"}, "video/mp4", "inline"),
        ({"contentType": "audio/mpeg"}, "audio/mpeg", "inline"),
        ({"filetype": "", "type": "image/gif"}, "image/gif", "inline"),
        ({"filetype": "text/plain; charset=utf-8"}, "text/plain; charset=utf-8", "inline"),
        # Nothing that a browser would run.
        ({"filetype": "text/html"}, "text/html", "attachment"),
        ({"filetype": "image/svg+xml"}, "image/svg+xml", "attachment"),
        ({"filetype": "application/xhtml+xml"}, "application/xhtml+xml", "attachment"),
        ({"filetype": "application/pdf"}, "application/pdf", "attachment"),
        ({"filetype": "application/javascript"}, "application/javascript", "attachment"),
        ({"filetype": "text/plain, text/html"}, "application/octet-stream", "attachment"),
        ({"filetype": "text/html; x=image/png"}, "application/octet-stream", "attachment"),
        # Values that are no type.
        ({"filetype": "png"}, "application/octet-stream", "attachment"),
        ({"filetype": "image/"}, "application/octet-stream", "attachment"),
        ({"filetype": "image/png\r\nX-Evil: yes"}, "application/octet-stream", "attachment"),
        ({"filetype": "image/png\n"}, "application/octet-stream", "attachment"),
        ({"filetype": "text/html;\r\n\r\nx=1"}, "application/octet-stream", "attachment"),
        ({"filetype": "image/png\n;a=b"}, "application/octet-stream", "attachment"),
        ({"filetype": "image/png;\u2028a=b"}, "application/octet-stream", "attachment"),
        ({"filetype": "imáge/png"}, "application/octet-stream", "attachment"),
        # Names.
        ({"filename": "a.png"}, "application/octet-stream", 'attachment; filename="a.png"'),
        ({"name": "a.png", "filetype": "image/png"}, "image/png", 'inline; filename="a.png"'),
        ({"filename": "", "name": "b"}, "application/octet-stream", 'attachment; filename="b"'),
    ],
)
def test_descriptions(metadata: dict[str, str], content_type: str, disposition: str) -> None:
    headers = described(**metadata)
    assert headers["Content-Type"] == content_type
    assert headers["Content-Disposition"] == disposition
    assert headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/html",
        "TEXT/HTML; charset=utf-8",
        "text/xml",
        "text/javascript",
        "image/svg+xml",
        "application/xml",
        "application/xhtml+xml",
        "application/pdf",
        "application/octet-stream",
        "",
    ],
)
def test_describe_sandboxes_what_is_not_shown_inline(content_type: str) -> None:
    headers = described(filename="a", filetype=content_type)
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize("content_type", ["image/png", "video/mp4", "text/plain; charset=utf-8"])
def test_describe_lets_players_play_what_is_shown_inline(content_type: str) -> None:
    assert "Content-Security-Policy" not in described(filetype=content_type)


@pytest.mark.parametrize("metadata", [None, "", "not base64!", "filename /w==", "k," * 100, "filetype //79"])
def test_metadata_of_any_kind_can_be_downloaded(metadata: str | None) -> None:
    headers = describe(replace(UPLOAD, metadata=metadata))
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment")


ASCII = st.characters(max_codepoint=0x7F)
CONTENT_TYPES = st.from_regex(r"\w/\w(\s?;\s*\w=\w){0,2}", fullmatch=True, alphabet=ASCII)


@on_any_machine
@given(st.text(max_size=60), st.text(max_size=60) | CONTENT_TYPES)
def test_descriptions_are_header_fields(name: str, content_type: str) -> None:
    for value in described(filename=name, filetype=content_type).values():
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("", "attachment"),
        ("two words; and=more", 'attachment; filename="two words; and=more"'),
        ('say "hi"', "attachment; filename=\"say _hi_\"; filename*=UTF-8''say%20%22hi%22"),
        ("100%20 sure", "attachment; filename=\"100_20 sure\"; filename*=UTF-8''100%2520%20sure"),
        ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
        ("C:\\temp\\x", 'attachment; filename="C:_temp_x"'),
        ("a\r\nSet-Cookie: b", 'attachment; filename="a__Set-Cookie: b"'),
        ("naïve.txt", "attachment; filename=\"na_ve.txt\"; filename*=UTF-8''na%C3%AFve.txt"),
        ("€ rates", "attachment; filename=\"_ rates\"; filename*=UTF-8''%E2%82%AC%20rates"),
        ("..", "attachment"),
        (" . ", "attachment"),
        (" report.pdf. ", 'attachment; filename="report.pdf"'),
        (".htaccess", 'attachment; filename=".htaccess"'),
        ("invoice\u202efdp.exe", 'attachment; filename="invoice_fdp.exe"'),
        ("\u2066a\u2069\u200f\u061c\u2028.txt", 'attachment; filename="_a____.txt"'),
        ("a\x85\x9b.txt", 'attachment; filename="a__.txt"'),
        ("x" * 300 + ".pdf", f'attachment; filename="{"x" * 251}.pdf"'),
        ("x" * 300 + ".tar.gz", f'attachment; filename="{"x" * 252}.gz"'),
        ("x" * 251 + ".pdf", f'attachment; filename="{"x" * 251}.pdf"'),
        ("x" * 300, f'attachment; filename="{"x" * 255}"'),
        ("." + "x" * 300, f'attachment; filename=".{"x" * 254}"'),
        ("a." + "x" * 300, f'attachment; filename="a.{"x" * 253}"'),
        ("🗂", "attachment; filename=\"_\"; filename*=UTF-8''%F0%9F%97%82"),
    ],
)
def test_file_names(name: str, expected: str) -> None:
    assert content_disposition("attachment", name) == expected


BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@on_any_machine
@given(st.text(max_size=400))
def test_any_file_name_is_kept_as_far_as_it_is_safe(name: str) -> None:
    header = content_disposition("attachment", name)
    match = re.fullmatch(
        r"attachment(?:; filename=\"([^\"\\/%]*)\"(?:; filename\*=UTF-8''([A-Za-z0-9._~%-]+))?)?", header
    )
    assert match
    kept = unquote(match[2]) if match[2] else match[1] or ""
    assert kept == file_name(name)
    assert len(kept) <= 255
    assert set(kept) <= {*name, "_"}
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in kept)
    assert not any(unicodedata.bidirectional(letter) in BIDI_CONTROLS for letter in kept)
    assert len(match[1] or "") == len(kept)
