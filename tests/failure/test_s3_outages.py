"""S3 that is away, hangs or refuses the clock, and a server that freezes: HEAD is answered, and nothing is lost."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess
from tests.support.hosts import LEASE, stopped
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.s3_rig import BOUNDED, DATA, GIVE_UP, again, called, no_fault
from tests.support.s3_server import FaultyProxy, HeldRequests, s3_server
from tests.support.s3_uploads import PART, Place, serving
from tests.support.timing import TIMEOUT, promptly
from tests.support.wire.messages import MEBI, payload
from tests.support.wire.requests import (
    assert_content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)


class WrongClock(FaultyProxy):
    """A proxy that refuses the time in every request, as S3 does if it is a quarter of an hour off."""

    wrong = False

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        if not self.wrong:
            return super().forward(method, target, headers, body)
        error = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
        return 403, {"Content-Type": "application/xml", "Content-Length": str(len(error))}, error


def test_a_host_whose_clock_s3_refuses_changes_nothing(tmp_path: Path) -> None:
    place = Place(s3_server())
    proxy = WrongClock(place.server)
    with proxy, serving(tmp_path, place, proxy.server.endpoint) as server:
        sent = {create(server.port, len(DATA)): size for size in (1000, PART, 2 * PART + 1000)}
        for path, size in sent.items():
            assert patch(server.port, path, 0, DATA[:size]).offset == size
        server.restart()  # it has nothing in memory
        proxy.wrong = True
        for path, size in sent.items():
            for answer in (
                head(server.port, path),
                patch(server.port, path, size, DATA[size:]),
                head(server.port, path),
            ):
                assert answer.status in (423, 500), answer
                assert "retry-after" in answer.headers
            assert head(server.port, path).status == 423
        assert any("its clock is wrong" in line for line in server.log)
        proxy.wrong = False
        for path, size in sent.items():
            assert offset_of(server.port, path) == size
            assert patch(server.port, path, size, DATA[size:]).offset == len(DATA)
            place.assert_object(path, DATA)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[ServerProcess, FaultyNetwork, Place]]:
    """A server whose way to S3 can be stopped."""
    place = Place(s3_server())
    with (
        FaultyNetwork(place.server.port) as trouble,
        serving(tmp_path, place, f"http://127.0.0.1:{trouble.port}", shutdown_grace="5s") as server,
    ):
        try:
            yield server, trouble, place
        finally:
            trouble.resume()


def looked_at(server: ServerProcess, path: str, offset: int) -> None:
    """Assert that HEAD answers the offset, or tells the client to try again."""
    with promptly("HEAD", BOUNDED):
        answer = head(server.port, path)
    assert answer.status in (200, 423), answer
    if answer.status == 200:
        assert answer.offset == offset
    else:
        assert "retry-after" in answer.headers


def test_s3_is_down_during_patches(network: tuple[ServerProcess, FaultyNetwork, Place]) -> None:
    server, trouble, place = network
    paths = {size: create(server.port, len(DATA), body=DATA[:size]) for size in (0, 1000, PART + 1000)}
    running = create(server.port, len(DATA))
    with stalled_patch(server.port, running, DATA, PART + 2000) as connection:
        assert offset_of(server.port, running) == PART + 2000
        trouble.refuse()
        for size, path in paths.items():
            looked_at(server, path, size)
        with suppress(ConnectionError):
            connection.send(DATA[PART + 2000 :])
        for offset, path in paths.items():
            started = time.monotonic()
            answer = patch(server.port, path, offset, DATA[offset : offset + 1000])
            print(f"PATCH at {offset}: {answer.status} after {time.monotonic() - started:.1f} s")
            assert answer.status in (500, 503), answer
            assert "retry-after" in answer.headers
            looked_at(server, path, offset)
        answer_or_none = connection.answer_or_closed(GIVE_UP)
        # 423 if it had been silent for a second, on a slow machine, when its offset was asked for.
        assert answer_or_none is None or answer_or_none.status in (423, 500, 503)
    assert request(server.port, "GET", "/healthz").status == 200
    trouble.resume()
    paths[PART + 2000] = running
    for offset, path in paths.items():
        answer = again(lambda path=path: head(server.port, path))  # type: ignore[misc]
        assert (answer.status, answer.offset) == (200, offset)
        assert patch(server.port, path, offset, DATA[offset:]).offset == len(DATA)
        place.assert_alone(path, DATA)


def test_head_is_answered_while_s3_hangs(network: tuple[ServerProcess, FaultyNetwork, Place]) -> None:
    """S3 accepts connections and never answers. HEAD says when to come back, with a PATCH under way or not."""
    server, trouble, place = network
    paths = {size: create(server.port, len(DATA), body=DATA[:size]) for size in (1000, PART + 1000)}
    finished = create(server.port, 1000, body=DATA[:1000])
    new = create(server.port, len(DATA))
    trouble.stall()
    for size, path in [*paths.items(), (0, new), (1000, finished)]:
        looked_at(server, path, size)
    with ExitStack() as stack:
        for offset, path in paths.items():
            connection = stack.enter_context(start_patch(server.port, path, offset, len(DATA) - offset))
            connection.send(DATA[offset : offset + 1000])
            connection.wait_until_read()
        with ThreadPoolExecutor(20) as executor:  # many who ask do not wait for each other
            looks = [executor.submit(looked_at, server, path, size) for size, path in [*paths.items()] * 20]
            for look in looks:
                look.result()
    trouble.resume()
    for size, path in paths.items():
        answer = again(lambda path=path: head(server.port, path))  # type: ignore[misc]
        assert answer.offset in (size, size + 1000)
        answer = again(lambda path=path, at=answer.offset: patch(server.port, path, at, DATA[at:]))  # type: ignore[misc]
        assert (answer.status, answer.offset) == (204, len(DATA)), answer
        place.assert_object(path, DATA)


def test_a_server_shuts_down_within_its_grace_while_s3_hangs(
    network: tuple[ServerProcess, FaultyNetwork, Place],
) -> None:
    server, trouble, place = network
    path = create(server.port, len(DATA), body=DATA[: PART + 1000])
    with start_patch(server.port, path, PART + 1000, len(DATA) - PART - 1000) as connection:
        trouble.stall()
        connection.send(DATA[PART + 1000 : 2 * PART + 1000])
        connection.wait_until_read()
        server.process.terminate()
        try:
            with promptly("the shutdown", 5 + BOUNDED):  # the grace is 5 s
                server.wait(5 + 2 * BOUNDED)
        except subprocess.TimeoutExpired:
            server.kill()
            pytest.fail("the server does not end")
    trouble.resume()
    server.origin = server.url = ""
    server.start()
    answer = again(lambda: head(server.port, path))
    assert PART + 1000 <= answer.offset <= 2 * PART + 1000
    assert patch(server.port, path, answer.offset, DATA[answer.offset :]).offset == len(DATA)
    place.assert_object(path, DATA)


def test_s3_hangs_for_a_while(network: tuple[ServerProcess, FaultyNetwork, Place]) -> None:
    """The client is held up, not turned away, and nothing is sent twice."""
    server, trouble, place = network
    path = create(server.port, len(DATA))
    with start_patch(server.port, path, 0, len(DATA)) as connection:
        connection.send(DATA[: PART + 1000])
        connection.wait_until_read()
        trouble.stall()
        sender = threading.Thread(target=lambda: connection.send(DATA[PART + 1000 :]))
        sender.start()
        time.sleep(3)  # S3 is slow; nothing is waited for
        trouble.resume()
        sender.join(TIMEOUT)
        answer = connection.answer(GIVE_UP)
    assert (answer.status, answer.headers.get("upload-offset")) == (204, str(len(DATA))), answer
    place.assert_alone(path, DATA)


def test_a_new_server_does_not_start_while_s3_hangs(tmp_path: Path) -> None:
    place = Place(s3_server())
    with FaultyNetwork(place.server.port) as trouble:
        trouble.refuse()
        with pytest.raises(RuntimeError, match="cannot be reached"):
            ServerProcess(tmp_path / "records", **place.options(f"http://127.0.0.1:{trouble.port}")).start()


@pytest.mark.parametrize("wakes", ["while the other one writes", "at the end"])
def test_a_frozen_writer_that_wakes_up_changes_nothing(tmp_path: Path, wakes: str) -> None:
    """The frozen server has a part in memory, and does not know that time has passed."""
    old, new = payload(3 * PART + 5000, 1), payload(3 * PART + 5000, 2)
    place = Place(s3_server())
    with RedisServer() as redis, FaultyProxy(place.server) as proxy, ExitStack() as stack:
        options = {"redis_url": redis.url, "lock_ttl": f"{LEASE}s"}
        first = stack.enter_context(serving(tmp_path / "first", place, proxy.server.endpoint, **options))
        second = stack.enter_context(serving(tmp_path / "second", place, **options))
        path = create(first.port, len(old))
        sent = PART + 3 * MEBI
        connection = stack.enter_context(stalled_patch(first.port, path, old, sent))
        assert offset_of(second.port, path) == sent
        proxy.faults = holding = HeldRequests(called("UploadPart"))
        connection.send(old[sent : 2 * PART + 1000])  # a part leaves, and is held up
        holding.wait()
        with stopped(first):
            offset = again(lambda: head(second.port, path)).offset
            assert offset == sent
            answer = again(lambda: patch(second.port, path, offset, new[offset : 2 * PART]))
            assert (answer.status, answer.offset) == (204, 2 * PART), answer
            if wakes == "at the end":
                assert patch(second.port, path, 2 * PART, new[2 * PART :]).offset == len(new)
            holding.release()
        proxy.faults = no_fault
        with suppress(ConnectionError):
            connection.send(old[2 * PART + 1000 :])
        ended = connection.answer_or_closed()
        assert ended is None or ended.status in (409, 423, 503), ended
        if wakes != "at the end":
            assert offset_of(second.port, path) == 2 * PART
            assert patch(second.port, path, 2 * PART, new[2 * PART :]).offset == len(new)
        expected = old[:sent] + new[sent:]
        place.assert_object(path, expected)
        for server in (first, second):
            assert_content(server.port, path, expected)
