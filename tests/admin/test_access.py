"""Administrators of an application: their credentials go to nobody, and no foreign page acts with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.support.asgi_calls import Call, ask, create
from tusd_py import Principal, RequestContext, TusServer, UploadTerminated, create_app
from tusd_py.admin import access
from tusd_py.admin.app import AdminApp
from tusd_py.admin.make import build_admin
from tusd_py.core.event_document import told_headers

SESSION = {"X-Session": "a session of root", "Authorization": "Basic cm9vdDpzZWNyZXQ=", "X-Trace": "7"}


class BySession:
    """An authenticator that knows every sender with a session or a cookie as an administrator."""

    secret_headers = ("X-Session",)

    async def authenticate(self, context: RequestContext) -> Principal | None:
        known = "x-session" in context.headers or "cookie" in context.headers
        return Principal("root", frozenset({"uploads:admin"})) if known else None


def server_in(place: Path, cors_origins: Sequence[str] = ()) -> TusServer:
    return TusServer(
        upload_dir=place / "uploads", authenticator=BySession(), sweep_interval=0, cors_origins=list(cors_origins)
    )


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TusServer]:
    server = server_in(tmp_path)
    async with server.lifespan():
        yield server


def admin_of(server: TusServer) -> AdminApp:
    admin = build_admin(server)
    assert admin is not None
    return admin


async def terminate(server: TusServer, path: str, headers: dict[str, str]) -> Call:
    return await ask(admin_of(server), "DELETE", f"/uploads{path}", headers)


class Silent:
    """An authenticator that never answers."""

    async def authenticate(self, context: RequestContext) -> Principal | None:
        await asyncio.Event().wait()
        return None


def test_authenticator_that_hangs_keeps_no_request_of_administrators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "TIMEOUT", 0.1)
    app = create_app(upload_dir=tmp_path / "uploads", authenticator=Silent(), metrics_auth=True)
    with TestClient(app) as client:
        for path in ("/admin/api/uploads", "/admin/api/uploads/events", "/metrics"):
            assert client.get(path, headers={"Authorization": "Bearer x"}).status_code == 503


async def test_event_of_an_administrator_has_no_credentials(server: TusServer) -> None:
    seen: list[RequestContext] = []

    @server.on(UploadTerminated)
    async def terminated(event: UploadTerminated) -> None:
        assert event.request is not None
        seen.append(event.request)

    path = await create(server, 4, **SESSION)
    assert (await terminate(server, path, SESSION)).status == 204
    await server.service.events.delivered(path[1:])
    (context,) = seen
    assert context.principal == "root"
    assert context.headers["x-trace"] == "7"
    assert {"x-session", "authorization"}.isdisjoint(context.headers)
    assert {"x-session", "authorization"}.isdisjoint(told_headers(context))
    assert {b"x-session", b"authorization"}.isdisjoint(name for name, _ in context.scope["headers"])
    assert (b"x-trace", b"7") in context.scope["headers"]


NAMED = ["https://app.example.com", "https://*.example.org"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.com", 401),
        ("null", 401),
        ("", 401),
        ("https://app.example.com.evil.com", 401),
        ("https://app.example.com", 204),
        ("https://one.example.org", 204),
        ("http://testserver", 204),
    ],
)
async def test_page_of_anybody_does_not_act_with_the_cookie_of_an_administrator(
    tmp_path: Path, origin: str, status: int
) -> None:
    """Pages of anybody, as of `https://*.com` and `null`, may upload where the settings say so, and no more."""
    server = server_in(tmp_path, ["https://*.com", "null", *NAMED])
    async with server.lifespan():
        path = await create(server, 4, **SESSION)
        answer = await terminate(server, path, {"Cookie": "session=root", "Origin": origin})
        assert answer.status == status
        assert (await ask(server, "HEAD", path, SESSION)).status == (200 if status == 401 else 404)


@pytest.mark.parametrize("origins", [[], ["*"], ["null"], ["https://*.com"]])
async def test_without_a_named_origin_no_foreign_page_acts(tmp_path: Path, origins: list[str]) -> None:
    server = server_in(tmp_path, origins)
    async with server.lifespan():
        path = await create(server, 4, **SESSION)
        for origin in ("https://evil.com", "null", ""):
            assert (await terminate(server, path, {"Cookie": "session=root", "Origin": origin})).status == 401
