"""`tusd-py uploads list | show | terminate | complete | stats`, on the records of SQLite and of Redis."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.calls import FIELDS, ask, get, ids_of, token_file
from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.messages import encoded, payload
from tests.support.wire.requests import complete, content, create, head, offset_of, patch, start_patch
from tusd_py.commands.tables import line
from tusd_py.commands.uploads import HISTORY

UNKNOWN = "0123456789abcdef0123456789abcdef"
HOSTILE = "a\x1b[2Jb\r\nc\u202ed"  # a name that clears the terminal and turns the line around
DATA = payload(100_000)


@pytest.fixture(params=["sqlite", "redis"], scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that runs beside the commands."""
    folder = tmp_path_factory.mktemp("site")
    options: dict[str, Any] = {"admin_token_file": token_file(folder), "public_url": "https://example.org"}
    if request.param == "redis":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with serving(folder, **options) as server:
        yield server


def flags(server: ServerProcess) -> list[str]:
    options = {"upload_dir": server.upload_dir} | {
        name: server.options[name] for name in ("redis_url", "redis_prefix", "public_url") if name in server.options
    }
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def printed(server: ServerProcess, *arguments: str) -> Any:
    """Return what a command prints as JSON."""
    done = execute("uploads", *arguments, "--json", *flags(server))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def text(server: ServerProcess, *arguments: str) -> str:
    done = execute("uploads", *arguments, *flags(server))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_list_and_show_print_what_the_api_tells(site: ServerProcess) -> None:
    path = create(site.port, 50, {"Upload-Metadata": f"filename {encoded(HOSTILE)}"})
    told = get(site.port, f"uploads/{ids_of(path)}")
    shown = printed(site, "show", ids_of(path))
    assert list(shown) == [*FIELDS, "history"]
    assert shown == {**told, **get(site.port, f"uploads/{ids_of(path)}/history")}
    listed = printed(site, "list", "--state", "active")
    assert listed[0] == told  # the newest
    assert all(one["status"] == "active" for one in listed)
    assert printed(site, "list", "--owner", "nobody") == []
    for output in (text(site, "list"), text(site, "show", ids_of(path))):
        assert ids_of(path) in output
        assert not set(output) & set("\x1b\r\u202e")


def interrupted_recording(server: ServerProcess) -> str:
    """Make a recording that was interrupted, and then completed by an administrator; return its id."""
    path = create(server.port, None)
    with start_patch(server.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[:50_000])
        connection.wait_until_read()
    wait_until(lambda: "interrupted" in events_of(server, ids_of(path)))
    wait_until(lambda: get(server.port, f"uploads/{ids_of(path)}")["locked"] is False)
    assert ask(server.port, "POST", f"uploads/{ids_of(path)}/complete").status == 200
    wait_until(lambda: "completed" in events_of(server, ids_of(path)))
    return ids_of(path)


def events_of(server: ServerProcess, upload_id: str) -> list[str]:
    return [entry["event"] for entry in get(server.port, f"uploads/{upload_id}/history")["history"]]


def test_show_prints_the_history_beside_a_server_and_without_one(site: ServerProcess) -> None:
    upload_id = interrupted_recording(site)
    told = get(site.port, f"uploads/{upload_id}/history")["history"]
    assert {entry["event"] for entry in told} == {"created", "interrupted", "finished", "completed"}
    assert printed(site, "show", upload_id)["history"] == told
    assert site.terminate() in (0, -signal.SIGTERM)
    try:
        assert printed(site, "show", upload_id)["history"] == told
        fields, table = text(site, "show", upload_id).split("\n\n")
        assert f"id: {upload_id}" in fields.splitlines()
        title, *rows = [one.split() for one in table.splitlines()]
        assert title == ["TIME", "EVENT", "STORED", "BY", "FROM", "CODE"]
        assert [row[2] for row in rows] == [entry["event"] for entry in told]
        (completed,) = [row for row in rows if row[2] == "completed"]
        assert completed[-2:] == ["admin", "127.0.0.1"]
    finally:
        site.revive()


def test_addresses_of_the_history_are_shown_whole() -> None:
    address = "2001:db8:85a3:8d3:1319:8a2e:370:7348"
    assert address in line(HISTORY, ("2026-01-01 00:00:00", "created", "0 B", "", address, ""), 80)


def test_show_tells_who_ended_an_upload_that_is_remembered(tmp_path: Path) -> None:
    with serving(tmp_path, admin_token_file=token_file(tmp_path), gone_for="1h") as server:
        upload_id = ids_of(create(server.port, 5))
        assert ask(server.port, "DELETE", f"uploads/{upload_id}").status == 204
        wait_until(lambda: "terminated" in events_of(server, upload_id))
        shown = printed(server, "show", upload_id)
    assert shown["status"] == "terminated"
    assert [(entry["event"], entry["actor"]) for entry in shown["history"]] == [
        ("created", None),
        ("terminated", "admin"),
    ]


def test_stats_print_what_the_api_counts(site: ServerProcess) -> None:
    create(site.port, 5)
    told = get(site.port, "stats")
    assert printed(site, "stats")["by_status"].keys() == told["by_status"].keys()
    assert "together" in text(site, "stats")


def test_terminate_removes_uploads_beside_a_server(site: ServerProcess) -> None:
    paths = [create(site.port, 5) for _ in range(2)]
    output = text(site, "terminate", *map(ids_of, paths))
    assert output.splitlines() == [f"{ids_of(path)} terminated" for path in paths]
    assert [head(site.port, path).status for path in paths] == [404, 404]


def test_terminate_ends_an_upload_that_a_server_is_receiving(site: ServerProcess) -> None:
    path = create(site.port, len(DATA))
    with start_patch(site.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[:1000])
        connection.wait_until_read()
        text(site, "terminate", ids_of(path))
        assert connection.answer().status == 404


def test_complete_keeps_every_byte_of_a_recording(site: ServerProcess) -> None:
    path = create(site.port, None)
    assert patch(site.port, path, 0, DATA).status == 204
    assert text(site, "complete", ids_of(path)) == f"{ids_of(path)} completed\n"
    assert content(site.port, path) == DATA


def test_complete_of_a_recording_that_is_sending_is_refused(site: ServerProcess) -> None:
    path = create(site.port, None)
    with start_patch(site.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[:1000])
        connection.wait_until_read()
        refused = execute("uploads", "complete", ids_of(path), *flags(site))
        assert_refused_in_one_line(refused, 1, ids_of(path), "only an abandoned one")
        connection.send(DATA[1000:])
        assert connection.answer().status == 204
    assert offset_of(site.port, path) == len(DATA)


def test_upload_that_is_unknown_or_in_another_state_is_refused_with_exit_code_1(site: ServerProcess) -> None:
    path, other = create(site.port, 5), create(site.port, 5)
    for arguments in (("show", UNKNOWN), ("terminate", UNKNOWN), ("complete", UNKNOWN), ("terminate", "../etc")):
        assert_refused_in_one_line(execute("uploads", *arguments, *flags(site)), 1, arguments[1][-5:])
    assert_refused_in_one_line(execute("uploads", "complete", ids_of(path), *flags(site)), 1, "length")
    complete(site.port, path, b"12345")
    assert_refused_in_one_line(execute("uploads", "complete", ids_of(path), *flags(site)), 1, "complete")
    some = execute("uploads", "terminate", UNKNOWN, ids_of(other), "--json", *flags(site))
    assert some.returncode == 1
    assert json.loads(some.stdout)["changed"] == [ids_of(other)]


@pytest.mark.parametrize(
    "arguments",
    [("list", "--state", "foo"), ("show",), ("show", "a", "b"), ("terminate",), ("complete", "a", "b"), ("foo",), ()],
)
def test_mistake_in_the_arguments_is_refused_with_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert execute("uploads", *arguments).returncode == 2


def test_directory_without_records_is_refused_and_left_alone(tmp_path: Path) -> None:
    for arguments in (("list",), ("show", UNKNOWN), ("stats",), ("terminate", UNKNOWN)):
        done = execute("uploads", *arguments, "--upload-dir", str(tmp_path / "nothing"))
        assert_refused_in_one_line(done, 1, "there are no records")
    assert not (tmp_path / "nothing").exists()
