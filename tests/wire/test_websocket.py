"""Live progress as a WebSocket: the messages of the stream of events, answers to the client, ends, refusals."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.harness import ServerProcess, serving
from tests.support.server_connections import metric
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.events import Listening
from tests.support.wire.messages import identity
from tests.support.wire.requests import create, offset_of, patch, request, start_patch
from tests.support.wire.websockets import WebSocket


def following(server: ServerProcess, path: str, headers: dict[str, str] | None = None) -> WebSocket:
    socket = WebSocket(server.port, f"{path}/events", headers)
    assert socket.was_accepted, socket.text
    return socket


def test_messages_are_those_of_the_stream_of_events(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with following(server, path) as socket, Listening(server.port, f"{path}/events") as stream:
        first, second = socket.next(), stream.next()
        assert first is not None
        assert second is not None
        assert first.pop("time") <= second.data.pop("time")
        assert first == second.data
        with start_patch(server.port, path, 0, 10) as sender:
            sender.send(b"four")
            sender.wait_until_read()
        assert patch(server.port, path, 4, b"secret").status == 204
        assert list(socket) == [event.data for event in stream]
        assert socket.code == 1000


def test_finished_upload_is_a_snapshot_and_the_end(server: ServerProcess) -> None:
    with following(server, create(server.port, 4, body=b"four")) as socket:
        assert socket.rest() == ["snapshot"]
        assert (socket.code, socket.reason) == (1000, "")


def test_termination_ends_the_socket(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with following(server, path) as socket:
        socket.until("snapshot")
        assert request(server.port, "DELETE", path).status == 204
        assert socket.rest() == ["terminated"]
        assert socket.code == 1000
    assert WebSocket(server.port, f"{path}/events").status == 404


def test_ping_is_answered_by_pong(server: ServerProcess) -> None:
    with following(server, create(server.port, 10)) as socket:
        socket.until("snapshot")
        for _ in range(3):
            socket.send({"type": "ping"})
        assert [socket.next() for _ in range(3)] == [{"type": "pong"}] * 3


def test_get_status_is_answered_by_a_snapshot(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with following(server, path) as socket:
        socket.until("snapshot")
        assert patch(server.port, path, 0, b"four").status == 204
        socket.until("progress")
        for _ in range(2):
            socket.send({"type": "get_status"})
            status = socket.next()
            assert status is not None
            assert (status["type"], status["offset"], status["id"]) == ("snapshot", 4, identity(path))


def test_get_status_of_several_uploads_tells_of_each(server: ServerProcess) -> None:
    paths = [create(server.port, 10) for _ in range(3)]
    query = "&".join(f"upload={identity(path)}" for path in paths)
    with WebSocket(server.port, f"/files/events?{query}") as socket:
        snapshots = [socket.next() for _ in paths]
        socket.send({"type": "get_status"})
        again = [socket.next() for _ in paths]
        for messages in (snapshots, again):
            assert {message["id"] for message in messages if message} == {identity(path) for path in paths}
        for path in paths:
            assert request(server.port, "DELETE", path).status == 204
        assert socket.rest() == ["terminated"] * 3
        assert socket.code == 1000


@pytest.mark.parametrize(
    "text", ["", "x", "{", "null", "[]", "17", '{"type":null}', '{"type":"subscribe"}', "[" * 4000, '{"type":["ping"]}']
)
def test_message_that_is_none_is_answered_by_an_error(server: ServerProcess, text: str) -> None:
    with following(server, create(server.port, 10)) as socket:
        socket.until("snapshot")
        socket.send(text)
        error = socket.next()
        assert error is not None
        assert (error["type"], error["code"]) == ("error", "ERR_INVALID_MESSAGE")
        socket.send({"type": "ping"})
        assert socket.next() == {"type": "pong"}


@pytest.mark.parametrize(("message", "code"), [(b"{}", 1003), ("x" * 4097, 1009), ("é" * 4000, 1009)])
def test_message_that_is_no_short_text_ends_the_socket(server: ServerProcess, message: str | bytes, code: int) -> None:
    with following(server, create(server.port, 10)) as socket:
        socket.until("snapshot")
        socket.send(message)
        assert socket.rest() == []
        assert socket.code == code


def test_flood_of_messages_ends_the_socket(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with following(server, path) as socket:
        socket.until("snapshot")
        with contextlib.suppress(ConnectionClosed):
            for _ in range(60):
                socket.send({"type": "ping"})
        assert set(socket.rest()) <= {"pong"}
        assert socket.code == 1008
    assert offset_of(server.port, path) == 0


def test_accepted_socket_is_not_compressed(server: ServerProcess) -> None:
    with following(server, create(server.port, 10)) as socket:
        assert socket.connection.protocol.extensions == []
        assert "Sec-WebSocket-Extensions" not in socket.connection.response.headers


# Refusals.


@pytest.mark.parametrize("path", ["/files/unknown/events", "/files/a%2Fb/events", "/files/x/y/events"])
def test_handshake_for_an_unknown_upload_is_answered_404(server: ServerProcess, path: str) -> None:
    refused = WebSocket(server.port, path)
    assert refused.status == 404
    assert refused.text.startswith("ERR_UPLOAD_NOT_FOUND")
    assert refused.fields["Tus-Resumable"] == "1.0.0"


def test_handshake_without_names_is_answered_400(server: ServerProcess) -> None:
    assert WebSocket(server.port, "/files/events").status == 400


def test_gone_upload_is_answered_as_by_head(tmp_path: Path) -> None:
    with serving(tmp_path, gone_for="1h") as server:
        path = create(server.port, 10)
        assert request(server.port, "DELETE", path).status == 204
        assert WebSocket(server.port, f"{path}/events").status == 410


def test_override_of_the_method_does_nothing(server: ServerProcess) -> None:
    path = create(server.port, 10)
    for method in ("DELETE", "HEAD", "OPTIONS", "PATCH"):
        with following(server, path, {"X-HTTP-Method-Override": method}) as socket:
            assert socket.next() is not None
    assert offset_of(server.port, path) == 0


def test_number_of_an_event_does_nothing(server: ServerProcess) -> None:
    path = create(server.port, 4, body=b"four")
    with Listening(server.port, f"{path}/events") as stream:
        (snapshot,) = list(stream)
    with following(server, path, {"Last-Event-ID": str(snapshot.number)}) as socket:
        assert socket.rest() == ["snapshot"]


# Origins.

OF_BROWSERS = (  # credentials that a browser adds for every page
    ("Cookie", "session=1"),
    ("Authorization", "Basic YW5uOnB3"),
    ("Authorization", "Digest username=ann"),
    ("Authorization", "Negotiate YIIC"),
    ("Authorization", "NTLM TlRM"),
)


def test_page_of_any_origin_is_let_in_unless_origins_are_named(server: ServerProcess) -> None:
    path = create(server.port, 10)
    for origin in ("https://page.example", "null"):
        with following(server, path, {"Origin": origin}) as socket:
            assert socket.next() is not None
        with following(server, path, {"Origin": origin, "Authorization": "Bearer of-no-browser"}) as socket:
            assert socket.next() is not None
        for name, value in OF_BROWSERS:
            assert WebSocket(server.port, f"{path}/events", {"Origin": origin, name: value}).status == 403, value


@pytest.mark.parametrize("origins", ["https://page.example", ""])
def test_page_of_another_origin_is_refused(tmp_path: Path, origins: str) -> None:
    with serving(tmp_path, cors_origins=origins) as server:
        path = create(server.port, 10)
        foreign = ("https://evil.example", "null", "https://page.example.evil.example", "http://127.0.0.1:1", "", "//")
        for origin in foreign:
            refused = WebSocket(server.port, f"{path}/events", {"Origin": origin})
            assert refused.status == 403, origin
            assert refused.text.startswith("ERR_ORIGIN_NOT_ALLOWED")
        own = [server.origin, server.origin.replace("http:", "https:")]
        for origin in (*own, *([origins] if origins else [])):
            with following(server, path, {"Origin": origin}) as socket:
                assert socket.next() is not None
        with following(server, path) as socket:
            assert socket.next() is not None


# Limits and shutdown.


def test_both_kinds_of_listeners_are_counted_together(tmp_path: Path) -> None:
    with serving(tmp_path, max_listeners=2) as server:
        path = create(server.port, 10)
        with following(server, path) as socket, Listening(server.port, f"{path}/events") as stream:
            assert socket.next() is not None
            assert stream.next() is not None
            assert metric(server.port, "tusd_listeners") == 2
            assert metric(server.port, 'tusd_listeners{kind="websocket"}') == 1
            refused = WebSocket(server.port, f"{path}/events")
            assert (refused.status, refused.fields["Retry-After"]) == (503, "5")
            assert request(server.port, "GET", f"{path}/events").status == 503
        wait_until(lambda: metric(server.port, "tusd_listeners") == 0, "the server has noticed that both have left")
        assert following(server, path).next() is not None


def test_one_client_has_a_part_of_the_places(tmp_path: Path) -> None:
    with serving(tmp_path, max_listeners=32) as server, ExitStack() as stack:
        path = create(server.port, 10)
        for _ in range(4):
            assert stack.enter_context(following(server, path)).next() is not None
            assert stack.enter_context(Listening(server.port, f"{path}/events")).next() is not None
        assert WebSocket(server.port, f"{path}/events").status == 503
        elsewhere = WebSocket(server.port, f"{path}/events", source_address=("127.0.0.2", 0))
        assert stack.enter_context(elsewhere).was_accepted


def test_shutdown_closes_the_socket_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        path = create(server.port, 10)
        with following(server, path) as socket:
            socket.until("snapshot")
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert socket.rest() == []
            assert socket.code == 1012
        server.wait(TIMEOUT)
        assert time.monotonic() - started < 5
    with serving(tmp_path) as server, following(server, path) as socket:
        assert socket.next() is not None


def test_requests_are_logged_and_counted(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", log_format="json") as server:
        path = create(server.port, 4)
        with following(server, path) as socket:
            socket.until("snapshot")
            assert patch(server.port, path, 0, b"four").status == 204
            socket.rest()
        assert WebSocket(server.port, "/files/unknown/events").status == 404
        wait_until(lambda: any('"unknown"' in line for line in server.log), "the refused request is logged")
        lines = [json.loads(line) for line in server.log if line.startswith("{") and "/events" in line]
        lines = [line for line in lines if line["message"] == "request"]
        assert [(line["status"], line["method"]) for line in lines] == [(101, "GET"), (404, "GET")]
