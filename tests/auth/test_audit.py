"""The log as an audit: one structured line for every decision, with its reason and its sender, and never a secret."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.auth.signing import FIRST, FOREIGN, capability, creation, link, signing_files
from tests.auth.site import ADMIN, OTHER, OWNER, READER, SECRET, WRITER, ask, jwt_of
from tests.support.clamd import MALWARE, Clamd
from tests.support.harness import ServerProcess, serving
from tests.support.timing import wait_until
from tests.support.wire.messages import Answer, creation_headers, metadata, patch_headers, path_of
from tusd_py.auth.signing_keys import parse_signing_keys

STATIC = (OWNER, OTHER, ADMIN, READER, WRITER, SECRET.decode(), FIRST)
MAX_SIZE, QUOTA = 5000, 20_000
FOREIGN_KEYS = parse_signing_keys(FOREIGN.encode())
ID = "audited-request-"


@pytest.fixture(scope="module")
def clamd() -> Iterator[Clamd]:
    with Clamd() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, clamd: Clamd) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    options: dict[str, Any] = {
        "log_format": "json",
        "log_level": "debug",
        "auth_cookie": "session",
        "cors_origins": "https://app.example",
        "capability_urls": True,
        "max_size": MAX_SIZE,
        "quota_bytes": QUOTA,
        "allowed_types": "image/*,text/plain",
        "clamd": clamd.address,
        "sweep_interval": "0s",
    }
    with serving(folder, **signing_files(folder, **options)) as server:
        yield server


class Audit:
    """Requests to a server, each with an id, and the lines that the log has of them."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.secrets = set(STATIC)

    def ask(
        self,
        token: str | None,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[Answer, dict[str, Any]]:
        """Make a request, with the secrets of its URL in `Referer` too; return the answer and its line."""
        self.note(token or "", url)
        request_id = ID + secrets.token_hex(8)
        fields = {"X-Request-Id": request_id, "Referer": f"https://page.example/{url}", **(headers or {})}
        answer = ask(self.server, token, method, url, fields, body)
        self.note("", answer.get("Location") or "")

        def lines() -> list[dict[str, Any]]:
            return [line for line in entries(self.server) if line.get("request_id") == request_id]

        wait_until(lambda: bool(lines()), "the request is logged")
        assert len(lines()) == 1
        return answer, lines()[0]

    def note(self, token: str, url: str) -> None:
        """Remember what must be in no line."""
        signatures = [pair.partition("=")[2] for pair in url.partition("?")[2].split("&")]
        self.secrets |= {secret for secret in (token, *signatures) if len(secret) > 8}


def entries(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in list(server.log) if line.startswith("{")]


@pytest.fixture
def audit(site: ServerProcess) -> Iterator[Audit]:
    audit = Audit(site)
    yield audit
    log = "".join(site.log)
    assert [secret for secret in audit.secrets if secret in log] == []


def typed(data: bytes, filetype: str) -> dict[str, str]:
    return creation_headers(len(data), data) | {"Upload-Metadata": metadata(filetype=filetype)}


class Sender(NamedTuple):
    """The sender of a request, and the decision about an upload of ann that the log is to tell."""

    token: str | None
    signed: Callable[[ServerProcess, str], str] | None
    principal: str | None
    refusal: str
    statuses: tuple[int, ...]


EVERYBODY = {
    "none": Sender(None, None, None, "no token", (401,)),
    "wrong": Sender("a-wrong-token", None, None, "this is no JSON Web Token", (401,)),
    "expired": Sender(jwt_of("ann", exp=1), None, None, "the token has expired", (401, 423)),
    "other": Sender(OTHER, None, "bob", "another owner", (404,)),
    "forged": Sender(
        None,
        lambda server, path: capability(server, path, keys=FOREIGN_KEYS),
        None,
        "no token",
        (401,),
    ),
    "late": Sender(None, lambda server, path: capability(server, path, expires_in=-9), None, "no token", (401,)),
}


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "GET", "DELETE"])
def test_line_of_a_refused_request_to_an_upload_tells_who_and_why(audit: Audit, who: str, method: str) -> None:
    sender = EVERYBODY[who]
    made, _ = audit.ask(OWNER, "POST", "/files", creation_headers(8))
    path = path_of(made)
    url = path if sender.signed is None else sender.signed(audit.server, path)
    headers, body = (patch_headers(0), b"four") if method == "PATCH" else ({}, b"")
    cookie = {"Cookie": f"session={jwt_of('bob', exp=2)}"} if who in ("wrong", "other") else {}
    audit.note(cookie.get("Cookie", ""), "")
    answer, line = audit.ask(sender.token, method, url, {**headers, **cookie}, body)
    assert answer.status in sender.statuses
    assert (line["method"], line["path"], line["status"]) == (method, path, answer.status)
    assert (line["client"], line.get("principal")) == ("127.0.0.1", sender.principal)
    assert line["refusal"].endswith(sender.refusal)
    if method != "HEAD":
        assert line["code"] == answer.text.partition(":")[0]


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "GET", "DELETE"])
def test_line_of_a_missing_right_names_the_right(audit: Audit, method: str) -> None:
    made, _ = audit.ask(OWNER, "POST", "/files", creation_headers(4, b"four"), b"four")
    path = path_of(made)
    token = READER if method in ("PATCH", "DELETE") else jwt_of("ann", scope="uploads:delete")
    headers, body = (patch_headers(4), b"more") if method == "PATCH" else ({}, b"")
    answer, line = audit.ask(token, method, path, headers, body)
    assert (answer.status, line["status"], line["principal"]) == (403, 403, "ann")
    assert line["refusal"].startswith("no right to ")


def test_lines_of_what_is_allowed_have_no_reason(audit: Audit) -> None:
    made, line = audit.ask(OWNER, "POST", "/files", creation_headers(8, b"four"), b"four")
    assert (line["status"], line["principal"], line["upload"]) == (201, "ann", path_of(made)[7:])
    path = path_of(made)
    url = made["Location"].removeprefix(audit.server.origin)
    assert url.startswith(f"{path}?k=")
    bearer, by_signature = (OWNER, path), (None, url)
    for (token, place), method, headers, body, status in (
        (bearer, "HEAD", {}, b"", 200),
        (by_signature, "HEAD", {}, b"", 200),
        (by_signature, "PATCH", patch_headers(4), b"four", 204),
        (bearer, "GET", {}, b"", 200),
        ((None, link(path)), "GET", {}, b"", 200),
        (by_signature, "DELETE", {}, b"", 204),
    ):
        answer, line = audit.ask(token, method, place, headers, body)
        assert (answer.status, line["status"], line.get("refusal"), line.get("code")) == (status, status, None, None)
        assert (line["path"], line["client"]) == (path, "127.0.0.1")
        assert line.get("principal") == (None if "d=" in place else "ann")


def test_lines_of_creations_by_signed_urls(audit: Audit) -> None:
    url = creation(owner="ann", max_size=6, types=["image/*"])
    png = b"\x89PNG\r\n\x1a\n"
    for data, filetype, code in (
        (b"seventy", "image/png", "ERR_MAX_SIZE_EXCEEDED"),
        (b"four", "text/plain", "ERR_TYPE_NOT_ALLOWED"),
        (b"four", "image/png", "ERR_TYPE_NOT_ALLOWED"),
    ):
        answer, line = audit.ask(None, "POST", url, typed(data, filetype), data)
        assert (answer.text.partition(":")[0], line["code"], line["principal"]) == (code, code, "ann")
        assert line["refusal"]
    refused, line = audit.ask(None, "POST", url, creation_headers(4) | {"Upload-Concat": "final;/files/a"})
    assert (refused.status, line["code"]) in ((400, "ERR_INVALID_UPLOAD_LENGTH"), (403, "ERR_FORBIDDEN"))
    good = creation(owner="ann", max_size=len(png), types=["image/*"])
    assert audit.ask(None, "POST", good, typed(png, "image/png"), png)[1]["status"] == 201
    answer, line = audit.ask(None, "POST", good, typed(png, "image/png"), png)
    assert (answer.status, line["refusal"]) == (401, "the URL has been used")
    answer, line = audit.ask(None, "POST", creation(keys=FOREIGN_KEYS), creation_headers(4))
    assert (answer.status, line["code"]) == (401, "ERR_UNAUTHORIZED")
    assert line["refusal"]


@pytest.mark.parametrize("at_creation", [True, False])
@pytest.mark.parametrize("guard", ["size", "quota", "type", "content", "malware", "digest"])
def test_line_of_what_a_guard_refuses_tells_why(audit: Audit, guard: str, at_creation: bool) -> None:
    token = jwt_of(f"{guard}{at_creation}")
    data, headers, code, reason = {
        "size": (bytes(MAX_SIZE + 1), {}, "ERR_MAX_SIZE_EXCEEDED", "at most 5000 bytes"),
        "quota": (b"four", {}, "ERR_QUOTA_EXCEEDED", "at most 20000 bytes together"),
        "type": (b"four", {"Upload-Metadata": metadata(filetype="video/mp4")}, "ERR_TYPE_NOT_ALLOWED", "video/mp4"),
        "content": (b"PK\3\4" + bytes(2000), {}, "ERR_TYPE_NOT_ALLOWED", "application/zip"),
        "malware": (b"a" + MALWARE, {}, "ERR_MALWARE_FOUND", "Test.Malware"),
        "digest": (b"four", {"Repr-Digest": f"sha-256=:{'A' * 43}=:"}, "ERR_DIGEST_MISMATCH", "digest"),
    }[guard]
    if guard == "quota":
        for _ in range(QUOTA // MAX_SIZE):
            assert audit.ask(token, "POST", "/files", creation_headers(MAX_SIZE))[0].status == 201
    began = len(entries(audit.server))
    if at_creation or guard in ("size", "quota", "type"):
        answer, line = audit.ask(token, "POST", "/files", creation_headers(len(data), data) | headers, data)
    else:
        made, _ = audit.ask(token, "POST", "/files", creation_headers(len(data)) | headers)
        answer, line = audit.ask(token, "PATCH", path_of(made), patch_headers(0), data)
    principal = f"{guard}{at_creation}"
    assert answer.text.partition(":")[0] == code
    assert (line["status"], line["code"], line["principal"], line["client"]) == (
        answer.status,
        code,
        principal,
        "127.0.0.1",
    )
    assert reason in line["refusal"]
    removed = [entry for entry in entries(audit.server)[began:] if entry["message"] == "refused"]
    if guard in ("content", "malware", "digest"):
        assert [(entry["owner"], entry["code"], entry["principal"], entry["client"]) for entry in removed] == [
            (principal, code, principal, "127.0.0.1")
        ]
        assert reason in removed[0]["reason"]
        assert removed[0]["level"] == ("warning" if guard == "malware" else "info")
    else:
        assert removed == []


def test_line_of_an_upload_that_is_refused_later_names_its_owner(audit: Audit, clamd: Clamd) -> None:
    data = b"a" + MALWARE
    clamd.answer = ""
    answer, line = audit.ask(OTHER, "POST", "/files", creation_headers(len(data), data), data)
    assert (answer.status, line["code"]) == (503, "ERR_SCAN_UNAVAILABLE")
    path = path_of(answer)
    clamd.answer = None

    def refused() -> list[dict[str, Any]]:
        return [line for line in entries(audit.server) if line["message"] == "refused" and line["upload"] in path]

    def is_refused() -> bool:
        audit.ask(OTHER, "HEAD", path)
        return bool(refused())

    wait_until(is_refused, "the upload is scanned")
    assert [(line["owner"], line["code"]) for line in refused()] == [("bob", "ERR_MALWARE_FOUND")]


def test_line_of_a_limited_rate(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), log_format="json", rate_create="1/h") as server:
        audit = Audit(server)
        assert audit.ask(OWNER, "POST", "/files", creation_headers(4))[0].status == 201
        answer, line = audit.ask(OWNER, "POST", "/files", creation_headers(4, b"four"), b"four")
        assert (answer.status, line["status"], line["code"]) == (429, 429, "ERR_RATE_LIMITED")
        assert (line["refusal"], line["principal"], line["client"]) == ("too many creations", "ann", "127.0.0.1")
        log = "".join(server.log)
        assert not [secret for secret in audit.secrets if secret in log]


@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "GET", "DELETE", "OPTIONS", "PUT"])
def test_secrets_in_odd_places_are_in_no_line(audit: Audit, method: str) -> None:
    """Tokens where no token belongs: in the query, in a path below the upload, twice, and with another scheme."""
    made, _ = audit.ask(OWNER, "POST", "/files", creation_headers(8))
    path, odd = path_of(made), f"odd-{time.monotonic_ns()}-secret"
    audit.note(odd, "")
    for url, headers in (
        (f"{path}?access_token={odd}", {}),
        (f"{path}?k={odd}&t={odd}&d={odd}", {}),
        (path, {"Authorization": f"Basic {odd}"}),
        (path, {"Authorization": odd}),
        (path, {"Cookie": f"session={odd}; other={odd}"}),
        (path, {"X-HTTP-Method-Override": "PATCH", "Authorization": f"Bearer {odd}"}),
        (path, {"Upload-Concat": f"final;{path}?k={odd}"}),
    ):
        answer, line = audit.ask(None, method, url, headers)
        assert answer.status != 500
        assert line["path"] == path
