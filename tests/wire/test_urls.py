from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Value, identity, patch_headers, shown
from tests.support.wire.promised import ID, ask, content_of, create, head, promised_answer

PARTIAL: dict[str, Value] = {"Upload-Concat": "partial"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that believes no proxy, with a text in place of the pages."""
    with serving(tmp_path_factory.mktemp("urls"), no_pages=True) as server:
        yield server


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that believes a proxy on this host."""
    with serving(tmp_path_factory.mktemp("proxied"), trusted_proxies="127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that knows the URL of its clients."""
    options = {"public_url": "https://cdn.example/base", "trusted_proxies": "127.0.0.1"}
    with serving(tmp_path_factory.mktemp("public"), **options) as server:
        yield server


def location_of(server: ServerProcess, headers: dict[str, Value]) -> str:
    """Where a creation with these headers says that its upload is."""
    answer = ask("POST", server.url, TUS | {"Upload-Length": "5"} | headers, b"")
    assert answer.status == 201, answer
    location = answer["Location"]
    # Wherever it is said to be, it is here; and it is a URL that every client can take.
    assert re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?/[a-z/]*" + ID, location, re.IGNORECASE)
    assert head(f"{server.url}/{identity(location)}").status == 200
    return location


def origin_of(server: ServerProcess, headers: dict[str, Value]) -> str:
    location = location_of(server, headers)
    return re.sub("/files/" + ID + "$", "", location)


# The creation URL


@pytest.mark.parametrize("url", ["/files", "/files/", "/files?token=a", "/files/?token=a/b"])
def test_the_creation_url_needs_no_redirect(site: ServerProcess, url: str) -> None:
    answer = ask("POST", site.origin + url, TUS | {"Upload-Length": "5"}, b"")
    assert answer.status == 201
    assert re.fullmatch(re.escape(site.url) + "/" + ID, answer["Location"])


@pytest.mark.parametrize("url", ["/", "/Files", "/file", "/filesystem", "//files", "/files/x/y", "/x/files"])
def test_other_urls_create_nothing(site: ServerProcess, url: str) -> None:
    with unchanged(site), Connection(site.url) as connection:
        headers = TUS | {"Upload-Length": "5", "Content-Length": "0"}
        connection.send_head("POST", site.origin + url, headers)
        assert connection.answer(method="POST").status in (404, 405)


def test_the_root_says_what_this_is_and_where_to_upload(site: ServerProcess) -> None:
    answer = ask("GET", site.origin + "/")
    assert (answer.status, answer["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert f"  {site.url}\n" in answer.text
    assert "https://tus.io/implementations" in answer.text
    with Connection(site.url) as connection:
        connection.send_head("HEAD", site.origin + "/")
        assert connection.answer(method="HEAD").status == 200
    assert "evil" not in ask("GET", site.origin + "/", {"Host": "evil, <b>"}).text


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_the_creation_url_in_a_browser_says_how_to_go_on(site: ServerProcess, accept: str) -> None:
    for url in (site.url, site.url + "/"):
        answer = ask("GET", url, {"Accept": accept})
        assert (answer.status, answer["Allow"]) == (405, "OPTIONS, POST")
        assert "tus client (https://tus.io/implementations)" in answer.text


@pytest.mark.parametrize("base_path", ["/api/uploads", "/api/uploads/"])
def test_the_creation_url_can_be_elsewhere(tmp_path_factory: pytest.TempPathFactory, base_path: str) -> None:
    with serving(tmp_path_factory.mktemp("elsewhere"), base_path=base_path) as server:
        for url in ("/api/uploads", "/api/uploads/"):
            location = create(server.origin + url, 5, PARTIAL, b"hello")
            assert re.fullmatch(re.escape(server.origin) + "/api/uploads/" + ID, location)
            assert content_of(location) == b"hello"
            for part in (location, location.removeprefix(server.origin)):
                final = ask("POST", server.origin + url, TUS | {"Upload-Concat": f"final;{part}"}, b"")
                assert (final.status, final.offset) == (201, 5)
        with Connection(server.url) as connection:
            connection.send_head("POST", server.origin + "/files", TUS | {"Upload-Length": "5", "Content-Length": "0"})
            assert connection.answer(method="POST").status == 404


def test_http_1_0_without_a_host(site: ServerProcess) -> None:
    with Connection(site.url) as connection:
        connection.send(b"POST /files HTTP/1.0\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\n\r\n")
        answer = promised_answer(connection, "POST")
    assert answer.status == 201
    assert re.fullmatch(r"http://[^/,]+/files/" + ID, answer["Location"])
    assert head(f"{site.url}/{identity(answer['Location'])}").status == 200


def test_a_target_in_absolute_form(site: ServerProcess) -> None:
    with Connection(site.url) as connection:
        connection.send(
            b"POST " + site.url.encode() + b" HTTP/1.1\r\nHost: " + site.origin[7:].encode() + b"\r\n"
            b"Tus-Resumable: 1.0.0\r\nUpload-Length: 5\r\nContent-Length: 0\r\n\r\n"
        )
        answer = promised_answer(connection, "POST")
    assert answer.status == 201
    assert answer["Location"].startswith(site.url + "/")


# The host


@pytest.mark.parametrize(
    "host",
    [
        "upload.example.org",
        "upload.example.org:8443",
        "UPLOAD.Example.org",
        "localhost",
        "a-b.c-d.example",
        "xn--bcher-kva.example",
        "192.0.2.7:80",
        "[::1]",
        "[2001:db8::7]:8080",
    ],
)
def test_the_host_is_the_one_of_the_request(site: ServerProcess, host: str) -> None:
    assert origin_of(site, {"Host": host}).lower() == f"http://{host}".lower().removesuffix(":80")


NO_HOSTS: tuple[Value, ...] = (
    "",
    "evil.example/path",
    "evil.example/..",
    "evil.example?x",
    "evil.example#x",
    "evil.example\\x",
    "user@evil.example",
    "user:secret@evil.example",
    "evil.example:80@evil.example",
    "evil.example:port",
    "evil.example:99999",
    "evil.example:-1",
    "evil.example:80:80",
    "evil example",
    "evil.example x",
    "http://evil.example",
    "//evil.example",
    '"evil.example',
    "<script>alert(1)</script>",
    "evil.example%0d%0aSet-Cookie:a=b",
    "evil.example;x",
    "evil.example=x",
    "evil.ex\u00e4mple",
    "evil.ex\u00e4mple".encode(),
    "[evil]",
    "[::1",
    "::1",
    "[::1]evil.example",
    "{{evil}}",
    "*",
    b"\xff",
    "a" * 5000,
)


@pytest.mark.parametrize("host", [*NO_HOSTS, "evil.example,", "evil.example, evil.example"], ids=shown)
def test_a_host_that_is_none_is_ignored(site: ServerProcess, host: Value) -> None:
    assert "evil" not in location_of(site, {"Host": host})


@pytest.mark.parametrize("host", NO_HOSTS, ids=shown)
def test_a_forwarded_host_that_is_none_is_ignored(proxied: ServerProcess, host: Value) -> None:
    assert origin_of(proxied, {"X-Forwarded-Host": host}) == proxied.origin


def test_only_the_path_of_a_hostile_host_leads_to_an_upload(site: ServerProcess) -> None:
    location = create(site.url, 5, {"Host": "evil.example"}, b"hello")
    assert content_of(f"{site.url}/{identity(location)}") == b"hello"


# Proxies


FORWARDED: list[tuple[dict[str, Value], str]] = [
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example"}, "https://up.example"),
    ({"X-Forwarded-Proto": "HTTPS", "X-Forwarded-Host": "up.example:8443"}, "https://up.example:8443"),
    ({"X-Forwarded-Proto": "http", "X-Forwarded-Host": "up.example"}, "http://up.example"),
    ({"X-Forwarded-Proto": "https", "Host": "up.example"}, "https://up.example"),
    ({"X-Forwarded-Host": "up.example"}, "http://up.example"),
    ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "[2001:db8::7]"}, "https://[2001:db8::7]"),
    ({"X-Forwarded-Proto": "https, https", "X-Forwarded-Host": "up.example, up.example"}, "https://up.example"),
    ({"X-Forwarded-Proto": "https,https", "X-Forwarded-Host": "up.example,up.example"}, "https://up.example"),
    ({"X-Forwarded-Proto": ("https", "https"), "X-Forwarded-Host": ("up.example", "up.example")}, "https://up.example"),
    ({"Forwarded": "for=192.0.2.7;host=up.example;proto=https"}, "https://up.example"),
    ({"Forwarded": "For=192.0.2.7; Host=up.example; Proto=https"}, "https://up.example"),
    ({"Forwarded": "proto=https;host=up.example"}, "https://up.example"),
    ({"Forwarded": 'for="[2001:db8::1]:4711";proto="https";host="up.example:8443"'}, "https://up.example:8443"),
    ({"Forwarded": 'host="up.example"; proto=HTTPS'}, "https://up.example"),
    ({"Forwarded": "proto=https", "Host": "up.example"}, "https://up.example"),
    ({"Forwarded": "host=up.example;proto=https, host=up.example;proto=https"}, "https://up.example"),
]


@pytest.mark.parametrize(("headers", "expected"), FORWARDED, ids=shown)
def test_a_trusted_proxy_is_believed(proxied: ServerProcess, headers: dict[str, Value], expected: str) -> None:
    assert origin_of(proxied, headers) == expected


@pytest.mark.parametrize(("headers", "expected"), FORWARDED, ids=shown)
def test_nobody_else_is_believed(site: ServerProcess, headers: dict[str, Value], expected: str) -> None:
    host = headers.get("Host")
    assert origin_of(site, headers) == (f"http://{host}" if isinstance(host, str) else site.origin)


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "*", "10.0.0.0/8,127.0.0.1", "10.1.2.3, 127.0.0.1"])
def test_proxies_that_include_this_host(tmp_path_factory: pytest.TempPathFactory, trusted: str) -> None:
    with serving(tmp_path_factory.mktemp("trusted"), trusted_proxies=trusted) as server:
        headers: dict[str, Value] = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example"}
        assert origin_of(server, headers) == "https://up.example"


@pytest.mark.parametrize("trusted", ["10.0.0.0/8", "127.0.0.2", "::1,192.0.2.0/24"])
def test_proxies_that_do_not_include_this_host(tmp_path_factory: pytest.TempPathFactory, trusted: str) -> None:
    with serving(tmp_path_factory.mktemp("untrusted"), trusted_proxies=trusted) as server:
        headers: dict[str, Value] = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
        assert origin_of(server, headers) == server.origin
        assert origin_of(server, {"Forwarded": "host=evil.example;proto=https"}) == server.origin
        assert origin_of(server, headers | {"X-Forwarded-For": "10.0.0.1"}) == server.origin


def test_a_chain_of_proxies_names_one_host(proxied: ServerProcess) -> None:
    for headers in (
        {"X-Forwarded-Host": "first.example, second.example", "X-Forwarded-Proto": "https, http"},
        {"X-Forwarded-Host": ("first.example", "second.example"), "X-Forwarded-Proto": ("https", "http")},
        {"Forwarded": "host=first.example;proto=https, host=second.example;proto=http"},
        {"Forwarded": ("host=first.example;proto=https", "host=second.example;proto=http")},
    ):
        assert origin_of(proxied, dict(headers)) in ("https://first.example", "http://second.example")


@pytest.mark.parametrize("proto", ["", "ftp", "javascript", "https://", "http s", "https;", "\u00e9", ",", b"\xff"])
def test_a_forwarded_protocol_that_is_none_is_ignored(proxied: ServerProcess, proto: Value) -> None:
    assert origin_of(proxied, {"X-Forwarded-Proto": proto, "X-Forwarded-Host": "up.example"}) == "http://up.example"


@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        ";",
        ",",
        "host",
        "host=",
        "=up.example",
        "proto=javascript",
        'host="',
        'host="evil.example',
        'host="evil.example/path"',
        "host=user@evil.example",
        'host="evil.example\\"";proto=http',
        "for=evil.example",
        "by=evil.example",
        "nonsense",
        b"\xff",
        "host=" + "a" * 5000,
        ";" * 5000,
        '"' * 5001,
    ],
    ids=shown,
)
def test_a_malformed_forwarded_is_ignored(proxied: ServerProcess, forwarded: Value) -> None:
    assert origin_of(proxied, {"Forwarded": forwarded}) == proxied.origin


def test_an_upload_goes_on_behind_a_proxy(proxied: ServerProcess) -> None:
    """The proxy hands on the path; host and protocol are those of the client."""
    forwarded: dict[str, Value] = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example"}
    location = create(proxied.url, 5, forwarded | PARTIAL)
    here = f"{proxied.url}/{identity(location)}"
    assert ask("PATCH", here, patch_headers(0) | forwarded, b"hello").offset == 5
    for part in (location, location.removeprefix("https://up.example")):
        final = ask("POST", proxied.url, TUS | forwarded | {"Upload-Concat": f"final;{part}"}, b"")
        assert (final.status, final.offset) == (201, 5)
        assert final["Location"].startswith("https://up.example/files/")


# The public URL


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "evil.example"},
        {"Host": "evil example"},
        {"X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"},
        {"Forwarded": "host=evil.example;proto=http"},
    ],
    ids=shown,
)
def test_the_public_url_overrides_the_request(public: ServerProcess, headers: dict[str, Value]) -> None:
    answer = ask("POST", public.url, TUS | {"Upload-Length": "5"} | headers, b"")
    assert answer.status == 201
    assert re.fullmatch("https://cdn.example/base/files/" + ID, answer["Location"])
    assert head(f"{public.url}/{identity(answer['Location'])}").status == 200


def test_a_public_url_may_end_with_a_slash(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("slash"), public_url="https://cdn.example/") as server:
        location = ask("POST", server.url, TUS | {"Upload-Length": "5"}, b"")["Location"]
        assert re.fullmatch("https://cdn.example/files/" + ID, location)


@pytest.mark.parametrize("form", ["https://cdn.example/base/files/{id}", "/base/files/{id}", "/base/files/{id}?a=b"])
def test_parts_have_the_public_url(public: ServerProcess, form: str) -> None:
    part = identity(create(public.url, 5, PARTIAL, b"hello"))
    final = ask("POST", public.url, TUS | {"Upload-Concat": "final;" + form.format(id=part)}, b"")
    assert (final.status, final.offset) == (201, 5)
    assert final["Location"].startswith("https://cdn.example/base/files/")


@pytest.mark.parametrize(
    "form", ["https://other.example/base/files/{id}", "https://cdn.example/other/{id}", "/base/other/{id}"]
)
def test_parts_with_another_url_are_those_of_this_server(public: ServerProcess, form: str) -> None:
    """A proxy may have rewritten their locations."""
    part = identity(create(public.url, 5, PARTIAL, b"hello"))
    final = ask("POST", public.url, TUS | {"Upload-Concat": "final;" + form.format(id=part)}, b"")
    assert (final.status, final.offset) == (201, 5)
