"""Clients that stall, break off, contend or never end: the one that comes back goes on where the bytes end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import PROMPT, promised, promptly, scaled, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, checksum, chunk, patch_headers, payload
from tests.support.wire.requests import (
    assert_content,
    complete,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)

Cut = Callable[[Connection], None]
CUTS = {"fin": Connection.close, "half-closed": Connection.finish_sending, "reset": Connection.reset}
SENT_SIZES = [1, 1000, 300 * KIBI, 3 * MEBI]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with its default settings for all of this file: every test has uploads of its own."""
    with ServerProcess(tmp_path_factory.mktemp("clients") / "uploads") as process:
        yield process


# Stalls.


@pytest.mark.parametrize("sent", [0, *SENT_SIZES])
def test_a_stalled_patch_does_not_block_the_client_that_comes_back(server: ServerProcess, sent: int) -> None:
    data = payload(sent + 256 * KIBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, sent) as stalled:
        with promptly("HEAD"):
            offset = offset_of(server.port, path)
        assert offset == sent
        complete(server.port, path, data)
        answer = stalled.answer_or_closed(promised(PROMPT))
        assert answer is None or answer.status == 423


def test_a_patch_that_has_stalled_for_long_is_ended_by_head(server: ServerProcess) -> None:
    data = payload(2 * MEBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, MEBI) as stalled:
        time.sleep(scaled(1.0) + 0.5)  # longer than a holder may be silent (`tests.support.watched`)
        with promptly("HEAD"):
            assert offset_of(server.port, path) == MEBI
        answer = stalled.answer_or_closed(promised(PROMPT))
        assert answer is None or answer.status == 423
    complete(server.port, path, data)


def test_looking_at_a_stalled_patch_does_not_keep_it_alive(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, 300_000) as stalled, ThreadPoolExecutor(1) as executor:
        ended = executor.submit(stalled.answer_or_closed, scaled(10))
        deadline = time.monotonic() + scaled(5)
        while not ended.done():
            assert time.monotonic() < deadline, "silent for long, and not ended"
            assert offset_of(server.port, path) == 300_000
            time.sleep(0.2)
        answer = ended.result()
        assert answer is None or answer.status == 423
    complete(server.port, path, data)


def test_a_newcomer_needs_no_head_to_take_over_from_a_stalled_patch(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, 700_000):
        with promptly("the PATCH"):
            answer = patch(server.port, path, 700_000, data[700_000:])
        assert (answer.status, answer.offset) == (204, len(data))
    assert_content(server.port, path, data)


def test_a_wrong_offset_is_answered_with_the_right_one_while_another_patch_is_stalled(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, 700_000):
        with promptly("the PATCH"):
            answer = patch(server.port, path, 0, data)
        assert (answer.status, answer.offset) == (409, 700_000)
    complete(server.port, path, data)


def test_a_stalled_patch_of_deferred_length_keeps_its_bytes(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, None)
    with start_patch(server.port, path, 0, None) as stalled:
        stalled.send(chunk(data[:400_000]))
        stalled.wait_until_read()
        with promptly("HEAD"):
            answer = head(server.port, path)
        assert (answer.status, answer.offset) == (200, 400_000)
        assert answer.headers["upload-defer-length"] == "1"
        complete(server.port, path, data, {"Upload-Length": str(len(data))})


def test_a_stalled_patch_with_a_checksum_keeps_nothing(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:1000]).status == 204
    with start_patch(server.port, path, 1000, len(data) - 1000, checksum(data[1000:])) as stalled:
        stalled.send(data[1000:500_000])
        stalled.wait_until_read()
        with promptly("HEAD"):
            assert offset_of(server.port, path) == 1000
        complete(server.port, path, data, checksum(data[1000:]))


def test_an_upload_whose_patch_is_stalled_can_be_terminated(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, 500_000) as stalled:
        with promptly("DELETE"):
            assert request(server.port, "DELETE", path).status == 204
        assert head(server.port, path).status == 404
        with suppress(ConnectionError):
            stalled.send(data[500_000:])
        answer = stalled.answer_or_closed()
        assert answer is None or answer.status in (404, 423)
    assert head(server.port, path).status == 404
    assert not (server.upload_dir / path.rpartition("/")[2]).exists()


@pytest.mark.parametrize("size", [200 * KIBI, 3 * MEBI])
@pytest.mark.parametrize("sent", [0, 1, 100 * KIBI])
def test_many_stalled_patches_at_once_block_nobody(server: ServerProcess, size: int, sent: int) -> None:
    data = payload(size)
    paths = [create(server.port, len(data)) for _ in range(40)]
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(stalled_patch(server.port, path, data, sent))
        complete(server.port, create(server.port, len(data)), data)
        for path in paths[::4]:
            complete(server.port, path, data)
    for path in paths[1::4]:
        complete(server.port, path, data)


def test_a_small_buffer_is_shared_by_many_uploads(tmp_path: Path) -> None:
    """At the limit the server reads more slowly; it neither fails nor stands still."""
    data = payload(3 * MEBI)
    with ServerProcess(tmp_path / "uploads", buffer_size="1MiB") as server, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(stalled_patch(server.port, create(server.port, len(data)), data, 70 * KIBI))
        paths = [create(server.port, len(data)) for _ in range(24)]
        with ThreadPoolExecutor(len(paths)) as executor:
            for answer in executor.map(lambda path: patch(server.port, path, 0, data), paths):
                assert (answer.status, answer.offset) == (204, len(data))
        for path in paths:
            assert_content(server.port, path, data)


# Broken connections.


@pytest.mark.parametrize("sent", SENT_SIZES)
@pytest.mark.parametrize("cut", CUTS)
def test_bytes_that_the_server_has_read_survive_the_end_of_their_connection(
    server: ServerProcess, cut: str, sent: int
) -> None:
    data = payload(sent + 256 * KIBI)
    path = create(server.port, len(data))
    with stalled_patch(server.port, path, data, sent) as connection:
        CUTS[cut](connection)
        with promptly("HEAD"):
            assert offset_of(server.port, path) == sent
        complete(server.port, path, data)


@pytest.mark.parametrize("sent", SENT_SIZES)
def test_every_byte_sent_before_an_orderly_close_is_kept(server: ServerProcess, sent: int) -> None:
    data = payload(sent + 256 * KIBI)
    path = create(server.port, len(data))
    with start_patch(server.port, path, 0, len(data)) as connection:
        connection.send(data[:sent])
        connection.finish_sending()  # at once: much of it is still in the kernel
        offsets: list[int] = []

        def everything_is_stored() -> bool:
            with promptly("HEAD"):
                offsets.append(offset_of(server.port, path))
            return offsets[-1] == sent

        wait_until(everything_is_stored, f"all {sent} bytes are kept", 5)
        assert offsets == sorted(offsets)
    complete(server.port, path, data)


@pytest.mark.parametrize("cut", CUTS)
def test_a_connection_cut_in_full_flight_leaves_a_prefix(server: ServerProcess, cut: str) -> None:
    """The kernel still holds sent bytes, so that the server may get some of them after it answered HEAD."""
    data = payload(24 * MEBI)
    path = create(server.port, len(data))
    acknowledged = 0
    for _ in range(6):
        end = acknowledged + 3 * MEBI
        with start_patch(server.port, path, acknowledged, len(data) - acknowledged) as connection:
            connection.send(data[acknowledged:end])
            CUTS[cut](connection)
            with promptly("HEAD"):
                offset = offset_of(server.port, path)
            assert acknowledged <= offset <= end
            with promptly("the PATCH of the client that came back"):
                answer = patch(server.port, path, offset, data[offset : offset + KIBI])
            if answer.status == 409:
                assert offset < answer.offset <= end
            else:
                assert (answer.status, answer.offset) == (204, offset + KIBI)
            acknowledged = answer.offset
    complete(server.port, path, data)


@pytest.mark.parametrize("cut", CUTS)
def test_broken_connections_do_not_wear_the_server_out(tmp_path: Path, cut: str) -> None:
    data = payload(600 * KIBI)
    with ServerProcess(tmp_path / "uploads") as server:
        for number in range(30):
            path = create(server.port, len(data))
            sent = (0, 1, 100 * KIBI, 500 * KIBI)[number % 4]
            with stalled_patch(server.port, path, data, sent) as connection:
                CUTS[cut](connection)
                complete(server.port, path, data)


CUT_BODIES = {
    "between chunks": b"",
    "in the size of a chunk": b"40",
    "before the bytes of a chunk": b"4000\r\n",
    "after the bytes of a chunk": None,  # without the line break that ends it
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("place", CUT_BODIES)
def test_a_chunked_body_cut_anywhere_keeps_its_bytes(server: ServerProcess, place: str, cut: str) -> None:
    data = payload(600 * KIBI)
    path = create(server.port, len(data))
    whole, sent = 300 * KIBI, 300 * KIBI
    rest = CUT_BODIES[place]
    if rest is None:
        sent += 0x4000
        rest = b"4000\r\n" + data[whole:sent]
    with start_patch(server.port, path, 0, None) as connection:
        connection.send(chunk(data[:whole]) + rest)
        connection.wait_until_read()
        CUTS[cut](connection)
        with promptly("HEAD"):
            assert offset_of(server.port, path) == sent
    complete(server.port, path, data)


@pytest.mark.parametrize("cut", CUTS)
def test_a_chunked_body_cut_inside_a_chunk_keeps_the_part_that_arrived(server: ServerProcess, cut: str) -> None:
    data = payload(600 * KIBI)
    path = create(server.port, None)
    with start_patch(server.port, path, 0, None) as connection:
        connection.send(chunk(data)[: 6 + len(b"\r\n") - 1 + 200_000])  # the size line is "96000\r\n", 7 bytes
        connection.wait_until_read()
        CUTS[cut](connection)
        with promptly("HEAD"):
            answer = head(server.port, path)
        assert (answer.status, answer.offset) == (200, 200_000)
        assert "upload-length" not in answer.headers
    complete(server.port, path, data, {"Upload-Length": str(len(data))})


def test_a_body_that_is_not_chunked_as_it_says_keeps_what_was_right(server: ServerProcess) -> None:
    data = payload(600 * KIBI)
    path = create(server.port, len(data))
    with start_patch(server.port, path, 0, None) as connection:
        connection.send(chunk(data[: 100 * KIBI]) + b"not a size\r\n" + data[: 100 * KIBI])
        answer = connection.answer_or_closed()
        assert answer is None or answer.status == 400
    with promptly("HEAD"):
        assert offset_of(server.port, path) == 100 * KIBI
    complete(server.port, path, data)


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_patch_with_a_checksum_keeps_nothing(server: ServerProcess, cut: str) -> None:
    data = payload(6 * MEBI)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:MEBI]).status == 204
    with start_patch(server.port, path, MEBI, 5 * MEBI, checksum(data[MEBI:], "sha256")) as connection:
        connection.send(data[MEBI : 5 * MEBI])
        connection.wait_until_read()
        CUTS[cut](connection)
        with promptly("HEAD"):
            assert offset_of(server.port, path) == MEBI
    complete(server.port, path, data, checksum(data[MEBI:], "sha256"))


def test_a_wrong_checksum_keeps_nothing(server: ServerProcess) -> None:
    data = payload(6 * MEBI)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:MEBI]).status == 204
    answer = patch(server.port, path, MEBI, bytes(5 * MEBI), checksum(data[MEBI:]))
    assert answer.status == 460
    assert offset_of(server.port, path) == MEBI
    complete(server.port, path, data)


# Clients that never end.


def test_a_silent_request_is_ended_and_its_bytes_are_kept(tmp_path: Path) -> None:
    data = payload(MEBI)
    with ServerProcess(tmp_path / "uploads", idle_timeout="1s") as server:
        path = create(server.port, len(data))
        with stalled_patch(server.port, path, data, 300_000) as silent:
            started = time.monotonic()
            answer = silent.answer_or_closed(10)
            assert answer is None or (answer.status, answer.headers["connection"]) == (503, "close")
            assert 0.5 < time.monotonic() - started < 5
        complete(server.port, path, data)


def test_a_client_that_sends_now_and_then_is_not_idle(tmp_path: Path) -> None:
    data = payload(30_000)
    with ServerProcess(tmp_path / "uploads", idle_timeout="1s") as server:
        path = create(server.port, len(data))
        with start_patch(server.port, path, 0, len(data)) as connection:
            for start in range(0, len(data), 6_000):
                time.sleep(0.4)  # less than the limit each, more altogether
                connection.send(data[start : start + 6_000])
            answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(data))
        assert_content(server.port, path, data)


def test_a_silent_creation_with_upload_is_ended(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads", idle_timeout="1s") as server, Connection(server.port) as silent:
        data = payload(MEBI)
        headers = {"Upload-Length": str(len(data)), "Content-Type": "application/offset+octet-stream"}
        silent.start("POST", "/files", headers | {"Content-Length": str(len(data))})
        silent.send(data[:300_000])
        answer = silent.answer(10)
        assert (answer.status, answer.offset) == (201, 300_000)
        complete(server.port, answer.headers["location"].removeprefix(server.origin), data)


def test_endless_empty_patches_are_slowed_down(server: ServerProcess) -> None:
    path = create(server.port, 1000)
    with Connection(server.port) as connection:
        started = time.monotonic()
        for _ in range(8):
            connection.start(
                "PATCH",
                path,
                {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Content-Length": "0"},
            )
            answer = connection.answer()
            assert (answer.status, answer.offset) == (204, 0)
        assert time.monotonic() - started >= 0.5
    assert patch(server.port, path, 0, bytes(1000)).status == 204


def test_a_connection_whose_request_was_answered_before_its_small_body_ends(server: ServerProcess) -> None:
    """Under any protocol class: one byte of the body must not keep it for ever."""
    with start_patch(server.port, "/files/unknown", 0, 10) as connection:
        assert connection.answer().status == 404
        with suppress(ConnectionError):
            connection.send(b"x")
            assert connection.socket.recv(1) == b""


def test_a_connection_whose_refused_body_has_arrived_stays_open(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with Connection(server.port) as connection:
        fields = "".join(f"{name}: {value}\r\n" for name, value in patch_headers(5, {"Content-Length": "5"}).items())
        head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n{fields}\r\n"
        connection.send(head.encode() + b"hello")
        assert connection.answer().status == 409
        connection.start("HEAD", path, {})
        assert connection.answer().status == 200
