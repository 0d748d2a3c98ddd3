"""Requests in unusual forms, which must not get a stranger what a plain request does not.

Each form is asked for an upload of another principal and for one that does not exist: the answers are the same, nothing
changes, and no byte of the upload is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from tests.auth.site import OTHER, OWNER, ask, bearer, create, jwt_of, token_files, without_date
from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.wire.connection import Connection
from tests.support.wire.messages import OFFSET_STREAM, TUS, Answer, Headers, patch_headers

UNKNOWN = "/files/0123456789abcdef0123456789abcdef"
CONTENT = b"bytes of ann alone"
PAGE = "https://page.example"
METHODS = ("HEAD", "GET", "PATCH", "DELETE", "OPTIONS", "PUT", "TRACE")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    options = {"quota_bytes": "1GiB", "cors_origins": PAGE, "cors_credentials": True, "auth_cookie": "session"}
    with serving(folder, **token_files(folder), **options, trusted_proxies="*", gone_for="1h") as server:
        yield server


@pytest.fixture(params=["active", "complete", "complete partial"])
def path(site: ServerProcess, request: pytest.FixtureRequest) -> str:
    """The path of an upload of ann."""
    length = len(CONTENT) + (request.param == "active")
    headers = {"Upload-Concat": "partial"} if request.param == "complete partial" else {}
    return create(site, OWNER, length, CONTENT, headers)


@dataclass(frozen=True)
class Form:
    """A form of requests: what becomes of the target, the version of HTTP, and further header fields."""

    target: Callable[[str], str] = lambda path: path
    version: str = "1.1"
    headers: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)


def encoded(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{''.join(f'%{ord(letter):02x}' for letter in name)}"


PROXIED = ("X-Original-URI", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Envoy-Original-Path")
NAMING = ("X-User", "X-Remote-User", "X-Forwarded-User", "Remote-User", "X-Auth-Request-User")
ORIGINAL, IDENTITY = dict.fromkeys(PROXIED, "/files"), dict.fromkeys(NAMING, "ann")
UPGRADE = {"Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
FORMS = {
    "HTTP/1.0": Form(version="1.0"),
    "absolute form": Form(lambda path: f"http://other.example{path}"),
    "slash behind": Form(lambda path: path + "/"),
    "two slashes behind": Form(lambda path: path + "//"),
    "two slashes before": Form(lambda path: path.replace("/files/", "/files//")),
    "two slashes at the beginning": Form(lambda path: "/" + path),
    "dots": Form(lambda path: path.replace("/files/", "/files/../files/")),
    "dot": Form(lambda path: path.replace("/files/", "/files/./")),
    "encoded dots": Form(lambda path: path.replace("/files/", "/files/%2e%2e/files/")),
    "upper case": Form(lambda path: path.upper()),
    "encoded id": Form(encoded),
    "encoded slash": Form(lambda path: path.replace("/files/", "/files%2f")),
    "encoded slash behind": Form(lambda path: path + "%2f"),
    "encoded zero": Form(lambda path: path + "%00"),
    "parameter": Form(lambda path: path + ";a=b"),
    "query": Form(lambda path: f"{path}?access_token={OWNER}&token={OWNER}&k=&t=&d="),
    "encoded question mark": Form(lambda path: path + "%3fk=1"),
    "sub-resource": Form(lambda path: path + "/info"),
    "websocket": Form(headers=UPGRADE | {"Upgrade": "websocket"}),
    "h2c": Form(headers=UPGRADE | {"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQBAAAAAAIAAAAA"}),
    "proxy fields": Form(headers=ORIGINAL | {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1;host=a"}),
    "prefix": Form(headers={"X-Forwarded-Prefix": "/files"}),
    "identity": Form(headers=IDENTITY),
    "other schemes": Form(headers={"Proxy-Authorization": f"Bearer {OWNER}", "X-Authorization": f"Bearer {OWNER}"}),
    "cookie of another name": Form(headers={"Cookie": f"token={OWNER}; Session={OWNER}; session2={OWNER}"}),
    "page": Form(headers={"Origin": PAGE}),
    "preflight": Form(headers={"Origin": PAGE, "Access-Control-Request-Method": "GET"}),
    "conditions": Form(
        headers={"If-None-Match": "*", "If-Match": "*", "If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}
    ),
    "range": Form(headers={"Range": "bytes=0-3"}),
    "two overrides": Form(headers={"X-HTTP-Method-Override": ("GET", "HEAD")}),
    "two versions": Form(headers={"Tus-Resumable": ("1.0.0", "1.0.0")}),
    "old version": Form(headers={"Tus-Resumable": "0.2.2"}),
    **{
        f"override {name}": Form(headers={"X-HTTP-Method-Override": name})
        for name in ("OPTIONS", "get", "TRACE", "GET ", "")
    },
}


def sent(site: ServerProcess, token: str | None, method: str, path: str, form: Form) -> Answer:
    body = b"of bob" if method == "PATCH" else b""
    headers: dict[str, str | tuple[str, ...]] = {**TUS, **bearer(token), "Connection": "close"}
    if method == "PATCH":
        headers |= {"Upload-Offset": str(len(CONTENT)), "Content-Type": OFFSET_STREAM, "Content-Length": str(len(body))}
    with Connection(site.port) as connection:
        given: Headers = headers | dict(form.headers)
        connection.send(connection.head_of(method, form.target(path), given, version=form.version) + body)
        return connection.answer(method=method)


@pytest.mark.parametrize("name", FORMS)
def test_form_of_a_request_gets_a_stranger_nothing(site: ServerProcess, path: str, name: str) -> None:
    form = FORMS[name]
    with unchanged(site):
        for method in METHODS:
            for token in (None, OTHER, jwt_of("bob"), jwt_of("ann", exp=1)):
                found, nothing = (sent(site, token, method, one, form) for one in (path, UNKNOWN))
                assert without_date(found) == without_date(nothing), (method, token)
                assert CONTENT[:4] not in found.body
                if found.status < 400:  # OPTIONS, whichever way it is asked for
                    assert "Upload-Offset" not in found
                    assert name == "preflight" or found["Tus-Version"] == "1.0.0"


@pytest.mark.parametrize(
    "form",
    [
        "http://other.example{0}",
        "//other.example{0}",
        "{0}/",
        "../..{0}",
        "{0}?k=1.2.3",
        "{0}#fragment",
        "/other/folder/{1}",
        "{1}",
        "/files/%{2}",
        "{0};a=b",
        "{0}/..",
    ],
)
def test_form_of_a_part_gets_a_stranger_nothing(site: ServerProcess, form: str) -> None:
    foreign = create(site, OWNER, len(CONTENT), CONTENT, {"Upload-Concat": "partial"})
    own = create(site, OTHER, 4, b"mine", {"Upload-Concat": "partial"})

    def concatenated(path: str) -> Answer:
        upload_id = path.rpartition("/")[2]
        first = f"{ord(upload_id[0]):02x}{upload_id[1:]}"
        return ask(
            site, OTHER, "POST", "/files", {"Upload-Concat": f"final;{own} {form.format(path, upload_id, first)}"}
        )

    with unchanged(site):
        found, nothing = concatenated(foreign), concatenated(UNKNOWN)
        assert found.status in (400, 404)
        assert without_date(found) == without_date(nothing)


# Several requests of one connection.


def test_each_request_of_a_connection_is_decided_by_its_own_token(site: ServerProcess, path: str) -> None:
    tokens = [OWNER, OTHER, None, jwt_of("ann"), jwt_of("bob"), OWNER, "wrong", jwt_of("ann", exp=1), OWNER]
    with Connection(site.port) as connection:
        heads = [connection.head_of("HEAD", path, TUS | bearer(token)) for token in tokens]
        connection.send(b"".join(heads))
        statuses = [connection.answer(method="HEAD").status for _ in tokens]
    assert statuses == [200, 404, 401, 200, 404, 200, 401, 423, 200]


@pytest.mark.parametrize("size", [0, 1000, 70_000], ids=["small", "kept", "closed"])
@pytest.mark.parametrize("token", [None, OTHER], ids=["nobody", "stranger"])
def test_body_that_is_refused_is_no_request(site: ServerProcess, path: str, token: str | None, size: int) -> None:
    """A proxy that sends the requests of many clients on one connection would take the answer for that of another."""
    with Connection(site.port) as connection:
        inner = connection.head_of("DELETE", path, TUS | bearer(OWNER)) + b" " * size
        headers = TUS | bearer(token) | patch_headers(0) | {"Content-Length": str(len(inner))}
        with unchanged(site):
            connection.send(connection.head_of("PATCH", path, headers) + inner)
            refused = connection.answer()
            assert refused.status == (401 if token is None else 404)
            if refused.headers.get("connection") == "close":
                assert connection.is_closed()
            else:
                connection.send_head("HEAD", path, TUS | bearer(token))
                assert connection.answer(method="HEAD").status == (401 if token is None else 404)
    assert ask(site, OWNER, "HEAD", path).offset == len(CONTENT)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Authorization: Bearer %b\r\nauthorization: Bearer %b\r\n", 400),
        (b"Authorization : Bearer %b\r\nX: %b\r\n", 400),
        (b"Authorization:\r\n Bearer %b\r\nX: %b\r\n", 400),
        (b"X: a\r\n Authorization: Bearer %b\r\nX: %b\r\n", 400),
        (b"X: a\nAuthorization: Basic %b\r\nX: %b\r\n", 400),
        (b"X: a\rAuthorization: Bearer %b\r\nX: %b\r\n", 400),
        (b"Authorization: Bearer %b\0\r\nX: %b\r\n", 400),
        (b"Authorization: Bearer %b, Bearer %b\r\n", 401),
        (b"Authorization: Bearer\t%b\r\nX: %b\r\n", 401),
        (b"Authorization_: Bearer %b\r\nX: %b\r\n", 401),
        (b"HTTP_AUTHORIZATION: Bearer %b\r\nX: %b\r\n", 401),
    ],
)
def test_field_that_is_not_clear_is_no_token(site: ServerProcess, path: str, fields: bytes, status: int) -> None:
    token = OWNER.encode()
    with Connection(site.port) as connection:
        start = f"HEAD {path} HTTP/1.1\r\nHost: {connection.authority}\r\nTus-Resumable: 1.0.0\r\n".encode()
        connection.send(start + fields % (token, token) + b"\r\n")
        answer = connection.answer(method="HEAD")
    assert answer.status == status, answer


# Pages.


def test_page_of_another_origin_reads_no_answer(site: ServerProcess, path: str) -> None:
    for origin in ("https://evil.example", "null", f"{PAGE}.evil.example", f"{PAGE}:444", PAGE.upper()):
        for method in ("HEAD", "GET", "OPTIONS"):
            answer = ask(site, OWNER, method, path, {"Origin": origin})
            assert "Access-Control-Allow-Origin" not in answer, (origin, method)
            refused = ask(site, None, method, path, {"Origin": origin, "Cookie": f"session={OWNER}"})
            assert method == "OPTIONS" or refused.status == 401
        asked = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
        assert ask(site, None, "OPTIONS", path, asked).headers.get("access-control-allow-origin") is None
