"""The history of uploads, over the wire."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import ask, get, ids_of, problem, token_file
from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.requests import create, offset_of, patch, start_patch


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    options: dict[str, Any] = {"admin_token_file": token_file(tmp_path), "gone_for": "1h"}
    if request.param == "redis":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with serving(tmp_path, **options) as server:
        yield server


def events_of(server: ServerProcess, path: str) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = get(server.port, f"uploads/{ids_of(path)}/history")["history"]
    assert [entry["time"] for entry in history] == sorted(entry["time"] for entry in history)
    return history


def names_of(server: ServerProcess, path: str) -> list[str]:
    return [entry["event"] for entry in events_of(server, path)]


def test_history_tells_of_an_interruption_and_of_who_completed_the_upload(site: ServerProcess) -> None:
    path = create(site.port, None)
    with start_patch(site.port, path, 0, 100) as connection:
        connection.send(b"x" * 50)
        connection.wait_until_read()
    wait_until(lambda: "interrupted" in names_of(site, path))
    offset = offset_of(site.port, path)
    assert patch(site.port, path, offset, b"y" * 10_000).status == 204
    assert ask(site.port, "POST", f"uploads/{ids_of(path)}/complete").status == 200
    wait_until(lambda: "completed" in names_of(site, path))
    names = names_of(site, path)
    assert names[:2] == ["created", "interrupted"]
    assert set(names) == {"created", "interrupted", "resumed", "finished", "completed"}
    by_name = {entry["event"]: entry for entry in events_of(site, path)}
    assert by_name["created"]["client"] == "127.0.0.1"
    assert by_name["interrupted"]["offset"] == by_name["resumed"]["offset"] == offset
    assert (by_name["completed"]["actor"], by_name["completed"]["client"]) == ("admin", "127.0.0.1")
    assert by_name["finished"]["offset"] == offset + 10_000


def test_recording_that_an_administrator_completes_after_an_interruption_was_not_resumed(site: ServerProcess) -> None:
    path = create(site.port, None)
    with start_patch(site.port, path, 0, 100) as connection:
        connection.send(b"x" * 50)
        connection.wait_until_read()
    wait_until(lambda: "interrupted" in names_of(site, path))
    wait_until(lambda: get(site.port, f"uploads/{ids_of(path)}")["locked"] is False)
    assert ask(site.port, "POST", f"uploads/{ids_of(path)}/complete").status == 200
    wait_until(lambda: "completed" in names_of(site, path))
    assert set(names_of(site, path)) == {"created", "interrupted", "finished", "completed"}


@pytest.mark.parametrize("action", ["terminate", "expire"])
def test_history_of_a_remembered_upload_tells_who_ended_it(site: ServerProcess, action: str) -> None:
    path = create(site.port, 5)
    method, place = ("DELETE", "") if action == "terminate" else ("POST", "/expire")
    assert ask(site.port, method, f"uploads/{ids_of(path)}{place}").status == 204
    ended = "terminated" if action == "terminate" else "expired"
    wait_until(lambda: ended in names_of(site, path))
    assert events_of(site, path)[-1]["actor"] == "admin"


def test_unknown_upload_has_no_history(site: ServerProcess) -> None:
    assert problem(ask(site.port, "GET", "uploads/unknown/history")) == (404, "ERR_UPLOAD_NOT_FOUND")
