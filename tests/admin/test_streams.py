"""The stream of uploads for administrators, over the wire."""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.admin.calls import TOKEN, ask, ids_of, problem, token_file
from tests.admin.test_port import admin_port_of
from tests.auth.site import OTHER, OWNER, bearer, create, jwt_of, patch, token_files
from tests.support.harness import ServerProcess, serving
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.events import Listening
from tests.support.wire.requests import request

STREAM = "/admin/api/uploads/events"
TOO_MANY = "?" + "&".join(["upload=x"] * 257)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that authenticates, and has a token of the operator that is none of its principals."""
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **token_files(folder), admin_token_file=token_file(folder)) as server:
        yield server


def following(port: int, *paths: str, token: str = TOKEN) -> Listening:
    query = "&".join(f"upload={ids_of(path)}" for path in paths)
    return Listening(port, f"{STREAM}?{query}" if query else STREAM, bearer(token))


def listeners(server: ServerProcess) -> int:
    """Return the number of clients that follow uploads."""
    for line in request(server.port, "GET", "/metrics").body.decode().splitlines():
        if line.startswith('tusd_listeners{kind="sse"} '):
            return int(float(line.rpartition(" ")[2]))
    return 0


@pytest.mark.parametrize("token", [TOKEN, jwt_of("root", scope="uploads:admin")], ids=["operator", "scope"])
def test_named_uploads_of_all_owners_are_followed_to_their_ends(site: ServerProcess, token: str) -> None:
    anns, bobs = create(site, OWNER, 8, b"four"), create(site, OTHER, 8)
    with following(site.port, anns, bobs, "/files/unknown", token=token) as stream:
        assert stream.fields["content-type"] == "text/event-stream"
        assert stream.fields["cache-control"] == "no-store"
        assert stream.fields["x-content-type-options"] == "nosniff"
        first = [stream.next(), stream.next()]
        assert {(event.kind, event.data["id"], event.offset) for event in first if event is not None} == {
            ("snapshot", ids_of(anns), 4),
            ("snapshot", ids_of(bobs), 0),
        }
        assert patch(site, OWNER, anns, 4, b"more").status == 204
        assert stream.until("finished")[-1].data["id"] == ids_of(anns)
        assert ask(site.port, "DELETE", f"uploads/{ids_of(bobs)}").status == 204
        rest = list(stream)
        assert (rest[-1].kind, rest[-1].data["id"]) == ("terminated", ids_of(bobs))
    wait_until(lambda: listeners(site) == 0)


def test_stream_without_names_is_about_all_uploads(site: ServerProcess) -> None:
    before = create(site, OWNER, 8)
    with following(site.port) as stream:
        stream.until("snapshot", lambda event: event.data["id"] == ids_of(before))
        after = create(site, OTHER, 8)
        stream.until("created", lambda event: event.data["id"] == ids_of(after))
    wait_until(lambda: listeners(site) == 0)


@pytest.mark.parametrize("path", [STREAM, "/files/events"])
def test_clients_that_leave_before_their_streams_begin_are_no_errors(site: ServerProcess, path: str) -> None:
    create(site, OWNER, 8)
    for _ in range(200):
        with Connection(site.port) as connection:
            connection.send_head("GET", path, bearer(jwt_of("root", scope="uploads:admin")))
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: listeners(site) == 0)
    assert "Traceback" not in "".join(site.log)


@pytest.mark.parametrize("query", ["", "?upload=unknown"])
@pytest.mark.parametrize(
    ("token", "status"),
    [(None, 401), ("wrong", 401), (jwt_of("root", exp=1, scope="uploads:admin"), 401), (OWNER, 403)],
)
def test_stream_is_for_administrators(site: ServerProcess, token: str | None, status: int, query: str) -> None:
    assert problem(ask(site.port, "GET", f"uploads/events{query}", token=token))[0] == status


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?limit=1", "ERR_INVALID_PARAMETER"),
        ("?upload=x&foo=", "ERR_INVALID_PARAMETER"),
        (TOO_MANY, "ERR_INVALID_UPLOADS"),
    ],
)
def test_query_with_anything_else_is_refused(site: ServerProcess, query: str, code: str) -> None:
    assert problem(ask(site.port, "GET", f"uploads/events{query}")) == (400, code)


def test_other_methods_and_paths_beside_the_stream(site: ServerProcess) -> None:
    answer = ask(site.port, "DELETE", "uploads/events")
    assert problem(answer) == (405, "ERR_METHOD_NOT_ALLOWED")
    assert answer["Allow"] == "GET, HEAD, OPTIONS"
    head = ask(site.port, "HEAD", "uploads/events")
    assert (head.status, head["Content-Type"], head.body) == (200, "text/event-stream", b"")
    assert problem(ask(site.port, "GET", "uploads/%7Bid%7D"))[0] == 404
    assert problem(ask(site.port, "GET", "uploads/events/history"))[0] == 404


def test_stream_ends_with_the_right_to_it(site: ServerProcess) -> None:
    path = create(site, OWNER, 8)
    token = jwt_of("root", scope="uploads:admin", exp=time.time() + 2)
    with following(site.port, path, token=token) as stream:
        assert [event.kind for event in stream] == ["snapshot"]
        assert stream.retry == 1000


def test_stream_ends_when_the_token_of_the_operator_is_changed(tmp_path: Path) -> None:
    tokens = token_file(tmp_path)
    with serving(tmp_path, **token_files(tmp_path), admin_token_file=tokens) as site:
        path = create(site, OWNER, 8)
        with following(site.port, path) as stream:
            stream.until("snapshot")
            tokens.write_text("another-token-of-the-operator\n")
            assert list(stream) == []
            assert stream.retry == 1000
        assert problem(ask(site.port, "GET", "uploads/events"))[0] == 401
        wait_until(lambda: listeners(site) == 0)


def test_stream_ends_when_the_token_of_a_principal_is_taken_back(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"root:{hashlib.sha256(b'the-token-of-root').hexdigest()}:uploads:admin\n")
    with serving(tmp_path, api_tokens_file=tokens) as site, following(site.port, token="the-token-of-root") as stream:
        assert stream.status == 200
        tokens.write_text(f"other:{hashlib.sha256(b'the-token-of-other').hexdigest()}\n")
        assert list(stream) == []
        assert stream.retry == 1000


def test_client_of_the_same_name_takes_no_place_of_the_operator(tmp_path: Path) -> None:
    options = {**token_files(tmp_path), "admin_token_file": token_file(tmp_path), "max_listeners": 32}
    with serving(tmp_path, **options) as site, ExitStack() as stack:
        path = create(site, OWNER, 8)
        for _ in range(8):
            stream = Listening(site.port, "/files/events", bearer(jwt_of("admin")))
            assert stack.enter_context(stream).status == 200
        for _ in range(8):
            assert stack.enter_context(following(site.port, path)).status == 200
        refused = ask(site.port, "GET", f"uploads/events?upload={ids_of(path)}")
        assert problem(refused) == (503, "ERR_TOO_MANY_LISTENERS")
        assert refused["Retry-After"] == "5"


@pytest.mark.parametrize("workers", [1, 2])
def test_port_of_administrators_has_the_stream(tmp_path: Path, workers: int) -> None:
    options = {**token_files(tmp_path), "admin_token_file": token_file(tmp_path), "admin_port": 0, "workers": workers}
    with serving(tmp_path, **options) as site:
        path = create(site, OWNER, 8)
        with following(admin_port_of(site), path) as stream:
            assert stream.until("snapshot")[-1].offset == 0
            assert patch(site, OWNER, path, 0, b"whole up").status == 204
            assert stream.until("finished")[-1].offset == 8


def test_stream_tells_when_to_come_back_when_the_server_ends(tmp_path: Path) -> None:
    with serving(tmp_path, **token_files(tmp_path), admin_token_file=token_file(tmp_path)) as site:
        path = create(site, OWNER, 8)
        with following(site.port, path) as stream:
            stream.until("snapshot")
            site.process.terminate()
            assert list(stream) == []
            assert stream.retry is not None
            assert 1000 <= stream.retry <= 5000
        site.wait(60)
