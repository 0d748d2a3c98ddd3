"""Authenticators of applications: the example of docs/security.md, rules of their own, and their failures."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient, WebSocketDenialResponse

from tests.support.harness import ROOT
from tusd_py import (
    Action,
    AuthenticationUnavailable,
    Decision,
    ExpiredCredentials,
    InvalidCredentials,
    InvalidSettings,
    Principal,
    RequestContext,
    TusServer,
    Upload,
    UrlSigner,
    create_app,
)
from tusd_py.http import access, failure_log

MOVIE = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2"
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}


class ByHeader:
    """An authenticator that knows senders by the field X-User, and raises what the test wants."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.asked: list[RequestContext] = []

    async def authenticate(self, context: RequestContext) -> Principal | None:
        self.asked.append(context)
        if self.error is not None:
            raise self.error
        user = context.headers.get("x-user")
        return Principal(user) if user else None


class ByRules(ByHeader):
    """An authenticator with rules of its own: everybody may look, and only bob may remove."""

    def __init__(self, decision: Decision = Decision.FORBID) -> None:
        super().__init__()
        self.decision = decision
        self.questions: list[tuple[str | None, Action, str]] = []

    async def authorize(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
        self.questions.append((context.principal, action, upload.owner if upload else ""))
        if action in (Action.CREATE, Action.INSPECT, Action.APPEND, Action.CONCATENATE):
            return Decision.ALLOW
        return Decision.ALLOW if context.principal == "bob" else self.decision


def as_user(name: str, **headers: str) -> dict[str, str]:
    return {**TUS, "X-User": name, **{key.replace("_", "-"): value for key, value in headers.items()}}


def app_with(authenticator: Any, folder: Path) -> Starlette:
    return create_app(upload_dir=folder / "uploads", authenticator=authenticator)


def test_senders_are_those_of_the_application(tmp_path: Path) -> None:
    authenticator = ByHeader()
    with TestClient(app_with(authenticator, tmp_path)) as client:
        assert client.post("/files", headers={**TUS, "Upload-Length": "4"}).status_code == 401
        created = client.post("/files", headers=as_user("ann", Upload_Length="4"))
        assert created.status_code == 201
        url = created.headers["Location"]
        assert client.patch(url, headers=BYTES | as_user("bob"), content=b"four").status_code == 404
        assert client.patch(url, headers=BYTES | as_user("ann"), content=b"four").status_code == 204
        assert client.get(url, headers=as_user("ann")).content == b"four"
        assert client.get("/healthz").status_code == 200
    assert [context.method for context in authenticator.asked] == ["POST", "POST", "PATCH", "PATCH", "GET"]
    assert all(context.scope["type"] == "http" for context in authenticator.asked)


@pytest.mark.parametrize(("decision", "status"), [(Decision.FORBID, 403), (Decision.HIDE, 404)])
def test_rules_are_those_of_the_application(tmp_path: Path, decision: Decision, status: int) -> None:
    authenticator = ByRules(decision)
    with TestClient(app_with(authenticator, tmp_path)) as client:
        url = client.post("/files", headers=as_user("ann", Upload_Length="0")).headers["Location"]
        assert client.head(url, headers=as_user("eve")).status_code == 200
        assert client.delete(url, headers=as_user("ann")).status_code == status
        assert client.delete(url, headers=as_user("bob")).status_code == 204
    assert authenticator.questions == [
        ("ann", Action.CREATE, ""),
        ("eve", Action.INSPECT, "ann"),
        ("ann", Action.TERMINATE, "ann"),
        ("bob", Action.TERMINATE, "ann"),
    ]


@pytest.mark.parametrize(("user", "status"), [("ann", 403), ("bob", 204)])
@pytest.mark.parametrize("body", [b"", b"four"])
def test_capability_removes_an_upload_only_if_its_creator_may_by_the_rules(
    tmp_path: Path, user: str, status: int, body: bytes
) -> None:
    (tmp_path / "keys").write_text("ab" * 32)
    app = create_app(
        upload_dir=tmp_path / "uploads",
        authenticator=ByRules(),
        signing_key_file=tmp_path / "keys",
        capability_urls=True,
    )
    with TestClient(app) as client:
        headers = as_user(user, Upload_Length="8") | ({"Content-Type": BYTES["Content-Type"]} if body else {})
        url = client.post("/files", headers=headers, content=body).headers["Location"]
        assert client.head(url, headers=TUS).headers["Upload-Offset"] == str(len(body))
        assert client.delete(url, headers=TUS).status_code == status


@pytest.mark.parametrize("failure", [AuthenticationUnavailable(), RuntimeError("a defect")])
def test_rules_that_fail_after_a_creation_give_no_right_to_remove_it(tmp_path: Path, failure: Exception) -> None:
    class Failing(ByRules):
        async def authorize(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
            if action is Action.TERMINATE:
                raise failure
            return await super().authorize(context, action, upload)

    (tmp_path / "keys").write_text("ab" * 32)
    app = create_app(
        upload_dir=tmp_path / "uploads",
        authenticator=Failing(),
        signing_key_file=tmp_path / "keys",
        capability_urls=True,
    )
    with TestClient(app) as client:
        created = client.post("/files", headers=as_user("ann", Upload_Length="4"))
        assert created.status_code == 201
        assert client.delete(created.headers["Location"], headers=TUS).status_code == 403
        assert client.head(created.headers["Location"], headers=TUS).status_code == 200


def test_failing_lookup_lets_nobody_in_by_the_owner_that_a_url_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("ab" * 32)
    tus = TusServer(
        upload_dir=tmp_path / "uploads", authenticator=ByHeader(), signing_key_file=tmp_path / "keys", sweep_interval=0
    )
    url = UrlSigner(tmp_path / "keys", "http://testserver/files").creation(expires="1h", owner="ann")

    async def fail(upload_id: str) -> Upload | None:
        raise ValueError("a defect of a store")

    with TestClient(Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)) as client:
        monkeypatch.setattr(tus.service, "find", fail)
        assert client.post(url, headers=TUS | {"Upload-Length": "4"}).status_code == 500
        monkeypatch.undo()
        assert client.portal is not None
        assert client.portal.call(tus.service.count) == 0


def test_signatures_in_header_fields_are_not_in_the_scope_that_an_application_sees(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ab" * 32)
    authenticator = ByHeader()
    app = create_app(upload_dir=tmp_path / "uploads", authenticator=authenticator, signing_key_file=tmp_path / "keys")
    with TestClient(app) as client:
        referer = "https://page.example/files/a?x=y&k=1.2.3.4.secret"
        client.head("/files/a", headers=as_user("ann", Referer=referer, X_Forwarded_Uri="/a?d=1.2.secret"))
    fields = authenticator.asked[0].scope["headers"]
    assert b"secret" not in b"".join(value for _, value in fields)
    assert (b"referer", b"https://page.example/files/a?x=y") in fields
    assert (b"x-user", b"ann") in fields


@pytest.mark.parametrize(
    ("error", "status", "head"),
    [
        (InvalidCredentials("not known"), 401, 401),
        (ExpiredCredentials("expired"), 401, 423),
        (AuthenticationUnavailable(), 503, 423),
        (RuntimeError("a defect"), 503, 423),
        (KeyError("user"), 503, 423),
    ],
)
def test_nobody_is_let_in_without_an_answer(tmp_path: Path, error: Exception, status: int, head: int) -> None:
    authenticator = ByHeader()
    with TestClient(app_with(authenticator, tmp_path)) as client:
        url = client.post("/files", headers=as_user("ann", Upload_Length="4")).headers["Location"]
        authenticator.error = error
        assert client.post("/files", headers=as_user("ann", Upload_Length="4")).status_code == status
        assert client.patch(url, headers=BYTES | as_user("ann"), content=b"four").status_code == status
        assert client.head(url, headers=as_user("ann")).status_code == head
        authenticator.error = None
        assert client.head(url, headers=as_user("ann")).headers["Upload-Offset"] == "0"


def test_answer_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "TIMEOUT", 0.1)
    monkeypatch.setattr(access, "HEAD_TIMEOUT", 0.1)

    class Silent:
        async def authenticate(self, context: RequestContext) -> Principal | None:
            await asyncio.Event().wait()
            return None

    with TestClient(app_with(Silent(), tmp_path)) as client:
        assert client.post("/files", headers={**TUS, "Upload-Length": "4"}).status_code == 503
        assert client.head("/files/unknown", headers=TUS).status_code == 423


def test_failure_is_logged_once_a_second_without_what_may_be_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class ByToken:
        async def authenticate(self, context: RequestContext) -> Principal | None:
            users: dict[str, str] = {}
            return Principal(users[context.headers["x-token"]])

    headers = {**TUS, "X-Token": "hunter2", "Upload-Length": "4"}
    monkeypatch.setattr(failure_log, "LOG_INTERVAL", 3600.0)
    with TestClient(app_with(ByToken(), tmp_path)) as client:
        for _ in range(3):
            assert client.post("/files", headers=headers).status_code == 503
        failures = [record.getMessage() for record in caplog.records if record.name == "tusd_py.auth"]
        assert len(failures) == 1
        assert failures[0].startswith("the authenticator of the application has failed: KeyError\n")
        assert 'users[context.headers["x-token"]]' in failures[0]
        monkeypatch.setattr(failure_log, "LOG_INTERVAL", 0.0)
        client.post("/files", headers=headers)
    assert sum(record.name == "tusd_py.auth" for record in caplog.records) == 2
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("answer", ["hunter2", {"user": "hunter2"}, True, 5])
def test_answer_of_another_type_lets_nobody_in(tmp_path: Path, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(ByHeader):
        async def authenticate(self, context: RequestContext) -> Principal | None:
            return answer if "x-wrong" in context.headers else await super().authenticate(context)

    with TestClient(app_with(Wrong(), tmp_path)) as client:
        url = client.post("/files", headers=as_user("ann", Upload_Length="4")).headers["Location"]
        wrong = as_user("ann", X_Wrong="1")
        assert client.post("/files", headers=wrong | {"Upload-Length": "4"}).status_code == 503
        assert client.patch(url, headers=BYTES | wrong, content=b"four").status_code == 503
        assert client.head(url, headers=wrong).status_code == 423
        assert client.head(url, headers=as_user("ann")).headers["Upload-Offset"] == "0"
    assert f"authenticate returned {type(answer).__name__}, not Principal" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("answer", [True, None, "allow"])
def test_decision_of_another_type_lets_nobody_in(tmp_path: Path, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(ByHeader):
        async def authorize(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
            return Decision.ALLOW if action is Action.CREATE else answer

    with TestClient(app_with(Wrong(), tmp_path)) as client:
        url = client.post("/files", headers=as_user("ann", Upload_Length="4")).headers["Location"]
        assert client.patch(url, headers=BYTES | as_user("ann"), content=b"four").status_code == 503
        assert client.head(url, headers=as_user("ann")).status_code == 423
    assert f"authorize returned {type(answer).__name__}, not Decision" in caplog.text


def test_authenticator_needs_its_method_and_takes_the_place_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="lacks the method authenticate"):
        TusServer(upload_dir=tmp_path, authenticator=object())  # type: ignore[arg-type]
    (tmp_path / "secret").write_text("a secret of at least thirty-two bytes")
    with pytest.raises(InvalidSettings, match="give one of them"):
        TusServer(upload_dir=tmp_path, authenticator=ByHeader(), jwt_secret_file=tmp_path / "secret")


@pytest.mark.parametrize("owner", ["", " ann", "a\n", "a" * 256])
def test_principal_needs_an_owner_that_a_record_can_name(owner: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        Principal(owner)


def session_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Return a client of the example of docs/security.md, with a route that logs ann in."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "security.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "security.md", "exec", dont_inherit=True), names)

    async def log_in(request: Request) -> PlainTextResponse:
        request.session["user"] = "ann"
        return PlainTextResponse("welcome")

    names["app"].router.routes.append(Route("/login", log_in, methods=["POST"]))
    return TestClient(names["app"])


def test_example_of_the_page_knows_users_by_their_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session_example(tmp_path, monkeypatch) as client:
        assert client.post("/files", headers={**TUS, "Upload-Length": "4"}).status_code == 401
        client.post("/login")
        created = client.post("/files", headers={**TUS, "Upload-Length": "4"})
        assert created.status_code == 201
        assert client.head(created.headers["Location"], headers=TUS).status_code == 200


def test_session_opens_no_socket_of_a_page_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The middleware has made a user of the cookie before the server sees the request."""
    with session_example(tmp_path, monkeypatch) as client:
        client.post("/login")
        created = client.post("/files", headers={**TUS, "Upload-Length": "4"})
        path = f"{urlsplit(created.headers['Location']).path}/events"
        for origin in ("https://evil.example", "null", "http://testserver.evil.example", "http://testserver:81"):
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                client.websocket_connect(path, headers={"Origin": origin}),
            ):
                pass
            assert refused.value.status_code == 403
        for headers in ({"Origin": "http://testserver"}, {}):
            with client.websocket_connect(path, headers=headers) as socket:
                assert socket.receive_json()["type"] == "snapshot"
        client.cookies.clear()
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(path):
            pass
        assert refused.value.status_code == 401


def test_example_of_the_page_signs_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text("ab" * 32)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "security.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code.replace("/etc/tusd-py/signing-keys", "keys"), "security.md", "exec", dont_inherit=True), names)
    site = "https://example.org"
    with TestClient(names["app"], base_url=site) as client:
        assert client.post("/files", headers={**TUS, "Upload-Length": str(len(MOVIE))}).status_code == 401
        endpoint = client.post("/upload-urls").json()["endpoint"]
        length = {**TUS, "Upload-Length": str(len(MOVIE))}
        assert client.post(endpoint, headers=length | {"Upload-Metadata": "filetype dGV4dC9odG1s"}).status_code == 415
        created = client.post(endpoint, headers=length | {"Upload-Metadata": "filetype dmlkZW8vbXA0"})
        assert created.status_code == 201
        location = created.headers["Location"]
        assert client.patch(location, headers=BYTES, content=MOVIE).status_code == 204
        upload_id = location.partition("?")[0].rpartition("/")[2]
        url = client.post(f"/download-urls/{upload_id}").json()["url"]
        assert client.get(url.partition("?")[0]).status_code == 401
        assert client.get(url).content == MOVIE
