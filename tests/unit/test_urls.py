from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, strategies as st
from starlette.types import Scope

from tests.support.properties import HEADER_TEXT, on_any_machine
from tusd_py.core.upload import is_upload_id
from tusd_py.http.tus.headers import InvalidHeader
from tusd_py.http.urls import TrustedProxies, UrlBuilder, upload_id_of

PROXY = "10.0.0.1"
CLIENT = "203.0.113.9"
OTHER_PROXY = "10.0.0.2"


def scope_of(**parts: Any) -> Scope:
    """Return the URL that a tus server mounted at /files makes of a request."""
    scope = {"scheme": "http", "client": (PROXY, 4711), "server": ("127.0.0.1", 8080), "root_path": "/files"}
    return {"app_root_path": "", **scope, **parts}


def builder(trusted: str = "10.0.0.0/8", public_url: str | None = None) -> UrlBuilder:
    return UrlBuilder(public_url, TrustedProxies([entry for entry in trusted.split(",") if entry]))


# Trusted proxies.


@pytest.mark.parametrize(
    ("entries", "address", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("192.168.0.1,10.0.0.0/8", "10.0.0.1", True),
        ("::1", "::1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("::1", "[::1]", True),
        ("2001:db8::/32", "2001:db8:1::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("10.0.0.0/8", "::1", False),
        ("*", "203.0.113.9", True),
        ("*", "", True),  # a Unix socket has no address
        ("*", "unknown", True),
        ("", "127.0.0.1", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "localhost", False),
        ("127.0.0.1", "127.0.0.1.example.org", False),
        ("0.0.0.0/0", "_hidden", False),
    ],
)
def test_trusted_proxies(entries: str, address: str, expected: bool) -> None:
    assert TrustedProxies([entry for entry in entries.split(",") if entry]).trusts(address) is expected


def test_trusted_proxy_matches_its_ipv4_mapped_address() -> None:
    assert TrustedProxies(["10.0.0.0/8"]).trusts("::ffff:10.0.0.1")
    assert not TrustedProxies(["10.0.0.0/8"]).trusts("::ffff:11.0.0.1")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "hops"),
    [
        (CLIENT, [], 0),
        (CLIENT, [PROXY, OTHER_PROXY], 0),
        (PROXY, [], 1),
        (PROXY, [CLIENT], 1),
        (PROXY, [CLIENT, OTHER_PROXY], 2),
        (PROXY, [OTHER_PROXY, CLIENT], 1),
        (PROXY, [CLIENT, f"{OTHER_PROXY}:4711"], 2),
        (PROXY, [OTHER_PROXY, OTHER_PROXY], 3),
        (PROXY, [CLIENT, ""], 1),
    ],
)
def test_number_of_trusted_forwarded_for_entries(peer: str, forwarded_for: list[str], hops: int) -> None:
    assert TrustedProxies(["10.0.0.0/8"]).hops(peer, forwarded_for) == hops


# The URL of the endpoint.


@pytest.mark.parametrize(
    ("scope", "headers", "expected"),
    [
        ({}, {"host": "example.org"}, "http://example.org/files"),
        ({}, {"host": "example.org:8080"}, "http://example.org:8080/files"),
        ({}, {"host": "example.org:80"}, "http://example.org/files"),
        ({}, {"host": "example.org:443"}, "http://example.org:443/files"),
        ({"scheme": "https"}, {"host": "example.org:443"}, "https://example.org/files"),
        ({"scheme": "https"}, {"host": "example.org:80"}, "https://example.org:80/files"),
        ({}, {"host": "[2001:db8::1]:8080"}, "http://[2001:db8::1]:8080/files"),
        ({}, {"host": "[::1]"}, "http://[::1]/files"),
        # A host that is not one is not given back.
        ({}, {}, "http://127.0.0.1:8080/files"),
        ({}, {"host": ""}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "evil,example.org"}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "example.org/path"}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "user@example.org"}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "example.org:port"}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "example.org:65535"}, "http://example.org:65535/files"),
        ({}, {"host": "example.org:65536"}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "example.org\n"}, "http://127.0.0.1:8080/files"),
        ({}, {"host": "<script>"}, "http://127.0.0.1:8080/files"),
        ({"server": ("::1", 8080)}, {}, "http://[::1]:8080/files"),
        ({"server": None}, {}, "http://localhost/files"),
        ({"server": ("/run/socket", None)}, {}, "http://localhost/files"),
        # Mounted in another application, below the prefix of the server.
        ({"root_path": "/api/files", "app_root_path": "/api"}, {"host": "h"}, "http://h/api/files"),
        ({"root_path": "/api/v1/uploads", "app_root_path": ""}, {"host": "h"}, "http://h/api/v1/uploads"),
        ({"root_path": "", "app_root_path": ""}, {"host": "h"}, "http://h"),
    ],
)
def test_the_url_of_the_endpoint(scope: dict[str, Any], headers: dict[str, str], expected: str) -> None:
    assert builder(trusted="").base(scope_of(**scope), headers) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-forwarded-proto": "https"}, "https://inner/files"),
        ({"x-forwarded-proto": "HTTPS"}, "https://inner/files"),
        ({"x-forwarded-proto": "gopher"}, "http://inner/files"),
        ({"x-forwarded-proto": ""}, "http://inner/files"),
        ({"x-forwarded-host": "example.org"}, "http://example.org/files"),
        ({"x-forwarded-host": "example.org:443", "x-forwarded-proto": "https"}, "https://example.org/files"),
        ({"x-forwarded-host": "example.org", "x-forwarded-port": "8443"}, "http://example.org:8443/files"),
        ({"x-forwarded-host": "example.org:1", "x-forwarded-port": "8443"}, "http://example.org:1/files"),
        ({"x-forwarded-host": "example.org", "x-forwarded-port": "80"}, "http://example.org/files"),
        ({"x-forwarded-port": "8443"}, "http://inner/files"),
        ({"x-forwarded-prefix": "/api"}, "http://inner/api/files"),
        ({"x-forwarded-prefix": "/api/v1/"}, "http://inner/api/v1/files"),
        ({"x-forwarded-prefix": "/"}, "http://inner/files"),
        ({"x-forwarded-prefix": "//evil.example"}, "http://inner/files"),
        ({"x-forwarded-prefix": "https://evil.example"}, "http://inner/files"),
        # Of a list, what the believed proxies wrote.
        ({"x-forwarded-host": "evil.example, example.org"}, "http://example.org/files"),
        ({"x-forwarded-proto": "http, https"}, "https://inner/files"),
        (
            {"x-forwarded-for": f"{CLIENT}, {OTHER_PROXY}", "x-forwarded-proto": "https, http"},
            "https://inner/files",
        ),
        (
            {"x-forwarded-for": f"{PROXY}, {CLIENT}", "x-forwarded-proto": "http, https"},
            "https://inner/files",
        ),
        ({"x-forwarded-for": f"{CLIENT}, {OTHER_PROXY}", "x-forwarded-proto": "https"}, "https://inner/files"),
        # A host that is not one.
        ({"x-forwarded-host": "evil.example/path"}, "http://inner/files"),
        ({"x-forwarded-host": "user:password@evil.example"}, "http://inner/files"),
        ({"x-forwarded-host": "a b"}, "http://inner/files"),
        ({"x-forwarded-host": "example.org", "x-forwarded-port": "nonsense"}, "http://inner/files"),
        # RFC 7239.
        ({"forwarded": "proto=https;host=example.org"}, "https://example.org/files"),
        ({"forwarded": 'Proto="https";HOST="example.org:8443"'}, "https://example.org:8443/files"),
        ({"forwarded": f"for={CLIENT};proto=https, for={OTHER_PROXY};proto=http"}, "https://inner/files"),
        ({"forwarded": f"for={OTHER_PROXY};proto=http, for={CLIENT};proto=https"}, "https://inner/files"),
        ({"forwarded": "proto=https", "x-forwarded-proto": "http"}, "https://inner/files"),
        ({"forwarded": "proto=https", "x-forwarded-host": "evil.example"}, "https://inner/files"),
        ({"forwarded": "nonsense"}, "http://inner/files"),
        ({"forwarded": ""}, "http://inner/files"),
        ({"forwarded": "host=evil.example/path;;proto="}, "http://inner/files"),
    ],
)
def test_forwarded_headers_of_trusted_proxies_set_the_url(headers: dict[str, str], expected: str) -> None:
    headers = {"host": "inner", **headers}
    assert builder().base(scope_of(), headers) == expected
    for untrusted in ("", "127.0.0.1"):
        assert builder(untrusted).base(scope_of(), headers) == "http://inner/files"


def test_the_public_url_overrides_everything() -> None:
    headers = {"host": "inner", "x-forwarded-proto": "http", "x-forwarded-host": "evil.example"}
    urls = builder("*", "https://uploads.example.org/")
    assert urls.base(scope_of(), headers) == "https://uploads.example.org/files"
    urls = builder("*", "https://example.org/prefix")
    assert urls.base(scope_of(), headers) == "https://example.org/prefix/files"
    mounted = scope_of(root_path="/stripped/api/files", app_root_path="/stripped")
    assert urls.base(mounted, headers) == "https://example.org/prefix/api/files"


NAMES = ["host", "forwarded", *(f"x-forwarded-{name}" for name in ("for", "proto", "host", "port", "prefix"))]


@on_any_machine
@given(st.dictionaries(st.sampled_from(NAMES), HEADER_TEXT))
def test_url_is_valid_for_arbitrary_forwarded_headers(headers: dict[str, str]) -> None:
    url = builder("*").base(scope_of(), headers)
    assert url.startswith(("http://", "https://"))
    assert url.endswith("/files")
    assert url.isascii()
    assert url.isprintable()
    assert not set(url) & set(", \"'<>@?#")


# The address of the client.


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, PROXY),
        ({"x-forwarded-for": CLIENT}, CLIENT),
        ({"x-forwarded-for": f"198.51.100.1, {CLIENT}"}, CLIENT),
        ({"x-forwarded-for": f"198.51.100.1, {CLIENT}, {OTHER_PROXY}"}, CLIENT),
        ({"x-forwarded-for": ""}, PROXY),
        ({"forwarded": f"for={CLIENT}"}, CLIENT),
        ({"forwarded": f'for="{CLIENT}:4711"'}, CLIENT),
        ({"forwarded": 'for="[2001:db8::1]:4711"'}, "2001:db8::1"),
        ({"forwarded": f"for=198.51.100.1, for={CLIENT}, for={OTHER_PROXY}"}, CLIENT),
        ({"forwarded": "proto=https"}, PROXY),
        ({"x-forwarded-for": f"{CLIENT}:4711"}, CLIENT),
        ({"x-forwarded-for": "[2001:db8::1]:4711"}, "2001:db8::1"),
    ],
)
def test_the_address_of_the_client(headers: dict[str, str], expected: str) -> None:
    assert builder().client(scope_of(), headers) == expected
    assert builder("").client(scope_of(), headers) == PROXY


def test_a_client_without_an_address() -> None:
    assert builder("").client(scope_of(client=None), {}) == ""


# Proxies that nobody trusts.


@pytest.mark.parametrize("name", ["x-forwarded-proto", "x-forwarded-host", "forwarded"])
def test_forwarding_of_an_untrusted_peer_is_logged_once(caplog: pytest.LogCaptureFixture, name: str) -> None:
    urls = UrlBuilder(None, TrustedProxies(["192.0.2.1"]))
    for number in range(3):
        urls.client(scope_of(client=(f"10.0.0.{number}", 1)), {name: "https"})
    assert len(caplog.messages) == 1
    assert "from 10.0.0.0 is ignored" in caplog.messages[0]
    assert "trusted_proxies" in caplog.messages[0]


def test_forwarding_is_not_logged_where_it_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"x-forwarded-proto": "https"}
    UrlBuilder("https://example.org", TrustedProxies([])).client(scope_of(), fields)
    UrlBuilder(None, TrustedProxies(["*"])).client(scope_of(), fields)
    UrlBuilder(None, TrustedProxies([])).client(scope_of(), {"x-forwarded-for": "10.0.0.1"})
    assert caplog.messages == []


# The id of an upload.


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/api/files/abc",
        "http://example.org/api/files/abc",
        "HTTPS://EXAMPLE.ORG/api/files/abc",
        "https://example.org:443/api/files/abc",
        "//example.org/api/files/abc",
        "/api/files/abc",
        "/api/files/abc?token=secret",
        "https://example.org/api/files/abc?token=secret&a=b,c",
        "/api/files/abc?next=/other/id",
        "/api/files/abc#fragment/of/it",
        "/api/files/abc/",
        "/api/files/abc/?token=secret",
        "/api/files/%61bc",
        "/api/files//abc",
        "/api/files/../files/abc",
        "/API/files/abc",
        # The same through a proxy.
        "abc",
        "files/abc",
        "./abc",
        "/abc",
        "/files/abc",
        "/api/files/a/b/abc",
        "https://example.org/files/abc",
        "https://outside.example/uploads/abc",
        "https://user@example.org:8443/api/files/abc",
        "http://[::1]:8080/files/abc",
    ],
)
def test_upload_id_of_a_url_is_its_last_segment(url: str) -> None:
    assert upload_id_of(url) == "abc"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/",
        "//",
        "?",
        "#",
        "?id=/abc",
        "https://example.org",
        "https://example.org/",
        "//abc",
        "/api/files/abc//",
        "/api/files/..",
        "/api/files/.",
        "/api/files/%2e%2e",
        "/api/files/a.b",
        "/api/files/abc%00",
        "/api/files/abc%20",
        "/api/files/%2fabc",
        "/api/files/..%2fabc",
        "/api/files/abc%2f",
        "/api/files/%2561bc",
        "/api/files/abc,/api/files/abc",
        "/api/files/\u00e4",
        "/api/files/%c3%a4",
        "/api/files/%ff",
        "/api/files/" + "a" * 129,
        "ftp://example.org/api/files/abc",
        "file:///api/files/abc",
        "javascript:/api/files/abc",
        "javascript:abc",
        "http://[::1/api/files/abc",
        "//[/api/files/abc",
        "https://]/api/files/abc",
    ],
)
def test_upload_id_of_what_names_no_upload_is_refused(url: str) -> None:
    with pytest.raises(InvalidHeader) as raised:
        upload_id_of(url)
    assert raised.value.code == "ERR_INVALID_CONCAT"


@on_any_machine
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF), max_size=60))
def test_upload_id_of_any_url_is_an_id_or_refused(url: str) -> None:
    for candidate in (url, f"/api/files/{url}", f"https://{url}/api/files/abc"):
        try:
            upload_id = upload_id_of(candidate)
        except InvalidHeader:
            continue
        assert is_upload_id(upload_id)
        assert upload_id in unquote(candidate)
