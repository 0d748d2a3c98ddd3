"""The content type and the file name of a download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.wire.messages import Answer, Headers, encoded, metadata, payload, shown
from tests.support.wire.promised import ask, create, head

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


# The content type


def uploaded(server: ServerProcess, **pairs: str | bytes) -> Answer:
    """Return the download of an upload with this metadata."""
    answer = get(create(server.url, 5, {"Upload-Metadata": metadata(**pairs)}, b"hello"))
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in answer
    return answer


@pytest.mark.parametrize("filetype", ["image/png", "image/jpeg", "image/gif", "video/mp4", "audio/mpeg"])
def test_harmless_types_are_shown(site: ServerProcess, filetype: str) -> None:
    answer = uploaded(site, filename="name", filetype=filetype)
    assert answer["Content-Type"] == filetype
    assert answer["Content-Disposition"].startswith("inline")


@pytest.mark.parametrize(
    "filetype",
    [
        None,
        "",
        "text/html",
        "TEXT/HTML",
        "text/html; charset=utf-8",
        " text/html",
        "application/xhtml+xml",
        "image/svg+xml",
        "Image/SVG+XML",
        "text/xml",
        "application/xml",
        "text/javascript",
        "application/javascript",
        "text/css",
        "application/octet-stream",
        "application/x-shockwave-flash",
        "multipart/form-data",
        "image/png, text/html",
        "image/png\r\nSet-Cookie: a=b",
        "image/png\nSet-Cookie: a=b",
        "image/png\r\n\r\n<script>",
        "image/png\0",
        "text/html\x00image/png",
        "image",
        "/",
        "image/",
        "*/*",
        "image/p\u00f1g",
        b"image/\xff",
        "x" * 5000,
    ],
    ids=shown,
)
def test_everything_else_is_a_file_to_save(site: ServerProcess, filetype: str | bytes | None) -> None:
    pairs: dict[str, str | bytes] = {"filename": "name"}
    if filetype is not None:
        pairs["filetype"] = filetype
    answer = uploaded(site, **pairs)
    assert answer["Content-Disposition"].startswith("attachment")
    assert re.fullmatch(r"[a-zA-Z0-9.+-]+/[a-zA-Z0-9.+-]+( *; *[a-zA-Z0-9-]+=[^;]+)?", answer["Content-Type"])


def test_an_upload_without_metadata_is_a_file_to_save(thousand: str) -> None:
    answer = get(thousand)
    assert answer["Content-Disposition"].startswith("attachment")
    assert answer["Content-Type"] == "application/octet-stream"


def test_the_name_of_a_file_does_not_make_it_harmless(site: ServerProcess) -> None:
    assert uploaded(site, filename="image.png", filetype="text/html")["Content-Disposition"].startswith("attachment")
    assert uploaded(site, filename="page.html")["Content-Disposition"].startswith("attachment")


# The file name


def file_name(disposition: str) -> str | None:
    """Return the name in a Content-Disposition, as RFC 6266 has it read."""
    assert re.fullmatch(r'(attachment|inline)(; *(filename="([^"\\]|\\.)*"|filename\*?=[^ ";]+))*', disposition)
    extended = re.search(r"filename\*=([^;]*)", disposition)
    if extended:
        charset, language, value = extended[1].split("'")
        assert charset.upper() == "UTF-8"
        assert language == ""
        assert re.fullmatch(r"([A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-Fa-f]{2})*", value)
        return unquote(value, errors="strict")
    quoted = re.search(r'filename="((?:[^"\\]|\\.)*)"', disposition)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    token = re.search("filename=([^;]*)", disposition)
    return token[1] if token else None


@pytest.mark.parametrize("filetype", ["image/png", "text/html"])
@pytest.mark.parametrize(
    "name",
    [
        "name.txt",
        "two words.txt",
        "semi;colon, comma.txt",
        "it's 100% #1 (new) [x] {y} = z & more.txt",
        'say "hello".txt',
        "na\u00efve caf\u00e9.txt",
        "\u65e5\u672c\u8a9e.txt",
        "\u20ac rates.txt",
        "\U0001f4f7 photo.jpg",
        "UTF-8''name.txt",
        "%41.txt",
        "x" * 200 + ".txt",
    ],
    ids=shown,
)
def test_a_file_keeps_its_name(site: ServerProcess, name: str, filetype: str) -> None:
    answer = uploaded(site, filename=name, filetype=filetype)
    assert file_name(answer["Content-Disposition"]) == name
    assert answer["Content-Disposition"].isascii()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\r\nSet-Cookie: a=b",
        "a\nb",
        "a\0b",
        "a\x7fb\x1b[31m",
        "\\",
        '\\"',
        '"; filename=evil.html; x="',
        "../../etc/passwd",
        "..\\..\\boot.ini",
        "/etc/passwd",
        "..",
        "\u202egnp.exe",
        "\ud800".encode("utf-8", "surrogatepass"),
        b"\xff\xfe\x00",
        b"\xc3",
        "x" * 5000,
    ],
    ids=shown,
)
def test_a_strange_name_is_a_name_or_none(site: ServerProcess, name: str | bytes) -> None:
    answer = uploaded(site, filename=name)
    assert answer["Content-Disposition"].isascii()
    found = file_name(answer["Content-Disposition"])
    assert found is None or not re.search(r"[\x00-\x1f\x7f]", found)
    assert set(answer["Content-Disposition"]) <= set(map(chr, range(32, 127)))


def test_an_upload_keeps_its_metadata_as_sent(site: ServerProcess) -> None:
    sent = "filename " + encoded("\u65e5\u672c\u8a9e\r\n.txt")
    assert head(create(site.url, 5, {"Upload-Metadata": sent}, b"hello"))["Upload-Metadata"] == sent
