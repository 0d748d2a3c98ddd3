"""Events, orphans, locks, settings and the description of the API, over the wire."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import TOKEN, ask, get, ids_of, problem, token_file
from tests.auth.site import ADMIN, OWNER, SECRET, bearer, token_files
from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.messages import TUS
from tests.support.wire.requests import create, request, stalled_patch
from tusd_py.admin.documents import settings_document
from tusd_py.settings import FIELDS, from_arguments

DAY = 86400
NOWHERE = "http://127.0.0.1:9/events"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, admin_token_file=token_file(folder)) as server:
        yield server


def resolved(schema: Mapping[str, Any], description: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = description["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def check(value: object, given: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Assert that a value is one of a schema, with no other property than those that the schema names."""
    schema = resolved(given, description)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert isinstance(value, tuple(kinds[name] for name in names)), (value, schema)
    if isinstance(value, list):
        for item in value:
            check(item, schema["items"], description)
    if isinstance(value, dict) and "properties" in schema:
        assert list(value) == schema["required"] == list(schema["properties"])
        for name, item in value.items():
            check(item, schema["properties"][name], description)


def test_answers_are_those_of_the_description(site: ServerProcess) -> None:
    path = create(site.port, 10)
    description = get(site.port, "openapi.json")
    assert description["openapi"].startswith("3.1")
    references = set()
    with stalled_patch(site.port, path, b"x" * 10, 5):
        for route, methods in description["paths"].items():
            for method, operation in methods.items():
                content = operation["responses"].get("200", {}).get("content", {})
                if method != "get" or "text/event-stream" in content:
                    continue
                answer = get(site.port, route.removeprefix("/").replace("{id}", ids_of(path)))
                schema = content["application/json"]["schema"]
                references.add(schema["$ref"])
                check(answer, schema, description)
    assert len(references) > 8
    operations = [operation for methods in description["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))


def test_description_names_the_parameters_that_are_accepted(site: ServerProcess) -> None:
    description = get(site.port, "openapi.json")
    listed = description["paths"]["/uploads"]["get"]["parameters"]
    orders = next(one["schema"]["enum"] for one in listed if one["name"] == "order")
    for order in orders:
        get(site.port, "uploads", order=order, limit=1)
    assert {one["name"] for one in listed} == {
        "state", "owner", "q", "created_after", "created_before", "order", "limit", "after",
    }  # fmt: skip


def test_lock_names_the_request_that_holds_it(site: ServerProcess) -> None:
    path = create(site.port, 100)
    with stalled_patch(site.port, path, b"x" * 100, 50):
        (lock,) = [one for one in get(site.port, "locks")["locks"] if one["upload_id"] == ids_of(path)]
        assert (lock["method"], lock["path"], lock["client"]) == ("PATCH", path, "127.0.0.1")
        assert (lock["principal"], lock["pid"]) == (None, site.pid)
    wait_until(lambda: get(site.port, "locks")["locks"] == [])


def test_orphan_of_a_day_is_listed_and_stays(tmp_path: Path) -> None:
    shared = {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with serving(tmp_path, admin_token_file=token_file(tmp_path), **shared) as server:
        create(server.port, 5)
        orphan = server.upload_dir / "0123456789abcdef0123456789abcdef.7"
        orphan.write_bytes(b"left behind")
        old = time.time() - 2 * DAY
        os.utime(orphan, (old, old))
        (found,) = get(server.port, "orphans")["orphans"]
        assert found["upload_id"] == orphan.stem
        assert orphan.exists()


def test_event_that_waits_is_listed_and_tried_again(tmp_path: Path) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), events_to=NOWHERE) as server:
        paths = [create(server.port, 5) for _ in range(3)]
        first = get(server.port, "events", limit=2)
        assert len(first["events"]) == 2
        events, after = first["events"], first["next"]
        while after is not None:  # an event whose delivery fails meanwhile is listed again
            page = get(server.port, "events", limit=2, after=after)
            events, after = [*events, *page["events"]], page["next"]
        assert {event["upload"] for event in events} == set(map(ids_of, paths))
        assert {(event["type"], event["sink"]) for event in events} == {("tus.upload.created", NOWHERE)}
        event_id = events[0]["id"]
        assert ask(server.port, "POST", f"events/{event_id}/retry").status == 204
        unknown = ask(server.port, "POST", "events/0123/retry")
        assert problem(unknown) == (404, "ERR_EVENT_NOT_FOUND")
        for query in ("limit=0", "after=%00", "after=" + "x" * 600, "state=active"):
            assert problem(ask(server.port, "GET", f"events?{query}")) == (400, "ERR_INVALID_PARAMETER")


@pytest.mark.parametrize(
    "after", ["x", "0", "0 x", "-9 1", "9 1", "0 -1", "0 99999999999999999999", "0 \u0663", "0 1 2"]
)
def test_cursor_of_no_page_of_events_is_a_bad_parameter(site: ServerProcess, after: str) -> None:
    assert problem(ask(site.port, "GET", "events", after=after)) == (400, "ERR_INVALID_PARAMETER")


def test_settings_are_all_told_and_hold_no_secret(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("5e" * 32)
    hook_secret = tmp_path / "hook-secret"
    hook_secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    options = {
        **token_files(tmp_path),
        "admin_token_file": token_file(tmp_path),
        "signing_key_file": keys,
        "hooks_http": "http://user:hunter2@127.0.0.1:9/hook?token=hunter3",
        "hooks_enabled_events": "post-finish",
        "hooks_http_secret_file": hook_secret,
        "events_to": f"{NOWHERE}?key=hunter4",
    }
    with serving(tmp_path, **options) as server:
        settings = get(server.port, "settings")
    assert list(settings) == list(FIELDS)
    assert settings["signing_key_file"] == "keys"
    assert settings["upload_dir"] == str(server.upload_dir)
    assert settings["max_size"] is None
    text = json.dumps(settings)
    known = [TOKEN, OWNER, ADMIN, SECRET.decode(), "5e5e", "whsec", "hunter", str(keys)]
    assert [secret for secret in known if secret in text] == []


def test_settings_without_a_value_are_null(tmp_path: Path) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path)) as server:
        settings = get(server.port, "settings")
    assert [name for name, value in settings.items() if value == ""] == []
    unset = ("max_size", "redis_url", "s3_bucket", "clamd", "hooks", "rate_create", "auth_cookie", "storage_plugin")
    assert [settings[name] for name in unset] == [None] * len(unset)


def test_empty_prefix_of_redis_is_a_value_since_it_is_not_the_default() -> None:
    settings = settings_document(from_arguments({"redis_url": "redis://localhost", "redis_prefix": ""}))
    assert (settings["redis_prefix"], settings["s3_prefix"]) == ("", None)


def test_locks_and_lists_hold_no_capability(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("5e" * 32)
    options = {"signing_key_file": keys, "capability_urls": True, "admin_token_file": token_file(tmp_path)}
    with serving(tmp_path, **token_files(tmp_path), **options) as server:
        created = request(server.port, "POST", "/files", TUS | bearer(OWNER) | {"Upload-Length": "100"})
        url = created["Location"].removeprefix(server.origin)
        assert "?k=" in url
        with stalled_patch(server.port, url, b"x" * 100, 50):
            for path in ("locks", "uploads", f"uploads/{ids_of(url.partition('?')[0])}"):
                answer = ask(server.port, "GET", path)
                assert answer.status == 200
                assert b"k=" not in answer.body
            assert get(server.port, "locks")["locks"][0]["upload_id"] in url
