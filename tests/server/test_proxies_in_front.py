"""Proxies in front, as deploy/ configures them: nothing is held back, refused or made up between client and server."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.front import PROXIES, in_front
from tests.support.harness import ServerProcess
from tests.support.timing import promptly, scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, Answer, creation_headers, identity, path_of, payload
from tests.support.wire.promised import ask_on
from tests.support.wire.requests import (
    RESTARTS_UPLOAD,
    assert_content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)
from tests.support.wire.websockets import WebSocket

METADATA_SIZE = 16 * KIBI  # the default of --metadata-size
PARTS = 1000
TIMEOUT = scaled(30)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("behind") / "uploads", trusted_proxies="127.0.0.1") as server:
        yield server


@pytest.fixture(scope="module", params=PROXIES)
def front(
    request: pytest.FixtureRequest, behind: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a proxy."""
    with in_front(request.param, tmp_path_factory.mktemp("front") / request.param, behind.port) as port:
        yield port


@pytest.fixture(scope="module")
def partials(behind: ServerProcess) -> list[str]:
    """The ids of a thousand partial uploads of a byte each."""
    headers = creation_headers(1, b"x") | {"Upload-Concat": "partial"}
    with Connection(behind.port) as connection:
        answers = [ask_on(connection, "POST", "/files", headers, b"x") for _ in range(PARTS)]
    return [identity(answer["Location"]) for answer in answers]


def largest_metadata(seed: int) -> str:
    room = METADATA_SIZE - len("filename ")
    return "filename " + base64.b64encode(payload(room // 4 * 3, seed)).decode()


def test_the_longest_metadata_comes_back_as_it_was_sent(front: int) -> None:
    metadata = largest_metadata(front)
    assert len(metadata) > METADATA_SIZE - 4
    path = create(front, 3, {"Upload-Metadata": metadata})
    answer = head(front, path)
    assert (answer.status, answer.headers["upload-metadata"]) == (200, metadata)
    assert answer.headers["cache-control"] == "no-store"
    assert patch(front, path, 0, b"abc").status == 204


def test_location_names_the_proxy(front: int) -> None:
    answer = request(front, "POST", "/files", {"Upload-Length": "1", "Content-Length": "0"})
    assert answer.status == 201
    assert answer.headers["location"].startswith(f"http://127.0.0.1:{front}/files/")


def test_a_thousand_parts_are_put_together_and_named_again(front: int, partials: list[str]) -> None:
    urls = " ".join(f"http://127.0.0.1:{front}/files/{partial}" for partial in partials)
    headers = {"Upload-Concat": f"final;{urls}", "Upload-Metadata": largest_metadata(front), "Content-Length": "0"}
    made = request(front, "POST", "/files", headers)
    assert made.status == 201, made
    answer = head(front, path_of(made))
    assert (answer.status, answer.offset) == (200, PARTS)
    assert answer.headers["upload-concat"] == headers["Upload-Concat"]
    assert answer.headers["upload-metadata"] == headers["Upload-Metadata"]


def test_a_body_is_passed_on_while_it_comes(front: int) -> None:
    data = payload(3 * MEBI)
    path = create(front, len(data))
    with stalled_patch(front, path, data, 2 * MEBI):
        wait_until(lambda: offset_of(front, path) == 2 * MEBI, "what was sent is stored")
        with promptly("the next PATCH"):
            assert patch(front, path, 2 * MEBI, data[2 * MEBI :]).status == 204
    assert_content(front, path, data)


def test_stored_bytes_stay_when_the_connection_through_a_proxy_breaks(front: int) -> None:
    data = payload(3 * MEBI)
    path = create(front, len(data))
    with start_patch(front, path, 0, len(data)) as connection:
        connection.send(data[:MEBI])
        wait_until(lambda: offset_of(front, path) == MEBI, "what was sent is stored")
        connection.send(data[MEBI : 2 * MEBI])
        connection.reset()
    with promptly("HEAD"):
        offset = offset_of(front, path)
    assert offset >= MEBI
    wait_until(lambda: patch_from_where_it_is(front, path, data).status == 204, "the rest is taken")
    assert_content(front, path, data)


def patch_from_where_it_is(port: int, path: str, data: bytes) -> Answer:
    """Send the rest from the offset of HEAD; a proxy may still pass on bytes of a broken connection."""
    offset = offset_of(port, path)
    answer = patch(port, path, offset, data[offset:])
    assert answer.status in (204, 409, 423), answer
    return answer


def test_head_is_not_answered_from_a_cache(front: int) -> None:
    path = create(front, 10)
    for offset in range(10):
        assert offset_of(front, path) == offset
        assert patch(front, path, offset, b"x").status == 204
    assert offset_of(front, path) == 10


@pytest.mark.parametrize(("trusted", "warnings"), [("127.0.0.1", 1), ("192.0.2.1", 0)])
def test_fields_too_long_for_the_buffers_of_nginx_are_logged_once(tmp_path: Path, trusted: str, warnings: int) -> None:
    with ServerProcess(tmp_path / "uploads", trusted_proxies=trusted) as server:
        short = create(server.port, 1, {"Upload-Metadata": "filename " + "QUJD" * 500})
        path = create(server.port, 1, {"Upload-Metadata": "filename " + "QUJD" * 1000})
        for _ in range(3):
            assert head(server.port, short).status == head(server.port, path).status == 200
        server.terminate()
        said = [line for line in server.log if "proxy_buffer_size" in line]
    assert len(said) == warnings
    assert all(path.rpartition("/")[2] in line for line in said)


def look(port: int, path: str) -> Answer | None:
    """Return the answer to HEAD, or None if the connection was closed without one."""
    with contextlib.suppress(ConnectionError):
        return head(port, path)
    return None


@pytest.mark.parametrize("kind", PROXIES)
def test_a_client_goes_on_where_it_was_after_the_server_was_restarted(kind: str, tmp_path: Path) -> None:
    data = payload(3 * MEBI)
    with (
        ServerProcess(tmp_path / "uploads", trusted_proxies="127.0.0.1") as server,
        in_front(kind, tmp_path / "front", server.port) as front,
    ):
        path = create(front, len(data))
        with start_patch(front, path, 0, len(data)) as connection:
            connection.send(data[:MEBI])
            wait_until(lambda: offset_of(front, path) == MEBI, "what was sent is stored")
            server.kill()
            answers: list[Answer | None] = []
            looking = threading.Thread(target=lambda: answers.append(look(front, path)))
            looking.start()
            time.sleep(2)  # without a server
            server.revive()
            looking.join(TIMEOUT)
            assert not looking.is_alive()
            with contextlib.suppress(ConnectionError):
                connection.send(data[MEBI:])  # Caddy learns of a broken connection only when it has more to send
            assert connection.answer_or_closed() is None
        for answer in answers:  # while there was no server
            assert answer is None or answer.status in (200, 423)
            assert answer is None or answer.status not in RESTARTS_UPLOAD
        wait_until(lambda: (look(front, path) or Answer(0, (), b"")).status == 200, "the proxy finds the server again")
        offset = offset_of(front, path)
        assert offset == MEBI
        assert patch(front, path, offset, data[offset:]).status == 204
        assert_content(front, path, data)


@pytest.mark.parametrize("kind", PROXIES)
def test_no_answer_of_the_proxy_itself_makes_a_client_begin_again(kind: str, tmp_path: Path) -> None:
    """With no server behind it at all, for longer than the proxy waits for one."""
    with ServerProcess(tmp_path / "uploads", trusted_proxies="127.0.0.1") as server:
        path = create(server.port, 10)
        with in_front(kind, tmp_path / "front", server.port, patient=False) as front:
            server.kill()
            assert look(front, path) is None


def test_socket_goes_through(front: int) -> None:
    path = create(front, 10)
    for origin in (f"http://127.0.0.1:{front}", f"https://127.0.0.1:{front}"):
        with WebSocket(front, f"{path}/events", {"Origin": origin}) as socket:
            assert socket.was_accepted
            socket.until("snapshot")
            socket.send({"type": "ping"})
            assert socket.next() == {"type": "pong"}
    with WebSocket(front, f"{path}/events") as socket:
        socket.until("snapshot")
        assert patch(front, path, 0, b"x" * 10).status == 204
        assert socket.rest()[-1] == "finished"
        assert socket.code == 1000
    refused = WebSocket(front, "/files/unknown/events")
    assert (refused.status, refused.text.partition(":")[0]) == (404, "ERR_UPLOAD_NOT_FOUND")
