"""Lists, single uploads and totals, over the wire."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import FIELDS, TOKEN, ask, final_of, get, ids_of, problem, token_file
from tests.support.harness import ServerProcess, serving
from tests.support.wire.messages import encoded, shown
from tests.support.wire.requests import complete, create, patch, request, stalled_patch

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, admin_token_file=token_file(folder)) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server without uploads of other tests."""
    with serving(tmp_path, admin_token_file=token_file(tmp_path)) as server:
        yield server


def named(port: int, name: str, length: int | None = 10) -> str:
    return create(port, length, {"Upload-Metadata": f"filename {encoded(name)},filetype {encoded('text/plain')}"})


def test_upload_is_told_with_all_that_is_known(server: ServerProcess) -> None:
    path = create(server.port, None, {"Upload-Metadata": f"filename {encoded('Übung 1.txt')},raw /wD/,flag"})
    assert patch(server.port, path, 0, b"12345").status == 204
    upload = get(server.port, f"uploads/{ids_of(path)}")
    assert list(upload) == FIELDS
    assert upload["url"] == f"{server.origin}{path}"
    assert (upload["status"], upload["offset"], upload["length"]) == ("active", 5, None)
    assert (upload["filename"], upload["filetype"]) == ("Übung 1.txt", None)
    assert upload["metadata"] == {"filename": "Übung 1.txt", "raw": {"base64": "/wD/"}, "flag": ""}
    assert (upload["owner"], upload["concatenation"], upload["partial_ids"]) == (None, None, [])
    assert (upload["client"], upload["locked"]) == ("127.0.0.1", False)
    assert all(TIME.fullmatch(upload[name]) for name in ("created_at", "updated_at", "expires_at"))
    assert upload["created_at"] <= upload["updated_at"] < upload["expires_at"]
    assert upload["completed_at"] is None
    assert get(server.port, "uploads") == {"uploads": [upload], "next": None}


def test_complete_and_final_uploads_are_told(server: ServerProcess) -> None:
    parts = [create(server.port, 3, {"Upload-Concat": "partial"}) for _ in range(2)]
    for part in parts:
        complete(server.port, part, b"abc")
    final = final_of(server.port, *parts)
    upload = get(server.port, f"uploads/{ids_of(final)}")
    assert (upload["status"], upload["concatenation"]) == ("complete", "final")
    assert upload["partial_ids"] == [ids_of(part) for part in parts]
    assert TIME.fullmatch(upload["completed_at"])
    listed = get(server.port, "uploads", state="complete")["uploads"]
    assert {one["concatenation"] for one in listed} == {"partial", "final"}


def test_upload_that_receives_bytes_is_locked(server: ServerProcess) -> None:
    path = create(server.port, 100)
    with stalled_patch(server.port, path, b"x" * 100, 50):
        assert get(server.port, f"uploads/{ids_of(path)}")["locked"] is True
        assert [one["locked"] for one in get(server.port, "uploads")["uploads"]] == [True]


def test_pages_hold_every_upload_once_while_others_come_and_go(server: ServerProcess) -> None:
    paths = [named(server.port, f"{number}") for number in range(7)]
    first = get(server.port, "uploads", limit=3)
    found = [one["filename"] for one in first["uploads"]]
    assert request(server.port, "DELETE", paths[4], {"Tus-Resumable": "1.0.0"}).status == 204  # where the page ended
    assert request(server.port, "DELETE", paths[2], {"Tus-Resumable": "1.0.0"}).status == 204
    named(server.port, "new")
    page = first
    while page["next"] is not None:
        page = get(server.port, "uploads", limit=3, after=page["next"])
        found += [one["filename"] for one in page["uploads"]]
    assert found == ["6", "5", "4", "3", "1", "0"]


@pytest.mark.parametrize("order", FIELDS)
@pytest.mark.parametrize("sign", ["", "-"])
def test_list_is_ordered_by_every_field_that_has_an_order(site: ServerProcess, order: str, sign: str) -> None:
    for length in (3, 1, 2):
        named(site.port, f"name {length}", length)
    answer = ask(site.port, "GET", "uploads", order=f"{sign}{order}", limit=2)
    if order in ("url", "metadata", "partial_ids", "locked"):
        assert problem(answer) == (400, "ERR_INVALID_PARAMETER")
        return
    page, values = json.loads(answer.body), []
    while True:
        values += [one[order] for one in page["uploads"]]
        if page["next"] is None:
            break
        page = get(site.port, "uploads", order=f"{sign}{order}", limit=2, after=page["next"])
    in_order = sorted(values, key=lambda value: (value is not None, value), reverse=sign == "-")
    assert values == in_order


def test_conditions_leave_out_other_uploads(server: ServerProcess) -> None:
    one, two = named(server.port, "one"), named(server.port, "two & more")
    complete(server.port, two, b"x" * 10)
    at = get(server.port, f"uploads/{ids_of(one)}")["created_at"]

    def names(**parameters: object) -> list[str]:
        return [upload["filename"] for upload in get(server.port, "uploads", **parameters)["uploads"]]

    assert names(state="active") == ["one"]
    assert names(state="complete") == ["two & more"]
    assert names(state="terminated") == []
    assert names(q="TWO &") == ["two & more"]
    assert names(q=ids_of(one)) == ["one"]
    assert names(q=ids_of(one), state="complete") == []
    assert names(q="%") == names(q="_o") == []
    assert names(owner="") == ["two & more", "one"]
    assert names(owner="ann") == []
    assert names(created_before="2020-01-01T00:00:00Z") == []
    assert names(created_after="2020-01-01T00:00:00+01:00") == ["two & more", "one"]
    assert "one" not in names(created_after=at.replace("Z", "+00:00")[:-6] + "Z", created_before=at)


HOSTILE = [
    "state=",
    "state=foo",
    "state=ACTIVE",
    "state=active&state=active",
    "limit=0",
    "limit=-1",
    "limit=1001",
    "limit=1.5",
    "limit=+1",
    "limit=%D9%A1",
    "limit=",
    "limit=" + "9" * 5000,
    "order=",
    "order=-",
    "order=--id",
    "order=token",
    "order=location",
    "order=id%3BDROP%20TABLE%20uploads",
    "order=created_at,id",
    "created_after=yesterday",
    "created_after=2026-01-01",
    "created_after=2026-13-01T00:00:00Z",
    "created_after=2026-01-01T00:00:00",
    "created_before=1e400",
    "q=" + "x" * 257,
    "owner=" + "x" * 257,
    "q=%FF",
    "unknown=1",
    "after=",
    "after=x",
    "after=" + "A" * 9000,
    "&".join(f"q{number}=1" for number in range(50)),
    "%00=1",
]


@pytest.mark.parametrize("query", HOSTILE, ids=shown)
def test_parameter_that_is_not_accepted_is_refused_with_its_reason(site: ServerProcess, query: str) -> None:
    assert problem(ask(site.port, "GET", f"uploads?{query}")) == (400, "ERR_INVALID_PARAMETER")


CURSORS: list[Any] = [
    [],
    {},
    None,
    "created_at",
    ["created_at", 1, 1.0],
    ["created_at", 1, 1.0, "id", 1],
    ["created_at", 0, 1.0, "id"],  # of a list in the other direction
    ["created_at", True, 1.0, "id"],
    ["offset", 1, 1, "id"],
    ["created_at", 1, None, "id"],
    ["created_at", 1, "1.0", "id"],
    ["created_at", 1, True, "id"],
    ["created_at", 1, [1], "id"],
    ["created_at", 1, float("nan"), "id"],
    ["created_at", 1, float("inf"), "id"],
    ["created_at", 1, 1 << 80, "id"],
    ["created_at", 1, 1.0, 5],
    ["created_at", 1, 1.0, "x" * 300],
    ["created_at", 1, 1.0, "\ud800"],
]


@pytest.mark.parametrize("content", CURSORS, ids=shown)
def test_cursor_that_is_none_of_the_list_is_refused(site: ServerProcess, content: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    assert problem(ask(site.port, "GET", "uploads", after=cursor)) == (400, "ERR_INVALID_PARAMETER")


@pytest.mark.parametrize("order", ["id", "length", "owner", "filename", "expires_at"])
@pytest.mark.parametrize("key", [None, 1, 1 << 63, "\ud800", "x", "\0", "'; --"], ids=shown)
def test_cursor_with_any_value_leads_to_a_page_or_is_refused(site: ServerProcess, order: str, key: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps([order, 0, key, "id"]).encode()).decode().rstrip("=")
    assert ask(site.port, "GET", "uploads", order=order, after=cursor).status in (200, 400)


@pytest.mark.parametrize("content", ["[" * 5000, '["created_at",1,1.0,"id"', "\x80", "=" * 20], ids=shown)
def test_cursor_that_is_no_json_is_refused(site: ServerProcess, content: str) -> None:
    cursor = base64.urlsafe_b64encode(content.encode("latin-1")).decode()
    assert problem(ask(site.port, "GET", "uploads", after=cursor)) == (400, "ERR_INVALID_PARAMETER")


@pytest.mark.parametrize(
    "path",
    [
        "", "nothing", "uploads/", "uploads/x/y", "uploads//history", "uploads/x/history/y", "uploads/..%2f..%2fetc",
        "uploads/%00", "uploads/a%2Fb", "uploads/" + "x" * 129, "uploads/unknown", "stats/x", "../admin/api/x",
    ],
    ids=shown,
)  # fmt: skip
def test_path_that_leads_nowhere_is_not_found(site: ServerProcess, path: str) -> None:
    answer = ask(site.port, "GET", path)
    if path == "uploads/":  # the list
        assert answer.status == 200
    else:
        assert answer.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "TRACE"])
def test_method_that_a_path_does_not_take_is_refused_with_those_that_it_takes(site: ServerProcess, method: str) -> None:
    answer = ask(site.port, method, "uploads")
    assert problem(answer) == (405, "ERR_METHOD_NOT_ALLOWED")
    assert answer["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("token", [None, "wrong", TOKEN])
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("uploads", "GET, HEAD, OPTIONS"),
        ("uploads/x", "GET, DELETE, HEAD, OPTIONS"),
        ("uploads/x/expire", "POST, OPTIONS"),
    ],
)
def test_options_are_told_to_everybody(site: ServerProcess, token: str | None, path: str, allowed: str) -> None:
    answer = ask(site.port, "OPTIONS", path, token=token)
    assert (answer.status, answer["Allow"], answer.body) == (204, allowed, b"")


def test_path_that_does_not_exist_has_no_options(site: ServerProcess) -> None:
    assert problem(ask(site.port, "OPTIONS", "unknown", token=None)) == (404, "ERR_NOT_FOUND")


def test_head_is_answered_without_a_body(site: ServerProcess) -> None:
    got, answer = ask(site.port, "GET", "stats"), ask(site.port, "HEAD", "stats")
    assert (answer.status, answer.body) == (200, b"")
    assert answer["Content-Type"] == got["Content-Type"]


def test_body_that_is_too_large_is_refused(site: ServerProcess) -> None:
    assert problem(ask(site.port, "POST", "uploads/x/expire", body=b"x" * 5000)) == (413, "ERR_BODY_TOO_LARGE")
    assert ask(site.port, "GET", "stats", body=b"x" * 4000).status == 200


def test_totals_are_those_of_the_uploads(server: ServerProcess) -> None:
    named(server.port, "one", 5)
    path = named(server.port, "two", 10)
    complete(server.port, path, b"x" * 10)
    stats = get(server.port, "stats")
    assert stats["total"] == {"count": 2, "bytes": 10}
    assert stats["by_status"]["active"] == {"count": 1, "bytes": 0}
    assert stats["by_status"]["complete"] == {"count": 1, "bytes": 10}
    assert stats["by_status"]["expired"] == {"count": 0, "bytes": 0}
    assert stats["by_owner"] == [{"owner": None, "count": 2, "bytes": 10}]
    assert TIME.fullmatch(stats["as_of"])
    assert TIME.fullmatch(stats["oldest"])
    assert stats["free_space"] > 0
    assert stats["rates"]["received"] >= 0


def test_answers_tell_browsers_to_be_careful(site: ServerProcess) -> None:
    for path in ("stats", "nothing"):
        answer = ask(site.port, "GET", path)
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in answer


@pytest.mark.parametrize("base_path", ["/admin", "/up/loads"])
def test_api_is_there_whatever_the_base_path(tmp_path: Path, base_path: str) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), base_path=base_path) as server:
        created = request(server.port, "POST", base_path, {"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
        assert created.status == 201
        (upload,) = get(server.port, "uploads")["uploads"]
        assert upload["url"] == created["Location"]
        assert get(server.port, "stats")["total"]["count"] == 1


def test_url_is_the_public_one(tmp_path: Path) -> None:
    public = "https://example.org/up"
    with serving(tmp_path, admin_token_file=token_file(tmp_path), public_url=public) as server:
        answer = request(server.port, "POST", "/files", {"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
        assert get(server.port, "uploads")["uploads"][0]["url"] == answer["Location"]


def test_without_token_and_authentication_there_is_no_api(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        elsewhere = request(server.port, "GET", "/nothing")
        for path in ("", "uploads", "stats"):
            answer = ask(server.port, "GET", path)
            assert (answer.status, answer.body) == (404, elsewhere.body)
