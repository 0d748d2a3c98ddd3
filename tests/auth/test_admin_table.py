"""The rights of principals on the administration API, cell by cell: routes by principals.

A refusal leaves files and records as they were, and tells nothing of any upload.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.admin.calls import TOKEN, ids_of, problem, token_file
from tests.auth.site import ADMIN, OTHER, OWNER, READER, WRITER, ask, create, jwt_of, token_files, without_date
from tests.support.harness import ServerProcess, serving
from tests.support.stored import unchanged
from tests.support.wire.connection import Connection
from tests.support.wire.messages import Answer, encoded
from tests.support.wire.requests import request

UNKNOWN = "0123456789abcdef0123456789abcdef"
ROUTES = {
    "list": ("GET", "uploads"),
    "list of an owner": ("GET", "uploads?owner=bob"),
    "search": ("GET", "uploads?q=secret"),
    "show": ("GET", "uploads/{id}"),
    "history": ("GET", "uploads/{id}/history"),
    "head": ("HEAD", "uploads/{id}"),
    "terminate": ("DELETE", "uploads/{id}"),
    "expire": ("POST", "uploads/{id}/expire"),
    "complete": ("POST", "uploads/{id}/complete"),
    "stats": ("GET", "stats"),
    "events": ("GET", "events"),
    "retry": ("POST", "events/{id}/retry"),
    "orphans": ("GET", "orphans"),
    "locks": ("GET", "locks"),
    "settings": ("GET", "settings"),
    "queue": ("GET", "queue"),
    "description": ("GET", "openapi.json"),
    "nowhere": ("GET", "nothing"),
    "bad parameter": ("GET", "uploads?limit=0"),
    "bad method": ("PUT", "uploads"),
}
STRANGERS = {
    "none": {},
    "wrong": {"Authorization": "Bearer wrong"},
    "empty": {"Authorization": "Bearer "},
    "basic": {"Authorization": "Basic YWRtaW46YWRtaW4="},
    "a part of the token": {"Authorization": f"Bearer {TOKEN[:-1]}"},
    "expired": {"Authorization": f"Bearer {jwt_of('root', scope='uploads:admin', exp=1)}"},
    "nobody": {"Authorization": f"Bearer {jwt_of('', scope='uploads:admin')}"},
}
PRINCIPALS = {
    "ann": OWNER,
    "bob": OTHER,
    "reader": READER,
    "writer": WRITER,
    "jwt": jwt_of("bob"),
    "similar scope": jwt_of("bob", scope="uploads:administrator uploads:admin:x xuploads:admin"),
}
ADMINISTRATORS = {"admin scope": ADMIN, "admin claim": jwt_of("root", scope="openid uploads:admin"), "token": TOKEN}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    keys = folder / "keys"
    keys.write_text("0f" * 32)
    options = {"signing_key_file": keys, "capability_urls": True, "admin_token_file": token_file(folder)}
    with serving(folder, **token_files(folder), **options) as server:
        yield server


def upload_of_bob(server: ServerProcess) -> str:
    return create(server, OTHER, None, b"secret bytes", {"Upload-Metadata": f"filename {encoded('secret.txt')}"})


def send(server: ServerProcess, route: str, upload_id: str, headers: dict[str, str], query: str = "") -> Answer:
    method, path = ROUTES[route]
    path = f"/admin/api/{path.format(id=upload_id)}"
    if query:
        path += ("&" if "?" in path else "?") + query
    return request(server.port, method, path, headers)


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("route", ROUTES)
def test_stranger_is_answered_401_whatever_there_is(site: ServerProcess, route: str, stranger: str) -> None:
    path = upload_of_bob(site)
    with unchanged(site):
        refused = send(site, route, ids_of(path), STRANGERS[stranger])
        assert refused.status == 401
        assert refused["WWW-Authenticate"].startswith("Bearer")
        assert without_date(refused) == without_date(send(site, route, UNKNOWN, STRANGERS[stranger]))


@pytest.mark.parametrize("name", PRINCIPALS)
@pytest.mark.parametrize("route", ROUTES)
def test_principal_without_the_scope_is_answered_403_whatever_there_is(
    site: ServerProcess, route: str, name: str
) -> None:
    path = upload_of_bob(site)
    credentials = {"Authorization": f"Bearer {PRINCIPALS[name]}"}
    with unchanged(site):
        refused = send(site, route, ids_of(path), credentials)
        assert refused.status == 403
        assert "insufficient_scope" in refused["WWW-Authenticate"]
        assert b"bob" not in refused.body
        assert b"secret" not in refused.body
        assert without_date(refused) == without_date(send(site, route, UNKNOWN, credentials))


@pytest.mark.parametrize("route", ROUTES)
def test_capability_of_an_upload_gives_no_right(site: ServerProcess, route: str) -> None:
    created = ask(site, OTHER, "POST", "/files", {"Upload-Length": "5"})
    path, _, query = created["Location"].partition("?")
    assert query.startswith("k=")
    with unchanged(site):
        assert send(site, route, ids_of(path), {}, query).status == 401
        assert send(site, route, ids_of(path), {"Authorization": f"Bearer {OTHER}"}, query).status == 403


@pytest.mark.parametrize("name", ADMINISTRATORS)
@pytest.mark.parametrize("route", ROUTES)
def test_administrator_is_let_in(site: ServerProcess, route: str, name: str) -> None:
    upload_id = ids_of(upload_of_bob(site))
    answer = send(site, route, upload_id, {"Authorization": f"Bearer {ADMINISTRATORS[name]}"})
    expected = {"terminate": 204, "expire": 204, "nowhere": 404, "retry": 404, "bad parameter": 400, "bad method": 405}
    assert answer.status == expected.get(route, 200)


def test_two_fields_with_credentials_are_refused(site: ServerProcess) -> None:
    fields = [f"Authorization: Bearer {TOKEN}", "Authorization: Bearer x"]
    with Connection(site.port) as connection:
        connection.send("\r\n".join(["GET /admin/api/stats HTTP/1.1", "Host: x", *fields, "", ""]).encode())
        assert problem(connection.answer(method="GET")) == (400, "ERR_INVALID_AUTHORIZATION")
