from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.wire.messages import OFFSET_STREAM, TUS, Answer, Body, Headers, Value, encoded, patch_headers, shown
from tests.support.wire.promised import ask, create

UNKNOWN = "/0123456789abcdef0123456789abcdef"
PAGE = "https://app.example.org"
EXTENSIONS = {
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "termination",
    "concatenation",
}
METHODS = {"POST", "HEAD", "PATCH", "DELETE", "GET", "OPTIONS"}
# Headers that a client in a browser sends, and may send only if the server says so.
REQUEST_HEADERS = {
    "authorization",
    "content-type",
    "tus-resumable",
    "upload-checksum",
    "upload-concat",
    "upload-defer-length",
    "upload-length",
    "upload-metadata",
    "upload-offset",
    "x-http-method-override",
    "x-request-id",
    "x-requested-with",
}
ANSWER_HEADERS = {
    "location",
    "tus-checksum-algorithm",
    "tus-extension",
    "tus-max-size",
    "tus-resumable",
    "tus-version",
    "upload-concat",
    "upload-defer-length",
    "upload-expires",
    "upload-length",
    "upload-metadata",
    "upload-offset",
}


@dataclass(frozen=True)
class Case:
    """A request and the status of its answer; the URL is the name of one of `places`."""

    status: int
    method: str
    place: str
    headers: Headers
    body: Body = None

    def ask(self, places: dict[str, str], headers: Headers | None = None) -> Answer:
        answer = ask(self.method, places[self.place], dict(self.headers) | dict(headers or {}), self.body)
        assert answer.status == self.status, answer
        return answer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("options"), max_size=1000) as server:
        yield server


@pytest.fixture
def places(site: ServerProcess) -> dict[str, str]:
    part = create(site.url, 5, {"Upload-Concat": "partial"}, b"hello")
    final = ask("POST", site.url, TUS | {"Upload-Concat": f"final;{part}"}, b"")
    return {
        "creation": site.url,
        "upload": create(site.url, 10, body=b"hello"),
        "deferred": create(site.url, None, body=b"hello"),
        "finished": create(site.url, 5, body=b"hello"),
        "final": final["Location"],
        "unknown": site.url + UNKNOWN,
        "elsewhere": site.origin + "/elsewhere",
        "too long": site.url + "/" + "a" * 129,
    }


CASES = [
    Case(200, "OPTIONS", "creation", {}),
    Case(200, "OPTIONS", "upload", {}),
    Case(200, "HEAD", "upload", TUS),
    Case(200, "HEAD", "final", TUS),
    Case(200, "GET", "finished", {}),
    Case(206, "GET", "finished", {"Range": "bytes=0-1"}),
    Case(304, "GET", "finished", {"If-None-Match": "*"}),
    Case(201, "POST", "creation", TUS | {"Upload-Length": "5"}, b""),
    Case(201, "POST", "creation", TUS | {"Upload-Length": "5", "Content-Type": OFFSET_STREAM}, b"hello"),
    Case(204, "PATCH", "upload", patch_headers(5), b"world"),
    Case(204, "DELETE", "upload", TUS),
    Case(400, "POST", "creation", TUS, b""),
    Case(400, "POST", "creation", TUS | {"Upload-Length": "five"}, b""),
    Case(400, "POST", "creation", TUS | {"Upload-Length": "5", "Upload-Metadata": "a,a"}, b""),
    Case(400, "POST", "creation", TUS | {"Upload-Length": "5", "Upload-Concat": "whole"}, b""),
    Case(400, "PATCH", "upload", TUS | {"Content-Type": OFFSET_STREAM}, b"world"),
    Case(400, "PATCH", "upload", patch_headers(5) | {"Upload-Checksum": "none eA=="}, b"world"),
    Case(400, "PATCH", "deferred", patch_headers(5) | {"Upload-Length": "4"}),
    Case(403, "PATCH", "final", patch_headers(5), b""),
    Case(404, "HEAD", "unknown", TUS),
    Case(404, "PATCH", "unknown", patch_headers(5), b"world"),
    Case(404, "DELETE", "unknown", TUS),
    Case(404, "GET", "unknown", {}),
    Case(404, "GET", "upload", {}),
    Case(404, "HEAD", "too long", TUS),
    Case(404, "GET", "elsewhere", {}),
    Case(404, "POST", "elsewhere", TUS | {"Upload-Length": "5"}, b""),
    Case(405, "PUT", "creation", TUS, b""),
    Case(405, "PUT", "upload", TUS, b""),
    Case(405, "POST", "upload", TUS, b""),
    Case(409, "PATCH", "upload", patch_headers(4), b"world"),
    Case(412, "POST", "creation", {"Upload-Length": "5"}, b""),
    Case(412, "HEAD", "upload", {}),
    Case(412, "PATCH", "upload", patch_headers(5) | {"Tus-Resumable": "0.2.2"}, b"world"),
    Case(412, "DELETE", "upload", {}),
    Case(413, "POST", "creation", TUS | {"Upload-Length": "1001"}, b""),
    Case(413, "PATCH", "upload", patch_headers(5), b"world!"),
    Case(413, "PATCH", "upload", patch_headers(5), [b"world!"]),
    Case(413, "PATCH", "deferred", patch_headers(5) | {"Upload-Length": "1001"}),
    Case(415, "POST", "creation", TUS | {"Upload-Length": "5", "Content-Type": "text/plain"}, b"hello"),
    Case(415, "PATCH", "upload", TUS | {"Upload-Offset": "5"}, b"world"),
    Case(416, "GET", "finished", {"Range": "bytes=5-"}),
    Case(460, "PATCH", "upload", patch_headers(5) | {"Upload-Checksum": "sha1 " + encoded(bytes(20))}, b"world"),
]
ERRORS = [case for case in CASES if case.status >= 400]


def name_of(case: object) -> str:
    assert isinstance(case, Case)
    return f"{case.status} {case.method} {case.place} {shown(sorted(set(case.headers) - set(TUS)))}"


# Every answer


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_answer_has_the_headers_of_the_protocol(case: Case, places: dict[str, str]) -> None:
    answer = case.ask(places, {"Origin": PAGE})
    assert answer.all("Tus-Resumable") == ["1.0.0"]
    assert answer.all("X-Content-Type-Options") == ["nosniff"]
    assert answer.all("Access-Control-Allow-Origin") in (["*"], [PAGE])
    exposed = {name.lower() for name in answer.listed("Access-Control-Expose-Headers")}
    assert exposed >= ANSWER_HEADERS
    assert ("Upload-Offset" in answer) == (
        case.status in (201, 409) or (case.status, case.method) in ((200, "HEAD"), (204, "PATCH"))
    )
    if case.status == 412:
        assert "1.0.0" in answer.listed("Tus-Version")


@pytest.mark.parametrize("case", ERRORS, ids=name_of)
def test_an_error_is_a_line_of_text(case: Case, places: dict[str, str]) -> None:
    answer = case.ask(places)
    if case.method == "HEAD":
        assert answer.body == b""
        return
    assert answer["Content-Type"].replace(" ", "").lower() == "text/plain;charset=utf-8"
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*: [^\n]{3,300}\n?", answer.text)
    assert answer["Content-Length"] == str(len(answer.body))


# OPTIONS


@pytest.mark.parametrize("place", ["creation", "upload", "finished", "unknown"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_options_tells_what_the_server_can(places: dict[str, str], place: str, slash: str) -> None:
    answer = ask("OPTIONS", places[place] + (slash if place == "creation" else ""))
    assert answer.status == 200
    assert answer.listed("Tus-Version")[0] == "1.0.0"
    assert answer["Tus-Resumable"] == "1.0.0"
    assert set(answer.listed("Tus-Extension")) >= EXTENSIONS
    assert len(set(answer.listed("Tus-Extension"))) == len(answer.listed("Tus-Extension"))
    assert "concatenation-unfinished" not in answer.listed("Tus-Extension")
    assert "sha1" in answer.listed("Tus-Checksum-Algorithm")
    assert answer["Tus-Max-Size"] == "1000"
    assert "Upload-Offset" not in answer


@pytest.mark.parametrize("version", ["", "0.2.2", "2.0.0", "nonsense", ("1.0.0", "2.0.0"), b"\xff"], ids=shown)
def test_options_ignores_the_version_of_the_client(site: ServerProcess, version: Value) -> None:
    answer = ask("OPTIONS", site.url, {"Tus-Resumable": version})
    assert answer.status == 200
    assert "Tus-Version" in answer


def test_without_a_maximum_there_is_no_tus_max_size(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("unlimited")) as server:
        assert "Tus-Max-Size" not in ask("OPTIONS", server.url)


@pytest.mark.parametrize(
    ("option", "value", "extensions"),
    [
        ("disable_checksum", True, {"checksum", "checksum-trailer"}),
        ("disable_termination", True, {"termination"}),
        ("disable_concatenation", True, {"concatenation", "concatenation-unfinished"}),
        ("disable_creation_with_upload", True, {"creation-with-upload"}),
        ("disable_creation_defer_length", True, {"creation-defer-length"}),
        ("disable_download", True, set()),
        ("expires_after", 0, {"expiration"}),
    ],
)
def test_a_switched_off_extension_is_not_announced(
    site: ServerProcess, tmp_path_factory: pytest.TempPathFactory, option: str, value: object, extensions: set[str]
) -> None:
    everything = set(ask("OPTIONS", site.url).listed("Tus-Extension"))
    with serving(tmp_path_factory.mktemp("off"), **{option: value}) as server:
        answer = ask("OPTIONS", server.url)
        assert set(answer.listed("Tus-Extension")) == everything - extensions
        assert ("Tus-Checksum-Algorithm" in answer) == (option != "disable_checksum")


# CORS


@pytest.mark.parametrize("place", ["creation", "upload", "unknown"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE", "GET"])
def test_a_preflight_allows_every_method_and_header(places: dict[str, str], place: str, method: str) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": method}
    answer = ask(
        "OPTIONS", places[place], asked | {"Access-Control-Request-Headers": ",".join(sorted(REQUEST_HEADERS))}
    )
    assert answer.status == 200
    assert answer["Access-Control-Allow-Origin"] in ("*", PAGE)
    assert {name.upper() for name in answer.listed("Access-Control-Allow-Methods")} >= METHODS - {"OPTIONS"}
    assert {name.lower() for name in answer.listed("Access-Control-Allow-Headers")} >= REQUEST_HEADERS
    assert int(answer["Access-Control-Max-Age"]) >= 600


def test_an_answer_for_no_browser_needs_no_cors(site: ServerProcess) -> None:
    answer = ask("POST", site.url, TUS | {"Upload-Length": "5"})
    assert answer.status == 201
    assert "Access-Control-Allow-Credentials" not in answer


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = {
        "cors_origins": "https://app.example.org,https://*.example.com,http://localhost:*",
        "cors_credentials": True,
    }
    with serving(tmp_path_factory.mktemp("guarded"), **options) as server:
        yield server


def vary(answer: Answer) -> set[str]:
    return {name.strip().lower() for value in answer.all("Vary") for name in value.split(",")}


@pytest.mark.parametrize(
    "origin", [PAGE, "https://a.example.com", "https://app-1.example.com", "http://localhost:3000"]
)
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "HEAD"])
def test_a_listed_origin_is_allowed(guarded: ServerProcess, method: str, origin: str) -> None:
    url = guarded.url if method != "HEAD" else guarded.url + UNKNOWN
    answer = ask(method, url, TUS | {"Origin": origin, "Upload-Length": "5", "Access-Control-Request-Method": "POST"})
    assert answer.status in (200, 201, 404)
    assert answer["Access-Control-Allow-Origin"] == origin
    assert answer["Access-Control-Allow-Credentials"] == "true"
    assert "origin" in vary(answer)
    # With credentials a browser takes a star literally.
    assert not [value for name, value in answer.fields if name.startswith("access-control-") and "*" in value]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://app.example.org.evil.example",
        "https://xapp.example.org",
        "https://app_example.org",
        "https://appXexample.org",
        "https://example.com",
        "https://a.example.com.evil.example",
        "https://evil.example/.example.com",
        "https://evil.example#.example.com",
        "https://evil.example?.example.com",
        "https://evil.example@a.example.com",
        "https://a b.example.com",
        "http://localhost.evil.example:3000",
        "http://localhost",
        "https://localhost:3000",
        "xhttps://app.example.org",
        "null",
        "*",
        "",
    ],
    ids=shown,
)
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "HEAD"])
def test_another_origin_is_not_allowed(guarded: ServerProcess, method: str, origin: str) -> None:
    url = guarded.url if method != "HEAD" else guarded.url + UNKNOWN
    headers = TUS | {"Origin": origin, "Upload-Length": "5", "Access-Control-Request-Method": "POST"}
    answer = ask(method, url, headers)
    assert "Access-Control-Allow-Origin" not in answer
    assert "origin" in vary(answer)


def test_without_credentials_there_is_no_allow_credentials(site: ServerProcess) -> None:
    assert "Access-Control-Allow-Credentials" not in ask("OPTIONS", site.url, {"Origin": PAGE})
