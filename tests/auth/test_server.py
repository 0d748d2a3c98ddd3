"""Authentication of a running server: its settings, keys that change, cookies, downloads, logs and hooks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.auth.issuer import KeyServer, SigningKey, claims_of, key_set, public_pem
from tests.auth.site import ADMIN, OTHER, OWNER, READER, ask, create, jwt_of, patch, token_files
from tests.support.event_receiver import EventReceiver
from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import HookEndpoint, told
from tests.support.stored import unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Headers, creation_headers, encoded, metadata, patch_headers
from tusd_py.cli import main

PAGE = "https://page.example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    options = {"auth_cookie": "session", "cors_origins": f"{PAGE},https://*.example.org", "public_downloads": True}
    with serving(folder, **token_files(folder), **options, log_format="json") as server:
        yield server


@pytest.fixture(scope="module")
def private_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("private_site")
    options = {"auth_cookie": "session", "cors_origins": PAGE, "cors_credentials": True}
    with serving(folder, **token_files(folder), **options) as server:
        yield server


# Cookies.


def cookie(token: str, **headers: str) -> dict[str, str]:
    return {
        "Cookie": f"a=b; session={token}; c=d",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }


@pytest.mark.parametrize("origin", [PAGE, "https://a.example.org"])
def test_page_of_an_allowed_origin_uploads_with_a_cookie(site: ServerProcess, origin: str) -> None:
    headers = cookie(OWNER, Origin=origin)
    created = ask(site, None, "POST", "/files", headers | creation_headers(4))
    assert created.status == 201
    path = created["Location"].removeprefix(site.origin)
    assert ask(site, None, "PATCH", path, headers | patch_headers(0), b"four").status == 204
    assert ask(site, None, "HEAD", path, headers).offset == 4
    assert ask(site, None, "HEAD", path, cookie(OWNER)).offset == 4
    assert ask(site, None, "HEAD", path, cookie(jwt_of("ann"))).offset == 4
    assert ask(site, None, "HEAD", path, cookie(OTHER)).status == 404
    assert ask(site, None, "DELETE", path, headers).status == 204


@pytest.mark.parametrize(
    "origin", [None, "null", "", "https://evil.example", "http://page.example", f"{PAGE}.evil.org"]
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "override HEAD", "override GET"])
def test_page_of_another_origin_cannot_act_with_the_cookie(
    site: ServerProcess, origin: str | None, method: str
) -> None:
    path = "/files" if method == "POST" else create(site, OWNER, 8)
    headers = cookie(OWNER) | ({} if origin is None else {"Origin": origin})
    override, _, overriding = method.partition(" ")
    if overriding:
        headers["X-HTTP-Method-Override"] = overriding
    with unchanged(site):
        verb = "POST" if overriding else override
        answer = ask(site, None, verb, path, headers | creation_headers(4) | patch_headers(0), b"four")
        assert answer.status == 401, answer


EMBEDDED: dict[str, str] = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        (EMBEDDED, 401),
        (EMBEDDED | {"Sec-Fetch-Dest": "video"}, 401),
        (EMBEDDED | {"Sec-Fetch-Site": "same-site"}, 200),
        (EMBEDDED | {"Sec-Fetch-Site": "same-origin"}, 200),
        (EMBEDDED | {"Origin": PAGE, "Sec-Fetch-Mode": "cors"}, 200),  # crossorigin="use-credentials"
        (EMBEDDED | {"Origin": "https://evil.example", "Sec-Fetch-Mode": "cors"}, 401),
        (LINK, 200),
        (LINK | {"Sec-Fetch-Site": "none"}, 200),
        (LINK | {"Sec-Fetch-Dest": "iframe"}, 401),
        (LINK | {"Sec-Fetch-Dest": "object"}, 401),
    ],
)
def test_page_of_another_site_cannot_embed_what_a_cookie_shows(
    private_site: ServerProcess, fields: dict[str, str], status: int
) -> None:
    path = create(private_site, OWNER, 4, b"four")
    for method in ("GET", "HEAD"):
        assert ask(private_site, None, method, path, cookie(OWNER) | fields).status == status
        assert ask(private_site, OWNER, method, path, fields).status == 200


def test_cookie_in_several_fields_is_found(site: ServerProcess) -> None:
    """As HTTP/2 may divide them."""
    path = create(site, OWNER, 8)
    for fields in (("a=b", f"session={OWNER}", "c=d"), (f"session={OWNER}", "c=d"), ("a=b", f"session={OWNER}")):
        headers: Headers = {**TUS, "Cookie": fields}
        with Connection(site.port) as connection:
            connection.send_request("HEAD", path, headers)
            assert connection.answer(method="HEAD").status == 200


@pytest.mark.parametrize("field", ["theme=a,session={1}; session={0}", "session={0}; theme=a,session={1}"])
def test_value_of_another_cookie_is_no_cookie(site: ServerProcess, field: str) -> None:
    path = create(site, OWNER, 8)
    assert ask(site, None, "HEAD", path, {"Cookie": field.format(OWNER, OTHER)}).status == 200


def test_cookie_decides_beside_the_credentials_of_a_proxy(site: ServerProcess) -> None:
    path = create(site, OWNER, 8)
    assert ask(site, None, "HEAD", path, cookie(OWNER, Authorization="Basic dTpw")).status == 200


def test_authorization_decides_beside_a_cookie(site: ServerProcess) -> None:
    path = create(site, OWNER, 8)
    assert ask(site, OTHER, "HEAD", path, cookie(OWNER)).status == 404
    assert ask(site, "wrong", "HEAD", path, cookie(OWNER)).status == 401
    assert ask(site, OWNER, "DELETE", path, cookie("wrong")).status == 204


@pytest.mark.parametrize(
    "field", ["session={0}; session={1}", "session=", "sessions={0}", "x=session={0}", "a=b,session={0}"]
)
def test_cookie_that_is_not_clear_is_no_token(site: ServerProcess, field: str) -> None:
    path = create(site, OWNER, 8)
    assert ask(site, None, "HEAD", path, {"Cookie": field.format(OWNER, OTHER)}).status == 401


# Public downloads.


def test_finished_upload_is_public_and_nothing_else(site: ServerProcess) -> None:
    path = create(site, OWNER, 4, b"four")
    for token in (None, "wrong", OTHER, READER):
        assert ask(site, token, "GET", path).body == b"four"
    assert ask(site, None, "GET", path, {"Range": "bytes=1-2"}).body == b"ou"
    for method in ("HEAD", "PATCH", "DELETE"):
        assert ask(site, None, method, path).status == 401
    part = create(site, OWNER, 4, b"four", {"Upload-Concat": "partial"})
    assert ask(site, None, "GET", part).status == 401
    assert ask(site, OTHER, "GET", part).status == 404
    assert ask(site, OWNER, "GET", part).body == b"four"
    unfinished = create(site, OWNER, 8, b"four")
    assert ask(site, None, "GET", unfinished).status == 401
    assert ask(site, OTHER, "GET", unfinished).status == 404
    assert ask(site, None, "GET", "/files/unknown").status == 401


def test_line_of_a_public_download_names_its_sender_if_that_is_known(site: ServerProcess) -> None:
    path = create(site, OWNER, 4, b"four")
    for token in (OWNER, OTHER, "wrong", None):
        assert ask(site, token, "GET", path).status == 200

    def lines() -> list[dict[str, object]]:
        entries = [json.loads(line) for line in site.log if line.startswith("{")]
        return [entry for entry in entries if entry.get("path") == path]

    wait_until(lambda: len(lines()) >= 4)
    assert [(line.get("principal"), line.get("refusal")) for line in lines()] == [
        ("ann", None),
        ("bob", None),
        (None, None),
        (None, None),
    ]


# The log.


def test_line_of_a_request_names_principal_and_reason_and_no_token(site: ServerProcess) -> None:
    path = create(site, OWNER, 8)
    secrets = ("a-wrong-token", jwt_of("ann", exp=1), jwt_of("bob"))
    for token in secrets:
        ask(site, token, "HEAD", f"{path}?access_token={token}", cookie(token))

    def lines() -> list[dict[str, object]]:
        entries = [json.loads(line) for line in site.log if line.startswith("{")]
        return [entry for entry in entries if entry.get("path") == path]

    wait_until(lambda: len(lines()) >= len(secrets))
    refused = [(line.get("principal"), line["refusal"], line["client"], line["status"]) for line in lines()]
    assert refused == [
        (None, "this is no JSON Web Token", "127.0.0.1", 401),
        (None, "the token has expired", "127.0.0.1", 423),
        ("bob", "another owner", "127.0.0.1", 404),
    ]
    log = "".join(site.log)
    assert not [token for token in (*secrets, OWNER, OTHER, ADMIN) if token in log]


# Keys.


def test_changed_token_file_counts_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, **token_files(tmp_path)) as server:
        path = create(server, OWNER, 8)
        kept = (tmp_path / "tokens").read_text()
        digest = hashlib.sha256(b"new").hexdigest()
        (tmp_path / "tokens").write_text(f"ann:{digest}\n")
        wait_until(lambda: ask(server, OWNER, "HEAD", path).status == 401)
        assert ask(server, "new", "HEAD", path).status == 200
        (tmp_path / "tokens").write_text("nonsense\n")
        wait_until(lambda: "what was read before stays in effect" in "".join(server.log) or bool(head(server, path)))
        assert ask(server, "new", "HEAD", path).status == 200
        (tmp_path / "tokens").write_text(kept)
        wait_until(lambda: ask(server, OWNER, "HEAD", path).status == 200)
        (tmp_path / "tokens").write_text("")
        wait_until(lambda: ask(server, OWNER, "HEAD", path).status == 401)


def head(server: ServerProcess, path: str) -> int:
    """Ask with a token, which makes the server look at the file; return 0."""
    ask(server, "new", "HEAD", path)
    return 0


def test_rotated_keys_refuse_no_request_and_outlive_their_endpoint(tmp_path: Path) -> None:
    first, second = SigningKey(kid="1"), SigningKey("RS256", kid="2")
    with KeyServer(first) as keys:
        keys.status = 500
        with serving(tmp_path, jwks_url=keys.url, jwt_issuer="me", jwt_audience="you") as server:
            token = first.sign(claims_of(iss="me", aud=["you", "others"]))
            refused = ask(server, token, "POST", "/files", {"Upload-Length": "4"})
            assert (refused.status, refused["Retry-After"]) == (503, "1")
            assert refused.text.startswith("ERR_AUTHENTICATION_UNAVAILABLE: ")
            assert ask(server, token, "HEAD", "/files/unknown").status == 423
            assert ask(server, None, "POST", "/files").status == 401
            assert ask(server, None, "GET", "/readyz").status == 200
            keys.status = 200
            wait_until(lambda: ask(server, token, "HEAD", "/files/unknown").status == 404)
            path = create(server, token, 8, b"four")
            keys.body = key_set(second)
            rotated = second.sign(claims_of(iss="me", aud="you"))
            assert ask(server, rotated, "HEAD", path).offset == 4
            assert ask(server, token, "HEAD", path).status == 401
            keys.status = 404
            assert patch(server, rotated, path, 4, b"more").status == 204
            assert ask(server, SigningKey(kid="3").sign(claims_of()), "HEAD", path).status == 423
            for claims in (claims_of(aud="you"), claims_of(iss="me"), claims_of(iss="me", aud="other")):
                assert ask(server, second.sign(claims), "HEAD", path).status == 401


def test_silent_key_endpoint_makes_head_wait_no_longer_than_promised(tmp_path: Path) -> None:
    key = SigningKey(kid="1")
    with KeyServer(key) as keys, serving(tmp_path, jwks_url=keys.url) as server:
        keys.hold.clear()
        assert ask(server, key.sign(claims_of()), "HEAD", "/files/unknown").status == 423
        keys.hold.set()
        wait_until(lambda: ask(server, key.sign(claims_of()), "HEAD", "/files/unknown").status == 404)


def test_refreshed_token_goes_on_where_the_expired_one_was_refused(tmp_path: Path) -> None:
    with serving(tmp_path, **token_files(tmp_path)) as server:
        path = create(server, jwt_of("ann"), 8, b"four")
        refused = patch(server, jwt_of("ann", exp=time.time() - 60), path, 4, b"more")
        assert (refused.status, refused["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')
        renewed = jwt_of("ann")
        offset = ask(server, renewed, "HEAD", path).offset
        assert offset == 4
        assert patch(server, renewed, path, offset, b"more").status == 204
        assert ask(server, renewed, "GET", path).body == b"fourmore"


# Hooks and events.


def test_hooks_and_events_know_the_owner_and_events_no_token(tmp_path: Path) -> None:
    with HookEndpoint() as endpoint, EventReceiver(tmp_path) as receiver:
        options = {"hooks_http": f"{endpoint.url}#pre-create+pre-terminate", "events_to": receiver.url}
        with serving(tmp_path, **token_files(tmp_path), **options) as server:
            path = create(server, OWNER, 4, b"four", {"X-Amzn-Oidc-Data": OWNER})
            assert ask(server, ADMIN, "DELETE", path).status == 204
            receiver.wait_for(3)
            assert ask(server, None, "POST", "/files", {"Upload-Length": "4"}).status == 401
        assert {event["data"]["owner"] for event in receiver.received()} == {"ann"}
        assert {event["data"]["request"]["principal"] for event in receiver.received()} == {"ann", "root"}
        (terminating,) = endpoint.of_type("pre-terminate")
        assert terminating.payload["Event"]["Upload"]["Owner"] == "ann"
        assert terminating.payload["Event"]["HTTPRequest"]["Principal"] == "root"
        assert OWNER not in receiver.log.read_text()
        assert len(endpoint.of_type("pre-create")) == 1


@pytest.mark.parametrize("body", [b"four", bytes(200 << 10)], ids=["small", "large"])
@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {"Repr-Digest": f"sha-256=:{encoded(bytes(32))}:"}, 460),
        ({"allowed_types": "image/*"}, {"Upload-Metadata": metadata(filetype="image/png")}, 415),
    ],
    ids=["digest", "type"],
)
def test_owner_hears_why_a_check_has_removed_the_upload(
    tmp_path: Path, settings: dict[str, str], headers: dict[str, str], status: int, body: bytes
) -> None:
    with serving(tmp_path, **token_files(tmp_path), **settings) as server:
        for token in (OWNER, jwt_of("ann"), jwt_of("ann")):  # the second time the token is known
            path = create(server, token, len(body), headers=headers)
            assert patch(server, OTHER, path, 0, body).status == 404
            assert patch(server, token, path, 0, body).status == status
            assert ask(server, token, "HEAD", path).status == 404


@pytest.mark.parametrize("body", [b"four", bytes(200 << 10)], ids=["small", "large"])
def test_owner_hears_why_a_hook_has_removed_the_upload(tmp_path: Path, body: bytes) -> None:
    with HookEndpoint() as endpoint, contextlib.ExitStack() as stack:
        options = token_files(tmp_path) | {"hooks_http": f"{endpoint.url}#pre-finish"}
        server = stack.enter_context(serving(tmp_path, **options))
        endpoint.reply = told(RejectUpload=True, HTTPResponse={"StatusCode": 422, "Body": "a virus"})
        for token in (OWNER, jwt_of("ann"), jwt_of("ann")):
            path = create(server, token, len(body))
            refused = patch(server, token, path, 0, body)
            assert (refused.status, refused.body) == (422, b"a virus")
            assert ask(server, token, "HEAD", path).status == 404


# Settings.


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--jwt-issuer", "me"], "--jwt-issuer needs one of --jwt-secret-file, --jwt-key-file, --jwks-url"),
        (["--jwt-secret-file", "a", "--jwks-url", "https://a/b"], "give one of them"),
        (["--jwks-url", "http://issuer.example/keys"], "https://"),
        (["--jwks-url", "ftp://issuer.example/keys"], "a URL such as"),
        (["--jwks-url", "issuer"], "a URL such as"),
        (["--auth-cookie", "a", "--cors-origins", "https://a.example"], "--auth-cookie needs one of"),
        (["--auth-cookie", "a b"], "the name of a cookie"),
        (["--auth-cookie", "a", "--api-tokens-file", "t"], "needs --cors-origins"),
        (["--auth-cookie", "a", "--api-tokens-file", "t", "--cors-origins", "https://*"], "needs --cors-origins"),
        (["--auth-cookie", "a", "--api-tokens-file", "t", "--cors-origins", ""], "needs --cors-origins"),
        (["--jwt-secret-file", "missing"], "missing: No such file or directory"),
        (["--jwt-key-file", "empty"], "empty: there is no public key in it"),
        (["--jwt-secret-file", "empty"], "empty: the file is empty"),
        (["--api-tokens-file", "empty"], "empty: there is no token in it"),
        (["--jwt-owner-claim", "", "--jwt-secret-file", "secret"], "the name of a claim"),
        (["--jwt-secret-file", "secret"], "secret: a secret needs 14 bytes"),
        (["--jwt-key-file", "odd"], "odd: a public key is malformed"),
        (["--api-tokens-file", "unset"], "unset: line 1: this is the SHA-256 of no token"),
        (["--auth-cookie", "a", "--api-tokens-file", "t", "--cors-origins", "https://*.com"], "needs --cors-origins"),
    ],
)
def test_wrong_setting_ends_the_start_with_a_sentence(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("secret").write_text("a secret")
    Path("odd").write_bytes(public_pem(ec.generate_private_key(ec.SECP224R1())))
    Path("unset").write_text(f"ci:{hashlib.sha256(b'').hexdigest()}")
    assert main(["serve", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_command_prints_a_token_and_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "new", "ci", "--scope", "uploads:write"]) == 0
    token, line = capsys.readouterr().out.splitlines()
    assert line == f"ci:{hashlib.sha256(token.encode()).hexdigest()}:uploads:write"
    (tmp_path / "tokens").write_text(line + "\n")
    with serving(tmp_path, api_tokens_file=tmp_path / "tokens") as server:
        assert ask(server, token, "HEAD", create(server, token, 5)).status == 200


@pytest.mark.parametrize("arguments", [["a:b"], [""], ["ci", "--scope", "everything"]])
def test_command_refuses_what_the_file_would_not_take(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "new", *arguments]) == 2
    assert "token new: " in capsys.readouterr().err
