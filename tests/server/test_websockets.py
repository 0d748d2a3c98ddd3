"""WebSockets of a hostile client: handshakes, frames, floods and silence, and the connections that they leave."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.process_memory import cpu_seconds, resident_size
from tests.support.server_connections import (
    answered_meanwhile,
    interrupt_until_listeners_leave,
    metric,
    open_connections,
    pour,
)
from tests.support.timing import PROMPT, promptly, scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS
from tests.support.wire.raw_websockets import ACCEPT, BINARY, CLOSE, PING, PONG, TEXT, UPGRADE, RawWebSocket, frame
from tests.support.wire.requests import create, offset_of, patch, request

pytestmark = pytest.mark.integrated
GET_STATUS = frame(TEXT, b'{"type":"get_status"}')
APP_PING = frame(TEXT, b'{"type":"ping"}')
CLOSE_WAIT = 2.0  # seconds in which a client may answer a close


def opened(server: ServerProcess, path: str) -> RawWebSocket:
    socket = RawWebSocket(server.port, f"{path}/events")
    assert socket.status == 101
    assert socket.next_message()["type"] == "snapshot"
    return socket


# Handshakes.


def test_acceptance_is_that_of_the_rfc(server: ServerProcess) -> None:
    with RawWebSocket(server.port, f"{create(server.port, 10)}/events") as socket:
        assert (socket.status, socket.fields["sec-websocket-accept"]) == (101, ACCEPT)
        assert (socket.fields["upgrade"], socket.fields["connection"]) == ("websocket", "Upgrade")
        assert "transfer-encoding" not in socket.fields
        assert "content-length" not in socket.fields


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": "13, 8"}, 426),
        ({"Sec-WebSocket-Version": ("13", "13")}, 426),
        ({"Sec-WebSocket-Version": ""}, 426),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZQ=="}, 400),
        ({"Sec-WebSocket-Key": "not base64"}, 400),
        ({"Sec-WebSocket-Key": ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ==")}, 400),
        ({"Content-Length": "4"}, 400),
        ({"Transfer-Encoding": "chunked"}, 400),
    ],
)
def test_handshake_that_is_none_is_refused_and_the_connection_ends(
    server: ServerProcess, headers: dict[str, str | tuple[str, ...]], status: int
) -> None:
    path = create(server.port, 10)
    smuggled = b"DELETE %s HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n" % path.encode()
    with RawWebSocket(server.port, f"{path}/events", headers, behind=smuggled) as socket:
        assert socket.status == status
        assert status != 426 or socket.fields["sec-websocket-version"] == "13"
        socket.refusal()
        assert socket.is_closed()
    assert offset_of(server.port, path) == 0


@pytest.mark.parametrize("path", ["/files/unknown/events", "/files/events"])
def test_request_behind_a_refused_handshake_is_not_carried_out(server: ServerProcess, path: str) -> None:
    kept = create(server.port, 10)
    smuggled = b"DELETE %s HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n" % kept.encode()
    with RawWebSocket(server.port, path, behind=smuggled) as socket:
        assert socket.status in (400, 404)
        socket.refusal()
        assert socket.is_closed()
    with RawWebSocket(server.port, path) as socket:
        assert socket.fields["connection"] == "close"
        socket.refusal()
        assert socket.is_closed()
    assert offset_of(server.port, kept) == 0


def test_frames_before_the_answer_are_refused(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with RawWebSocket(server.port, f"{path}/events", behind=APP_PING) as socket:
        assert socket.status == 400
    wait_until(lambda: metric(server.port, "tusd_listeners") == 0, "no listener is left")


@pytest.mark.parametrize(
    ("method", "headers", "version"),
    [
        ("GET", {"Upgrade": "h2c"}, "1.1"),
        ("GET", {"Connection": "close"}, "1.1"),
        ("GET", {}, "1.0"),
        ("HEAD", {}, "1.1"),
    ],
)
def test_other_offers_are_ignored(server: ServerProcess, method: str, headers: dict[str, str], version: str) -> None:
    path = create(server.port, 4, body=b"four")
    with Connection(server.port) as connection:
        connection.send_head(method, f"{path}/events", {**UPGRADE, **headers}, version=version)
        status, fields = connection._read_head()
        assert (status, dict(fields)["content-type"]) == (200, "text/event-stream")


def test_offer_to_an_upload_is_ignored(server: ServerProcess) -> None:
    path = create(server.port, 4, body=b"four")
    answer = request(server.port, "GET", path, UPGRADE)
    assert (answer.status, answer.body) == (200, b"four")
    with Connection(server.port) as connection:
        for _ in range(2):
            connection.send_head("HEAD", path, {**TUS, **UPGRADE})
            assert connection.answer().offset == 4


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_handshake_may_follow_other_requests(server: ServerProcess, version: str) -> None:
    path = create(server.port, 10)
    with Connection(server.port) as connection:
        head = connection.head_of("HEAD", path, {**TUS, "Connection": "keep-alive"})
        socket = connection.head_of("GET", f"{path}/events", UPGRADE, version=version)
        connection.send(head + socket)
        assert connection.answer(method="HEAD").status == 200
        status, _ = connection._read_head()
        assert status == (101 if version == "1.1" else 200)


def test_slow_handshake_has_the_deadline_of_a_head(tmp_path: Path) -> None:
    with serving(tmp_path, header_timeout="1s") as server, Connection(server.port) as connection:
        head = connection.head_of("GET", f"{create(server.port, 10)}/events", UPGRADE)
        connection.send(head[:-2])
        assert connection.answer().status == 408


# Frames.


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(TEXT, b"{}", masked=False), 1002),
        (frame(TEXT, b"{}", reserved=4), 1002),
        (frame(3, b"{}"), 1002),
        (frame(11, b""), 1002),
        (frame(0, b"{}"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(0, b"\x28"), 1007),
        (frame(BINARY, b"{}"), 1003),
        (frame(TEXT, b"x" * 4097), 1009),
        (frame(TEXT, b"x" * 4000, fin=False) + frame(0, b"x" * 97), 1009),
        (b"\x81\xff" + b"\x7f" * 8, 1009),
        (b"\x81\xff" + b"\xff" * 8, 1009),
        (APP_PING * 200, 1008),
        (frame(PING, b"x") * 200, 1008),
        (frame(PONG) * 200, 1008),
        (frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * 200, 1008),
        (frame(CLOSE, b"\x03\xe8"), 1000),
        (frame(CLOSE, b"\x00\x01"), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
)
def test_frame_that_is_none_ends_the_socket(server: ServerProcess, frames: bytes, code: int) -> None:
    path = create(server.port, 10)
    with opened(server, path) as socket:
        socket.send(frames)
        assert socket.code() == code
        with promptly("the connection ends", CLOSE_WAIT + PROMPT):
            assert socket.is_closed()
    wait_until(lambda: metric(server.port, "tusd_listeners") == 0, "the listener is gone")
    assert open_connections(server.port) == 0


def test_close_without_a_code_is_answered(server: ServerProcess) -> None:
    with opened(server, create(server.port, 10)) as socket:
        socket.send(frame(CLOSE))
        assert socket.next_frame() == (CLOSE, b"")
        assert socket.is_closed()


def test_pieces_of_a_message_and_pings_between_them_are_one(server: ServerProcess) -> None:
    with opened(server, create(server.port, 10)) as socket:
        for piece in (
            frame(TEXT, b'{"type":', fin=False),
            frame(PING, b"between"),
            frame(0, b"", fin=False),
            frame(0, b'"ping"}'),
        ):
            for number in range(len(piece)):
                socket.send(piece[number : number + 1])
        assert socket.next_frame() == (PONG, b"between")
        assert socket.next_message() == {"type": "pong"}


def test_client_that_does_not_answer_the_close_is_closed(server: ServerProcess) -> None:
    path = create(server.port, 4)
    with opened(server, path) as socket:
        assert patch(server.port, path, 0, b"four").status == 204
        assert socket.next_message()["type"] == "finished"
        assert socket.code() == 1000
        with promptly("the connection ends", CLOSE_WAIT + PROMPT):
            assert socket.is_closed()
    assert open_connections(server.port) == 0


@pytest.mark.long
def test_client_that_vanishes_in_silence_is_found(tmp_path: Path) -> None:
    """The client reads nothing and answers no ping, as one whose machine has lost its power."""
    with serving(tmp_path) as server, opened(server, create(server.port, 10)):
        assert metric(server.port, "tusd_listeners") == 1
        wait_until(lambda: metric(server.port, "tusd_listeners") == 0, "the client is given up", 60)
        assert open_connections(server.port) == 0


@pytest.mark.long
def test_client_that_answers_pings_stays(tmp_path: Path) -> None:
    with serving(tmp_path) as server, opened(server, create(server.port, 10)) as socket:
        for _ in range(2):  # the second one would not come to a client that is given up
            opcode, payload = socket.next_frame(scaled(40))
            assert opcode == PING
            socket.send(frame(PONG, payload))
        assert metric(server.port, "tusd_listeners") == 1


@pytest.mark.parametrize("reset", [False, True])
def test_client_that_leaves_without_a_close_is_gone(server: ServerProcess, reset: bool) -> None:
    socket = opened(server, create(server.port, 10))
    (socket.reset if reset else socket.close)()
    wait_until(lambda: metric(server.port, "tusd_listeners") == 0, "the server has noticed that the client left")
    assert open_connections(server.port) == 0


@pytest.mark.parametrize("piece", [APP_PING, GET_STATUS, frame(PING, b"x" * 125), frame(TEXT, b"[" * 4000), b"\0"])
def test_flood_stops_nobody(server: ServerProcess, piece: bytes) -> None:
    path = create(server.port, 10)
    with opened(server, path) as socket:
        socket.socket.settimeout(scaled(20))
        used, before = cpu_seconds(server.pid), resident_size(server.pid)
        with answered_meanwhile(server.port, path):
            assert pour(socket, piece * (60_000 // len(piece)), 256 << 20) < 256 << 20
        assert cpu_seconds(server.pid) - used < scaled(4)
        assert resident_size(server.pid) - before < 16 << 20
    wait_until(lambda: metric(server.port, "tusd_listeners") == 0, "the listener is gone")


# Silence and limits.


@pytest.mark.long
@pytest.mark.fresh_interpreter
def test_listener_that_does_not_read_holds_nothing_and_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path, idle_timeout="2s") as server:
        path = create(server.port, None)
        assert patch(server.port, path, 0, b"x").status == 204
        with RawWebSocket(server.port, f"{path}/events", receive_buffer=1024):
            interrupt_until_listeners_leave(server, path)
        assert metric(server.port, "tusd_connections_ended_total") == 1


def test_shutdown_waits_for_no_client(tmp_path: Path) -> None:
    """The clients neither read nor answer the close."""
    with serving(tmp_path, shutdown_grace="30s") as server:
        path = create(server.port, 10)
        with ExitStack() as stack:
            sockets = [stack.enter_context(opened(server, path)) for _ in range(5)]
            started = time.monotonic()
            server.process.terminate()
            server.wait(scaled(20))
            assert time.monotonic() - started < scaled(5)
            assert [socket.code() for socket in sockets] == [1012] * 5


def test_sockets_are_connections_of_the_limit(tmp_path: Path) -> None:
    """Open ones keep their places; those whose handshake was refused leave none."""
    with serving(tmp_path, max_connections=8) as server:
        path = create(server.port, 10)
        for _ in range(40):
            with RawWebSocket(server.port, "/files/unknown/events") as socket:
                assert socket.status == 404
        with ExitStack() as stack:
            sockets = [stack.enter_context(opened(server, path)) for _ in range(4)]
            assert open_connections(server.port) == 4
            with RawWebSocket(server.port, f"{path}/events") as refused:
                assert refused.status == 503
                assert refused.fields["retry-after"] == "5"
            for _ in range(20):
                assert offset_of(server.port, path) == 0
            for socket in sockets:
                socket.send(APP_PING)
                assert socket.next_message() == {"type": "pong"}
        wait_until(lambda: open_connections(server.port) == 0, "all have left")
