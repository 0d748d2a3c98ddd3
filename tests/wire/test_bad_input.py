from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import stored, unchanged
from tests.support.wire.connection import Closed, Connection
from tests.support.wire.messages import (
    OFFSET_STREAM,
    TUS,
    Answer,
    Headers,
    Value,
    encoded,
    identity,
    patch_headers,
    shown,
)
from tests.support.wire.promised import (
    LEAKS,
    ask,
    ask_on,
    content_of,
    create,
    delete,
    head,
    offset_of,
    patch,
    promised_answer,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("bad_input"), max_size="100MiB") as server:
        yield server


# Ids


@pytest.mark.parametrize(
    "identifier",
    [
        "0123456789abcdef0123456789abcdef",
        "a",
        "a" * 128,
        "a" * 129,
        "a" * 10_000,
        ".",
        "..",
        "...",
        "%2e",
        "%2e%2e",
        "..%2f",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%252f..%252fetc%252fpasswd",
        "../../../../etc/passwd",
        "..%5c..%5cboot.ini",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "//etc/passwd",
        ".tusd-py",
        ".tusd-py%2fuploads.sqlite3",
        ".tusd-py/uploads.sqlite3",
        "%2etusd-py%2flocks",
        "uploads.sqlite3",
        "{known}%00",
        "%00{known}",
        "%00",
        "{known}.",
        "{known}.info",
        "{known}.json",
        "{known}%20",
        "%20{known}",
        "{known}%0a",
        "{known}%0d%0aX-Injected:%20yes",
        "{known}%2f",
        "{known}%2f..",
        "{known}/..%2f{known}",
        "./{known}",
        ".%2f{known}",
        "x%2f..%2f{known}",
        "{known}%2f..%2f{known}",
        "{known};a=b",
        "{known},{known}",
        "{known}*",
        "*",
        "%2a",
        "{known}%",
        "%zz",
        "%",
        "%e2%82%ac",
        "%ff%fe",
        "%c0%ae%c0%ae%c0%af",
        "%d9%a5" * 20,
        "%ef%bc%85",
        "CON",
        "~root",
        "$HOME",
        "`id`",
        "' OR '1'='1",
        "{known}'--",
        "<script>alert(1)</script>",
        "{upper}",
        "None",
        "null",
        "-1",
    ],
    ids=shown,
)
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE", "GET"])
def test_malformed_upload_id_returns_404(site: ServerProcess, method: str, identifier: str) -> None:
    location = create(site.url, 5, body=b"hello")
    known = identity(location)
    target = identifier.format(known=known, upper=known.upper()).replace(" ", "%20")
    if target == known:
        return  # an id without letters
    with unchanged(site):
        answer = ask(method, f"{site.url}/{target}", patch_headers(5), b"" if method == "PATCH" else None)
    delete(location)
    # A segment `..` may also be taken away, which leads to another place where there is no upload.
    assert answer.status in ((404, 405) if re.search(r"(^|/)(\.|%2e){1,2}(/|$)", identifier) else (404,))
    assert "X-Injected" not in answer
    assert b"root:" not in answer.body


def test_a_percent_encoded_id_is_the_same_id_or_none(site: ServerProcess) -> None:
    location = create(site.url, 5, body=b"hello")
    known = identity(location)
    written = "".join(f"%{ord(letter):02x}" for letter in known)
    answer = head(f"{site.url}/{written}")
    assert answer.status in (200, 404)


def test_a_query_does_not_belong_to_the_id(site: ServerProcess) -> None:
    location = create(site.url, 5)
    assert head(location + "?token=a/b%2f..").status == 200
    assert patch(location + "?id=other", 0, b"hello").offset == 5


# Headers that are no good


NONSENSE: tuple[Value, ...] = (
    "",
    "0",
    "-1",
    "null",
    "{}",
    '"',
    "\\",
    "%00",
    ",",
    ";",
    "=",
    "final;",
    "sha1 ",
    "\u00ff\u00fe",
    "\U0001f4f7".encode(),
    b"\x80\x81",
    "x" * 20_000,
    "," * 10_000,
    "a b " * 2000,
    "9" * 4301,
    ("", ""),
    ("a", "b", "c"),
)
HEADERS = [
    "Tus-Resumable",
    "Upload-Length",
    "Upload-Defer-Length",
    "Upload-Offset",
    "Upload-Metadata",
    "Upload-Concat",
    "Upload-Checksum",
    "Content-Type",
    "Accept",
    "Origin",
    "X-HTTP-Method-Override",
    "X-Request-ID",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "Forwarded",
    "Range",
    "If-Range",
    "If-None-Match",
    "If-Modified-Since",
    "Authorization",
    "Cookie",
    "Access-Control-Request-Method",
    "Access-Control-Request-Headers",
]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "HEAD", "PATCH", "DELETE", "GET"])
def test_a_header_of_nonsense_gets_an_answer(site: ServerProcess, method: str, name: str) -> None:
    """No request is an error of the server, and no refusal leaves anything."""
    given = {"POST": TUS | {"Upload-Length": "5"}, "PATCH": patch_headers(5)}.get(method, TUS)
    body = {"POST": b"", "PATCH": b"world"}.get(method)
    location = create(site.url, 10, body=b"hello")
    changes = method in ("POST", "PATCH", "DELETE")
    before = stored(site) if changes else None
    for value in NONSENSE:
        answer = ask(method, site.url if method == "POST" else location, given | {name: value}, body)
        if answer.status >= 400:
            assert before is None or stored(site) == before, (value, answer)
        elif answer.status == 201:
            delete(answer["Location"])
        elif answer.status == 204:
            delete(location)
            location = create(site.url, 10, body=b"hello")
            before = stored(site) if changes else None
    delete(location)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Upload-Length", ("5", "6")),
        ("Upload-Length", ("5", "")),
        ("Upload-Defer-Length", ("1", "0")),
        ("Upload-Metadata", ("a eA==", "a eQ==")),
        ("Upload-Concat", ("partial", "final;/files/a")),
        ("Tus-Resumable", ("1.0.0", "0.2.2")),
    ],
)
def test_a_header_that_contradicts_itself_creates_nothing(
    site: ServerProcess, name: str, values: tuple[str, ...]
) -> None:
    length = {} if name == "Upload-Defer-Length" else {"Upload-Length": "5"}
    with unchanged(site):
        assert ask("POST", site.url, TUS | length | {name: values}, b"").status in (400, 404, 412)


@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        ("Upload-Offset", ("5", "0"), 400),
        ("Upload-Offset", ("0", "5"), 400),
        ("Tus-Resumable", ("1.0.0", "0.2.2"), 412),
        ("Content-Type", (OFFSET_STREAM, "text/plain"), 415),
        ("Upload-Length", ("10", "11"), 400),
    ],
)
def test_a_header_that_contradicts_itself_stores_nothing(
    site: ServerProcess, name: str, values: tuple[str, ...], status: int
) -> None:
    location = create(site.url, 10, body=b"hello")
    with unchanged(site):
        assert ask("PATCH", location, patch_headers(5) | {name: values}, b"world").status == status


def test_metadata_in_several_lines_is_one_list(site: ServerProcess) -> None:
    before = stored(site)
    answer = ask("POST", site.url, TUS | {"Upload-Length": "5", "Upload-Metadata": ("a eA==", "b eQ==")}, b"")
    if answer.status == 201:
        assert head(answer["Location"])["Upload-Metadata"].replace(" ", "") == "aeA==,beQ=="
    else:
        assert answer.status == 400
        assert stored(site) == before


# Errors as text or JSON


def refused(site: ServerProcess, accept: Value | None) -> Answer:
    given: Headers = {} if accept is None else {"Accept": accept}
    answer = ask("POST", site.url, TUS | {"Upload-Length": "five"} | dict(given), b"")
    assert answer.status == 400
    return answer


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "text/plain",
        "text/*",
        "text/html,application/xhtml+xml,*/*;q=0.8",
        "application/problem+json;q=0",
        "application/problem+json;q=0.0, */*",
        "image/png",
        "nonsense",
        "application/problem+jsonp",
    ],
)
def test_an_error_is_text_unless_the_client_accepts_json(site: ServerProcess, accept: str | None) -> None:
    answer = refused(site, accept)
    assert answer["Content-Type"].replace(" ", "").lower() == "text/plain;charset=utf-8"
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*: [^\n]{3,300}\n?", answer.text)


@pytest.mark.parametrize(
    "accept",
    [
        "application/problem+json",
        "Application/Problem+JSON",
        "application/problem+json, text/plain;q=0.5",
        "text/plain;q=0.5, application/problem+json",
        "application/problem+json;q=0.9",
        "application/problem+json; charset=utf-8",
    ],
)
def test_an_error_is_json_if_the_client_accepts_it(site: ServerProcess, accept: str) -> None:
    text = refused(site, None).text
    answer = refused(site, accept)
    assert answer["Content-Type"].partition(";")[0] == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem["status"] == 400
    assert isinstance(problem["title"], str)
    code = text.partition(":")[0]
    assert code in answer.text


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("PATCH", {"Upload-Offset": "4"}, b"world", 409),
        ("PATCH", {"Upload-Checksum": "sha1 " + encoded(bytes(20))}, b"world", 460),
        ("PATCH", {}, b"world!", 413),
        ("PATCH", {"Content-Type": "text/plain"}, b"world", 415),
        ("PATCH", {"Tus-Resumable": "2.0.0"}, b"world", 412),
        ("PUT", {}, b"", 405),
        ("GET", {}, None, 404),
    ],
)
def test_every_error_can_be_json(
    site: ServerProcess, method: str, headers: dict[str, Value], body: bytes | None, status: int
) -> None:
    location = create(site.url, 10, body=b"hello")
    answer = ask(method, location, patch_headers(5) | headers | {"Accept": "application/problem+json"}, body)
    assert answer.status == status
    assert answer["Content-Type"].partition(";")[0] == "application/problem+json"
    assert json.loads(answer.body)["status"] == status


def test_an_answer_to_head_has_no_body_even_if_json_is_accepted(site: ServerProcess) -> None:
    with Connection(site.url) as connection:
        for _ in range(2):
            answer = ask_on(connection, "HEAD", site.url + "/unknown", TUS | {"Accept": "application/problem+json"})
            assert answer.status == 404


def test_text_of_the_client_is_not_markup_in_an_error(site: ServerProcess) -> None:
    answer = ask("POST", site.url, TUS | {"Upload-Length": "<script>alert(1)</script>"}, b"")
    assert answer.status == 400
    assert "html" not in answer["Content-Type"]


# Requests that are no HTTP


CREATION = b"POST /files HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\n"
MALFORMED = [
    b"\r\n\r\n\r\n\r\nnonsense\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET\r\n\r\n",
    b"POST /files\r\n\r\n",
    b"GET /files/a b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /files/\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /files/\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    CREATION.replace(b"/1.1", b"/9.9") + b"\r\n",
    CREATION.replace(b"/files", b"files") + b"\r\n",
    CREATION + b"no colon\r\n\r\n",
    CREATION + b": no name\r\n\r\n",
    CREATION + b"Upload Concat: partial\r\n\r\n",
    CREATION + b"Content-Length: -1\r\n\r\n",
    CREATION + b"Content-Length: five\r\n\r\n",
    CREATION + b"Content-Length: 99999999999999999999\r\n\r\n",
    CREATION + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    CREATION + b"Upload-Metadata: a\x00b eA==\r\n\r\n",
    CREATION + b"Upload-Metadata: a\x01b eA==\r\n\r\n",
    CREATION + b"Upload-Metadata: a\x7fb eA==\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=shown)
def test_malformed_http_creates_nothing(site: ServerProcess, data: bytes) -> None:
    with unchanged(site), Connection(site.url, timeout=3) as connection:
        connection.send(data)
        with contextlib.suppress(ConnectionError, TimeoutError):
            answer = connection.answer(method="POST")
            assert 400 <= answer.status < 500
            assert not LEAKS.search(answer.body)
    assert ask("OPTIONS", site.url).status == 200


@pytest.mark.integrated
@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", CREATION + b"Upload-Metadata: a\x7fb eA==\r\n\r\n"], ids=shown)
def test_the_answer_to_what_is_no_http_has_the_headers_of_every_answer(site: ServerProcess, data: bytes) -> None:
    with Connection(site.url) as connection:
        connection.send(data)
        answer = connection.answer(method="POST")
    assert answer.status == 400
    assert answer["Tus-Resumable"] == "1.0.0"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*: [^\n]{3,300}\n?", answer.text)


@pytest.mark.parametrize("size", [60_000, 1_000_000])
def test_endless_headers_do_not_harm(site: ServerProcess, size: int) -> None:
    with unchanged(site), Connection(site.url) as connection:
        head = connection.head_of("HEAD", site.url + "/unknown", TUS | {"X-Long": "x" * size})
        with contextlib.suppress(ConnectionError):
            connection.send(head)
            assert 400 <= connection.answer(method="HEAD").status < 500
    assert ask("OPTIONS", site.url).status == 200


@pytest.mark.parametrize(
    "chunks", [b"x\r\nhello\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloXX5\r\n", b"fffffffffffffffff\r\nhello"]
)
def test_a_malformed_chunk_ends_the_request_only(site: ServerProcess, chunks: bytes) -> None:
    """Earlier bytes stay, and the upload can be continued."""
    location = create(site.url, 100)
    with Connection(site.url, timeout=5) as connection:
        connection.send_head("PATCH", location, patch_headers(0) | {"Transfer-Encoding": "chunked"})
        connection.send_chunk(b"first")
        connection.send(chunks)
        with contextlib.suppress(ConnectionError, TimeoutError):
            answer = connection.answer(method="PATCH")
            assert answer.status < 500
    offset = offset_of(location)
    assert offset in (5, 10)
    assert patch(location, offset, b"x" * (100 - offset)).offset == 100
    assert content_of(location).startswith(b"first")


def test_a_length_and_chunks_are_not_taken_for_two_requests(site: ServerProcess) -> None:
    location = create(site.url, 100)
    with Connection(site.url, timeout=5) as connection:
        headers = patch_headers(0) | {"Content-Length": "5", "Transfer-Encoding": "chunked"}
        connection.send_head("PATCH", location, headers)
        connection.send(b"0\r\n\r\n" + connection.head_of("DELETE", location, TUS))
        with contextlib.suppress(ConnectionError, TimeoutError):
            assert connection.answer(method="PATCH").status < 500
            connection.answer(method="DELETE")
    assert head(location).status == 200


def test_pipelined_requests_are_answered_in_order(site: ServerProcess) -> None:
    location = create(site.url, 10)
    with Connection(site.url) as connection:
        first = connection.head_of("PATCH", location, patch_headers(0) | {"Content-Length": "5"}) + b"hello"
        second = connection.head_of("HEAD", location, TUS)
        third = connection.head_of("PATCH", location, patch_headers(5) | {"Content-Length": "5"}) + b"world"
        connection.send(first + second + third)
        assert promised_answer(connection, "PATCH").offset == 5
        assert promised_answer(connection, "HEAD").offset == 5
        assert promised_answer(connection, "PATCH").offset == 10
    assert content_of(location) == b"helloworld"


def test_a_connection_that_says_nothing_does_not_harm(site: ServerProcess) -> None:
    with Connection(site.url), Connection(site.url) as half:
        half.send(b"POST /files HTTP/1.1\r\nHost:")
        assert ask("OPTIONS", site.url).status == 200


@pytest.mark.parametrize("method", ["FOO", "patch", "PROPFIND", "CONNECT", "TRACE", "PUT"])
def test_a_method_that_is_none(site: ServerProcess, method: str) -> None:
    location = create(site.url, 10)
    with unchanged(site), Connection(site.url, timeout=5) as connection:
        connection.send_head(method, location, patch_headers(0) | {"Content-Length": "0"})
        with contextlib.suppress(Closed):
            assert connection.answer(method="POST").status in (400, 404, 405)
