"""The type of a file by its first bytes."""

from __future__ import annotations

import bz2
import io
import struct
import tarfile
import zipfile

import pytest
from hypothesis import given, strategies as st

from tests.support.properties import on_any_machine
from tusd_py.core.file_types import HEAD_SIZE, content_types
from tusd_py.core.media_types import allows, media_type_of, parse_patterns


def zipped(*names: str, stored: tuple[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        if stored is not None:
            archive.writestr(*stored)
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return file.getvalue()


def iso_media(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(12)


FILES = {
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "image/jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "image/gif": b"GIF89a" + bytes(10),
    "image/webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "image/bmp": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54),
    "image/tiff": b"II*\0\x08\0\0\0",
    "image/heic": iso_media(b"heic"),
    "image/avif": iso_media(b"avif"),
    "image/svg+xml": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg">',
    "image/x-icon": b"\0\0\1\0\1\0",
    "application/pdf": b"%PDF-1.7\n",
    "application/zip": zipped("a.txt"),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": zipped("[Content_Types].xml"),
    "application/epub+zip": zipped(stored=("mimetype", "application/epub+zip")),
    "application/vnd.oasis.opendocument.text": zipped(stored=("mimetype", "application/vnd.oasis.opendocument.text")),
    "application/gzip": b"\x1f\x8b\x08",
    "application/x-bzip2": bz2.compress(b"abc"),
    "application/x-7z-compressed": b"7z\xbc\xaf'\x1c",
    "application/x-tar": tarred(),
    "application/msword": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "application/x-msdownload": b"MZ\x90\0",
    "application/x-executable": b"\x7fELF\2\1\1",
    "application/wasm": b"\0asm\1\0\0\0",
    "audio/mpeg": b"ID3\4\0" + bytes(5),
    "audio/wav": b"RIFF\x10\0\0\0WAVEfmt ",
    "audio/flac": b"fLaC\0",
    "audio/ogg": b"OggS" + bytes(24) + b"OpusHead",
    "audio/mp4": iso_media(b"M4A "),
    "audio/aac": b"\xff\xf1P\x80",
    "video/mp4": iso_media(b"isom"),
    "video/quicktime": iso_media(b"qt  "),
    "video/webm": b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\x82\x84webm",
    "video/x-matroska": b"\x1aE\xdf\xa3\xa3B\x82\x88matroska",
    "video/x-msvideo": b"RIFF\x10\0\0\0AVI LIST",
    "video/ogg": b"OggS" + bytes(24) + b"\x80theora",
    "font/woff2": b"wOF2\0\1\0\0",
    "text/html": b"\n <!-- x --> <!DOCTYPE html><html>",
}


@pytest.mark.parametrize("media_type", FILES)
def test_signature_is_recognised(media_type: str) -> None:
    assert content_types(FILES[media_type], "")[0] == media_type


@pytest.mark.parametrize("declared", ["", "image/png", "application/pdf", "text/plain", "application/x-own"])
@pytest.mark.parametrize("media_type", FILES)
def test_signature_counts_more_than_the_declared_type(media_type: str, declared: str) -> None:
    assert content_types(FILES[media_type], declared) == content_types(FILES[media_type], media_type)


@pytest.mark.parametrize(
    "text", [b"num,skip,all\n", b"the wide sea", b"MZ,NZ\n1,2", b"BZh is bzip2", b"BMW", b"ID3 tags"]
)
def test_text_that_begins_as_a_binary_file_is_text(text: bytes) -> None:
    assert content_types(text, "")[0] == "text/plain"
    assert content_types(text, "text/csv") == ("text/csv",)


def test_files_whose_signature_is_short_are_recognised() -> None:
    assert content_types(bz2.compress(b""), "")[0] == "application/x-bzip2"
    assert content_types(struct.pack(">I", 1 << 30) + b"mdat" + bytes(100), "")[0] == "video/quicktime"


@pytest.mark.parametrize(
    "html", [b"<html>", b"<SCRIPT>", b"\xef\xbb\xbf<!doctype HTML>", b"<iframe src=x>", b"<p>x", b"  <body onload=x>"]
)
def test_markup_that_browsers_run_is_html(html: bytes) -> None:
    assert content_types(html, "text/plain")[0] == "text/html"


@pytest.mark.parametrize("svg", [b"<svg>", b"<SVG xmlns=''>", b"<!DOCTYPE svg PUBLIC ''><svg>", b"<?xml?><x:svg >"])
def test_drawing_that_may_have_scripts_is_svg(svg: bytes) -> None:
    assert content_types(svg, "image/png") == ("image/svg+xml",)


@pytest.mark.parametrize(
    ("head", "declared", "expected"),
    [
        (b"a,b\n1,2", "text/csv", "text/csv"),
        (b"{}", "application/json", "application/json"),
        (b"{}", "application/x-own", "application/x-own"),
        (b"\0\1\2\3", "application/x-own", "application/x-own"),
        (b"\0\1\2\3", "image/x-own", "image/x-own"),
        (b"caf\xe9", "text/plain", "text/plain"),
        (b"\xff\xfea\0", "text/plain", "text/plain"),
        (b"", "text/plain", "text/plain"),
        (b"#EXTM3U", "audio/x-mpegurl", "audio/x-mpegurl"),
    ],
)
def test_declared_type_counts_where_nothing_contradicts_it(head: bytes, declared: str, expected: str) -> None:
    assert content_types(head, declared) == (expected,)


@pytest.mark.parametrize(
    ("head", "declared", "expected"),
    [
        (b"", "image/png", "text/plain"),
        (b"\x89PN", "image/png", "text/plain"),
        (b"hello", "image/png", "text/plain"),
        (b"hello", "application/pdf", "text/plain"),
        (b"hello", "video/x-own", "text/plain"),
        (b"\0\1\2\3", "image/png", "application/octet-stream"),
        (b"\0\1\2\3", "text/plain", "application/octet-stream"),
        (b"\0\1\2\3", "", "application/octet-stream"),
        (b"hello", "", "text/plain"),
    ],
)
def test_declared_type_does_not_count_where_the_bytes_contradict_it(head: bytes, declared: str, expected: str) -> None:
    assert content_types(head, declared)[0] == expected


@pytest.mark.parametrize(
    ("head", "expected"), [(b' {"a": 1}', "application/json"), (b"<?xml?><a/>", "application/xml")]
)
def test_structured_text_without_a_type_may_be_what_it_looks_like(head: bytes, expected: str) -> None:
    types = content_types(head, "")
    assert types[0] == "text/plain"
    assert expected in types


@on_any_machine
@given(st.binary(max_size=HEAD_SIZE), st.sampled_from(["", "image/png", "text/plain", "application/x-own"]))
def test_every_head_has_a_type(head: bytes, declared: str) -> None:
    assert all(media_type_of(media_type) == media_type for media_type in content_types(head, declared))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image/png", "image/png"),
        (" Image/PNG ; charset=x", "image/png"),
        ("application/vnd.a-b+json", "application/vnd.a-b+json"),
        ("image/*", ""),
        ("null", ""),
        ("", ""),
        ("image/", ""),
        ("a/b/c", ""),
        ("image/png, image/gif", ""),
        ("é/x", ""),
    ],
)
def test_media_type_of_a_client(text: str, expected: str) -> None:
    assert media_type_of(text) == expected


def test_patterns() -> None:
    patterns = parse_patterns(["Image/*", "application/PDF; a=b"])
    assert patterns == ("image/*", "application/pdf")
    assert [allows(patterns, name) for name in ("image/png", "application/pdf", "application/zip", "imagex/png")] == [
        True,
        True,
        False,
        False,
    ]
    assert allows(parse_patterns(["*/*"]), "a/b")


@pytest.mark.parametrize("entry", ["image", "image/", "*", "*/png", "image/p*", "/png", "a b/c", "image/png image/gif"])
def test_malformed_pattern_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="image/"):
        parse_patterns([entry])
