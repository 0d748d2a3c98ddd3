"""Uploads that administrators end: terminate, expire, complete."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import TOKEN, ask, final_of, get, ids_of, problem, token_file
from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.stored import unchanged
from tests.support.timing import wait_until
from tests.support.wire.messages import payload
from tests.support.wire.requests import (
    complete,
    content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)

DATA = payload(300_000)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, admin_token_file=token_file(folder)) as server:
        yield server


def change(server: ServerProcess, path: str, action: str) -> int:
    method, place = ("DELETE", "") if action == "terminate" else ("POST", f"/{action}")
    return ask(server.port, method, f"uploads/{ids_of(path)}{place}").status


def deferred(server: ServerProcess, data: bytes = DATA) -> str:
    path = create(server.port, None)
    assert patch(server.port, path, 0, data).status == 204
    return path


@pytest.mark.parametrize("action", ["terminate", "expire"])
def test_unfinished_upload_is_removed_with_its_bytes(site: ServerProcess, action: str) -> None:
    path = create(site.port, len(DATA))
    assert patch(site.port, path, 0, DATA[:1000]).status == 204
    assert change(site, path, action) == 204
    assert head(site.port, path).status == 404
    assert not [name for name in Path(site.upload_dir).rglob(f"*{ids_of(path)}*") if name.is_file()]
    assert change(site, path, action) == 404


@pytest.mark.parametrize("action", ["terminate", "expire"])
def test_client_that_is_sending_is_told_that_its_upload_has_ended(site: ServerProcess, action: str) -> None:
    path = create(site.port, len(DATA))
    with start_patch(site.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[:100_000])
        connection.wait_until_read()
        assert change(site, path, action) == 204
        assert connection.answer().status == 404
    assert head(site.port, path).status == 404


@pytest.mark.parametrize("action", ["terminate", "expire"])
def test_ended_upload_is_told_as_gone_while_it_is_remembered(tmp_path: Path, action: str) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), gone_for="1h") as server:
        path = create(server.port, 5)
        assert change(server, path, action) == 204
        assert head(server.port, path).status == 410
        state = "terminated" if action == "terminate" else "expired"
        assert get(server.port, f"uploads/{ids_of(path)}")["status"] == state
        assert [one["id"] for one in get(server.port, "uploads", state=state)["uploads"]] == [ids_of(path)]
        for again in ("terminate", "expire", "complete"):
            assert change(server, path, again) == 410


def test_finished_upload_never_expires_and_is_terminated_only_by_that_name(site: ServerProcess) -> None:
    path = create(site.port, len(DATA))
    complete(site.port, path, DATA)
    with unchanged(site):
        for action in ("expire", "complete"):
            answer = ask(site.port, "POST", f"uploads/{ids_of(path)}/{action}")
            assert problem(answer) == (409, "ERR_WRONG_STATUS")
    assert content(site.port, path) == DATA
    assert change(site, path, "terminate") == 204
    assert head(site.port, path).status == 404


def test_complete_partial_upload_does_not_expire(site: ServerProcess) -> None:
    part = create(site.port, 3, {"Upload-Concat": "partial"})
    complete(site.port, part, b"abc")
    assert change(site, part, "expire") == 409
    final = final_of(site.port, part)
    assert content(site.port, final) == b"abc"


def test_abandoned_recording_is_completed_at_its_offset(site: ServerProcess) -> None:
    path = deferred(site)
    answer = ask(site.port, "POST", f"uploads/{ids_of(path)}/complete")
    assert answer.status == 200
    upload = json.loads(answer.body)
    assert (upload["status"], upload["offset"], upload["length"]) == ("complete", len(DATA), len(DATA))
    assert content(site.port, path) == DATA
    assert change(site, path, "complete") == 409


def test_recording_without_a_byte_is_completed_as_empty(site: ServerProcess) -> None:
    path = create(site.port, None)
    assert change(site, path, "complete") == 200
    assert content(site.port, path) == b""


def test_upload_of_known_length_is_not_completed(site: ServerProcess) -> None:
    path = create(site.port, 10)
    declared = create(site.port, None)
    assert patch(site.port, declared, 0, b"", {"Upload-Length": "10"}).status == 204
    with unchanged(site):
        assert change(site, path, "complete") == change(site, declared, "complete") == 409
    complete(site.port, path, b"0123456789")


def test_recording_that_is_sending_is_not_completed_and_loses_nothing(site: ServerProcess) -> None:
    path = create(site.port, None)
    with start_patch(site.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[:1000])
        connection.wait_until_read()
        for _ in range(3):
            answer = ask(site.port, "POST", f"uploads/{ids_of(path)}/complete")
            assert problem(answer) == (409, "ERR_WRONG_STATUS")
        connection.send(DATA[1000:])
        assert connection.answer().status == 204
    assert offset_of(site.port, path) == len(DATA)
    assert patch(site.port, path, len(DATA), b"", {"Upload-Length": str(len(DATA))}).status == 204
    assert content(site.port, path) == DATA


def test_recorder_that_sends_in_pieces_loses_no_acknowledged_byte_to_completions(site: ServerProcess) -> None:
    """The completion comes between any two requests; then the upload has exactly the acknowledged bytes."""
    for _ in range(5):
        path, sent, stop = create(site.port, None), 0, threading.Event()
        statuses: list[int] = []

        def complete_at_some_time(path: str = path, statuses: list[int] = statuses) -> None:
            statuses.append(change(site, path, "complete"))

        completing = threading.Thread(target=complete_at_some_time)
        for number in range(40):
            if number == 3:
                completing.start()
            piece = DATA[sent : sent + 1000]
            answer = patch(site.port, path, sent, piece)
            if answer.status != 204:
                break
            sent += len(piece)
        completing.join()
        stop.set()
        assert statuses[0] in (200, 409)
        if statuses[0] == 200:
            assert content(site.port, path) == DATA[:sent]
        else:
            assert offset_of(site.port, path) == sent


def test_upload_whose_hook_refuses_is_not_terminated(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    hook = hooks / "pre-terminate"
    hook.write_text('#!/bin/sh\ncat > "$0.called"\necho \'{"RejectTermination": true}\'\n')
    hook.chmod(0o755)
    options = {"hooks_dir": hooks, "hooks_enabled_events": "pre-terminate"}
    with serving(tmp_path, admin_token_file=token_file(tmp_path), **options) as server:
        path = create(server.port, 5)
        answer = ask(server.port, "DELETE", f"uploads/{ids_of(path)}")
        assert answer.status == 400
        assert offset_of(server.port, path) == 0
        question = (hooks / "pre-terminate.called").read_text()
        assert TOKEN not in question
        told = json.loads(question)
        assert told["Event"]["HTTPRequest"]["Principal"] == "admin"
        assert told["Event"]["HTTPRequest"]["URI"] == f"/admin/api/uploads/{ids_of(path)}"


def test_change_is_a_line_of_the_log_with_the_administrator(tmp_path: Path) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), log_format="json") as server:
        path = create(server.port, 5)
        assert change(server, path, "terminate") == 204
        assert ask(server.port, "DELETE", "uploads/x", token="wrong").status == 401
        assert ask(server.port, "POST", "events/x/retry").status == 404

        def lines() -> list[dict[str, object]]:
            found = [json.loads(line) for line in server.log if line.startswith("{")]
            return [line for line in found if line["logger"] == "tusd_py.admin"]

        wait_until(lambda: len(lines()) == 3)
        done, refused, unknown = lines()
        assert (done["method"], done["status"], done["principal"], done["upload"], done["client"]) == (
            "DELETE", 204, "admin", ids_of(path), "127.0.0.1",
        )  # fmt: skip
        assert (refused["status"], refused["code"]) == (401, "ERR_UNAUTHORIZED")
        assert "principal" not in refused
        assert (unknown["status"], unknown.get("event"), "upload" in unknown) == (404, "x", False)


def test_upload_on_redis_and_a_shared_directory_is_ended_by_another_process(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "redis_url": shared_redis_url(),
        "redis_prefix": f"{secrets.token_hex(8)}:",
        "lock_ttl": "5s",
    }
    options["admin_token_file"] = token_file(tmp_path)
    with serving(tmp_path, **options) as one, serving(tmp_path, **options) as other:
        path = create(one.port, len(DATA))
        with stalled_patch(one.port, path, DATA, 1000):
            assert get(other.port, f"uploads/{ids_of(path)}")["locked"] is True
            assert change(other, path, "terminate") == 204
        assert head(one.port, path).status == 404
        recording = deferred(one)
        assert change(other, recording, "complete") == 200
        assert content(one.port, recording) == DATA
        assert request(other.port, "HEAD", recording, {"Tus-Resumable": "1.0.0"}).status == 200
