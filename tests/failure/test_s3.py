"""S3 that fails, hangs and forgets, and servers that die meanwhile: no acknowledged byte is lost, none is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clocks import PreloadedClock
from tests.support import cancelling, harness
from tests.support.chaos import stored_content
from tests.support.harness import ServerProcess
from tests.support.hosts import LEASE, seeded_random, stopped
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.s3_server import (
    TRANSIENT_FAULTS,
    Fault,
    Faults,
    FaultyProxy,
    HeldRequests,
    Request,
    random_faults,
    s3_server,
)
from tests.support.s3_uploads import PART, Place, clean, digest_of, id_of, serving
from tests.support.timing import TIMEOUT, promptly, wait_until
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, path_of, payload
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

SKEW = 600.0  # seconds; S3 refuses requests whose time is 900 off
CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "25"))
FAULTS = 0.12  # of all requests to S3
MAX_LIFE = 6.0  # seconds a server lives between two kills
BOUNDED = 5.0  # seconds within which HEAD is answered whatever S3 does
GIVE_UP = 75.0  # seconds within which every request has ended while S3 is away
DATA = payload(4 * PART + 12_345)


def no_fault(request: Request) -> Fault:
    return Fault.NONE


@dataclass
class Rig:
    """A server, and a proxy between it and S3."""

    server: ServerProcess
    proxy: FaultyProxy
    place: Place

    @property
    def port(self) -> int:
        return self.server.port

    def revive(self) -> None:
        """Start the server again after a kill."""
        self.server.revive()


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    place = Place(s3_server())
    options = {"sweep_interval": "0"}  # only requests drive uploads on
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path_factory.mktemp("s3"), place, proxy.server.endpoint, **options) as server,
    ):
        yield Rig(server, proxy, place)


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The shared servers and proxy, which work when the test begins and after it has ended."""
    if shared_rig.server.process.poll() is not None:
        shared_rig.revive()
    shared_rig.proxy.requests.clear()
    yield shared_rig
    shared_rig.proxy.faults = no_fault


def finish(rig: Rig, path: str, data: bytes, *, acknowledged: int = 0, sent: int | None = None) -> None:
    """Continue from the offset of HEAD to the end, then check the object."""
    answer = again(lambda: head(rig.port, path))
    assert answer.status == 200, answer
    assert acknowledged <= answer.offset <= (len(data) if sent is None else sent), answer.offset
    answer = patch(rig.port, path, answer.offset, data[answer.offset :])
    assert (answer.status, answer.headers.get("upload-offset")) == (204, str(len(data))), answer
    rig.place.assert_object(path, data)
    assert_content(rig.port, path, data)


def again(action: Callable[[], Answer], seconds: float = TIMEOUT) -> Answer:
    """Repeat a request while the upload is in use or the server unavailable; return the answer."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            answer = action()
            if answer.status != 423:
                return answer
            assert "retry-after" in answer.headers, answer
        assert time.monotonic() < deadline, "nothing comes of it"
        time.sleep(0.05)


def called(operation: str) -> Callable[[Request], bool]:
    return lambda request: request.operation == operation


def times(count: int, fault: Fault, operation: str, part: int | None = None) -> Faults:
    """Return faults for the first `count` requests of one operation."""
    left = [count]
    lock = threading.Lock()

    def choose(request: Request) -> Fault:
        with lock:
            if request.operation != operation or part not in (None, request.part) or not left[0]:
                return Fault.NONE
            left[0] -= 1
            return fault

    return choose


def always(fault: Fault, *operations: str, part: int | None = None) -> Faults:
    return lambda request: fault if request.operation in operations and part in (None, request.part) else Fault.NONE


# Parts.


@pytest.mark.parametrize(("part", "restarted"), [(1, False), (2, False), (2, True), (3, False)])
def test_a_part_that_fails_while_the_next_ones_succeed(rig: Rig, part: int, restarted: bool) -> None:
    """Parts after a gap do not count, however many there are."""
    path = create(rig.port, len(DATA))
    rig.proxy.faults = always(Fault.ERROR, "UploadPart", part=part)
    sent = 3 * PART + 100
    with start_patch(rig.port, path, 0, sent) as connection:
        with suppress(ConnectionError):
            connection.send(DATA[:sent])
        answer = connection.answer_or_closed(GIVE_UP)
    assert answer is None or answer.status in (500, 503)
    rig.proxy.faults = no_fault
    if restarted:
        rig.server.restart()
    assert offset_of(rig.port, path) == (part - 1) * PART
    finish(rig, path, DATA)


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "PutObject", "CompleteMultipartUpload"])
def test_the_client_does_not_notice_one_fault(rig: Rig, operation: str, fault: Fault) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = times(1, fault, operation)
    cut = 2 * PART + 1000
    for start, end in ((0, 1000), (1000, cut), (cut, len(DATA))):
        answer = patch(rig.port, path, start, DATA[start:end])
        assert (answer.status, answer.headers.get("upload-offset")) == (204, str(end)), answer
    assert offset_of(rig.port, path) == len(DATA)
    rig.place.assert_object(path, DATA)
    if operation != "CreateMultipartUpload":  # what was made twice is for the janitor
        rig.place.assert_alone(path, DATA)


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.ERROR, Fault.REFUSE, Fault.LOST, Fault.RESET])
def test_a_storm(rig: Rig, fault: Fault) -> None:
    """S3 takes nothing for a while: clients are told, offsets are exact, and everything goes on afterwards."""
    acknowledged = {1000: create(rig.port, len(DATA), body=DATA[:1000])}
    acknowledged[PART + 1000] = create(rig.port, len(DATA), body=DATA[: PART + 1000])
    rig.proxy.faults = lambda request: fault
    with ThreadPoolExecutor(2) as executor:

        def send(offset: int) -> Answer:
            return patch(rig.port, acknowledged[offset], offset, DATA[offset : offset + PART])

        started = time.monotonic()
        running = [executor.submit(send, offset) for offset in acknowledged]
        for one in running:
            answer = one.result(GIVE_UP)
            assert answer.status in (500, 503), answer
            assert "retry-after" in answer.headers
        print(f"answered after {time.monotonic() - started:.1f} s")
    for path in acknowledged.values():
        with promptly("HEAD", BOUNDED):
            assert head(rig.port, path).status in (200, 423)
    rig.proxy.faults = no_fault
    for offset, path in acknowledged.items():
        # A part that was stored although S3 did not say so may count or not.
        finish(rig, path, DATA, acknowledged=offset, sent=offset + PART)


# Tails.


def test_a_crash_after_a_tail_was_acknowledged(rig: Rig) -> None:
    paths = {size: create(rig.port, len(DATA)) for size in (1, 1000, PART - 1, PART + 1, 2 * PART + 700 * KIBI)}
    for size, path in paths.items():
        assert patch(rig.port, path, 0, DATA[:size]).offset == size
    rig.server.restart()
    for size, path in paths.items():
        assert offset_of(rig.port, path) == size
        finish(rig, path, DATA)


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.REFUSE], ids=["stored", "not stored"])
def test_a_crash_while_a_tail_is_stored(rig: Rig, fate: Fault) -> None:
    """The tail before it, that the new one would have replaced, is still there."""
    path = create(rig.port, len(DATA))
    assert patch(rig.port, path, 0, DATA[:1000]).offset == 1000
    rig.proxy.faults = holding = HeldRequests(called("PutObject"), fate)
    with start_patch(rig.port, path, 1000, 500) as connection:
        connection.send(DATA[1000:1500])
        holding.wait()
        rig.server.kill()
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    finish(rig, path, DATA, acknowledged=1000, sent=1500)


def test_a_crash_after_every_small_patch(rig: Rig) -> None:
    path = create(rig.port, len(DATA))
    offset = 0
    for size in (700, 700, 300_000, PART):
        assert patch(rig.port, path, offset, DATA[offset : offset + size]).offset == offset + size
        offset += size
        rig.server.restart()
        assert offset_of(rig.port, path) == offset
    finish(rig, path, DATA)


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.LOST])
def test_tails_that_cannot_be_removed_do_no_harm(rig: Rig, fault: Fault) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = always(fault, "DeleteObject", "DeleteObjects")
    for offset in range(0, 40_000, 1000):
        assert patch(rig.port, path, offset, DATA[offset : offset + 1000]).offset == offset + 1000
    assert patch(rig.port, path, 40_000, DATA[40_000:]).offset == len(DATA)
    rig.place.assert_object(path, DATA)
    rig.proxy.faults = no_fault
    assert_content(rig.port, path, DATA)


# Completion.


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.REFUSE], ids=["made", "not made"])
@pytest.mark.parametrize("asked", ["HEAD", "PATCH"])
def test_a_crash_between_the_last_part_and_the_object(rig: Rig, fate: Fault, asked: str) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = holding = HeldRequests(called("CompleteMultipartUpload"), fate)
    with start_patch(rig.port, path, 0, len(DATA)) as connection:
        connection.send(DATA)
        holding.wait()
        rig.server.kill()
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    assert request(rig.port, "GET", path).status in (200, 404)
    if asked == "HEAD":
        assert again(lambda: head(rig.port, path)).offset == len(DATA)
    else:
        answer = again(lambda: patch(rig.port, path, len(DATA), b""))
        assert (answer.status, answer.offset) == (204, len(DATA)), answer
    rig.place.assert_alone(path, DATA)
    assert_content(rig.port, path, DATA)


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.REFUSE], ids=["made", "not made"])
def test_a_crash_before_the_object_of_a_small_upload(rig: Rig, fate: Fault) -> None:
    path = create(rig.port, 10_000, body=DATA[:4000])
    rig.proxy.faults = holding = HeldRequests(called("PutObject"), fate)
    with start_patch(rig.port, path, 4000, 6000) as connection:
        connection.send(DATA[4000:10_000])
        holding.wait()
        rig.server.kill()
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    finish(rig, path, DATA[:10_000], acknowledged=4000)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_an_object_that_is_made_while_the_answer_is_lost(rig: Rig, count: int) -> None:
    """The next tries find no multipart upload any more: that is success, if the object is the one."""
    path = create(rig.port, len(DATA))
    rig.proxy.faults = times(count, Fault.LOST, "CompleteMultipartUpload")
    answer = patch(rig.port, path, 0, DATA)
    assert answer.status in (204, 500, 503), answer
    rig.proxy.faults = no_fault
    if answer.status != 204:
        assert again(lambda: head(rig.port, path)).offset == len(DATA)
    rig.place.assert_alone(path, DATA)
    assert_content(rig.port, path, DATA)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_object_that_cannot_be_made_yet(rig: Rig, restarted: bool) -> None:
    """Every byte is there and acknowledged by nobody; the upload is not complete before the object is."""
    path = create(rig.port, len(DATA))
    rig.proxy.faults = always(Fault.ERROR, "CompleteMultipartUpload")
    answer = patch(rig.port, path, 0, DATA)
    assert answer.status in (500, 503), answer
    assert head(rig.port, path).status == 423
    assert request(rig.port, "GET", path).status == 404
    answer = patch(rig.port, path, len(DATA), b"")
    assert answer.status in (423, 500, 503), answer
    if restarted:
        rig.server.restart()
        assert head(rig.port, path).status == 423
    rig.proxy.faults = no_fault
    assert again(lambda: head(rig.port, path)).offset == len(DATA)
    rig.place.assert_alone(path, DATA)
    assert_content(rig.port, path, DATA)


def test_the_sweeper_makes_an_object_although_no_client_comes_back(tmp_path: Path) -> None:
    place = Place(s3_server())
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0.2s") as server,
    ):
        proxy.faults = always(Fault.ERROR, "CompleteMultipartUpload")
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA).status in (500, 503)
        proxy.faults = no_fault
        wait_until(lambda: request(server.port, "GET", path, {"Range": "bytes=0-0"}).status == 206, "it is made")
        place.assert_alone(path, DATA)


def test_the_sweeper_removes_what_a_termination_could_not(tmp_path: Path) -> None:
    place = Place(s3_server())
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0.2s") as server,
    ):
        paths = [create(server.port, len(DATA), body=DATA[:size]) for size in (1000, PART, 2 * PART + 1000)]
        paths.append(create(server.port, 1000, body=DATA[:1000]))
        proxy.faults = always(Fault.ERROR, "DeleteObject", "DeleteObjects", "AbortMultipartUpload")
        for path in paths:
            assert request(server.port, "DELETE", path).status in (204, 500, 503)
            assert head(server.port, path).status == 404
            assert request(server.port, "GET", path).status == 404
        proxy.faults = no_fault
        wait_until(lambda: not place.keys and not place.multiparts, "everything is removed")


@pytest.mark.parametrize("sent", [2 * PART + 1000, len(DATA)], ids=["unfinished", "all bytes sent"])
def test_the_sweeper_removes_an_expired_upload_whose_multipart_upload_vanished(tmp_path: Path, sent: int) -> None:
    """A lifecycle rule of the bucket aborts multipart uploads, too."""
    place = Place(s3_server())
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0.2s", expires_after="5s") as server,
    ):
        proxy.faults = always(Fault.ERROR, "CompleteMultipartUpload")
        path = create(server.port, len(DATA))
        patch(server.port, path, 0, DATA[:sent])
        assert place.abort_multiparts(path) == 1
        proxy.faults = no_fault
        wait_until(lambda: not records_of(server), "its record is removed")
        assert place.traces_of(path) == []


def records_of(server: ServerProcess) -> list[str]:
    """Return the ids of all uploads that the server has a record of."""
    with closing(sqlite3.connect(server.upload_dir / ".tusd-py" / "uploads.sqlite3")) as connection:
        return [str(row[0]) for row in connection.execute("SELECT id FROM uploads")]


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_concatenation_that_fails_or_is_killed(rig: Rig, operation: str) -> None:
    parts = [payload(PART + 1, 2), payload(100, 3), payload(6 * MEBI, 4)]
    paths = [create(rig.port, len(data), {"Upload-Concat": "partial"}, data) for data in parts]
    headers = {"Upload-Concat": "final;" + " ".join(paths)}
    rig.proxy.faults = always(Fault.ERROR, operation)
    assert request(rig.port, "POST", "/files", headers).status in (500, 503)
    rig.proxy.faults = holding = HeldRequests(called(operation), Fault.REFUSE)
    with ThreadPoolExecutor(1) as executor:

        def ask() -> None:
            with suppress(OSError):
                request(rig.port, "POST", "/files", headers)

        asking = executor.submit(ask)
        holding.wait()
        rig.server.kill()
        asking.result(TIMEOUT)
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    answer = again(lambda: request(rig.port, "POST", "/files", headers))
    assert answer.status == 201, answer
    rig.place.assert_object(path_of(answer), b"".join(parts))
    assert_content(rig.port, path_of(answer), b"".join(parts))


# Changes of the bucket by others.


@pytest.mark.parametrize(("sent", "restarted"), [(2 * PART, False), (2 * PART + 1000, True)])
@pytest.mark.parametrize("size", [0, 1000, PART + 1000, len(DATA)], ids=["empty", "small", "large", "the rest"])
def test_a_multipart_upload_that_was_aborted(rig: Rig, restarted: bool, sent: int, size: int) -> None:
    """The bytes of the upload are lost: no answer may look as if they were there.

    But a process that wrote to it seconds ago does not look for it again only to take a tail.
    """
    path = create(rig.port, len(DATA))
    assert patch(rig.port, path, 0, DATA[:sent]).offset == sent
    assert rig.place.abort_multiparts(path) == 1
    if restarted:
        rig.server.restart()
    answer = patch(rig.port, path, sent, DATA[sent : sent + size])
    assert answer.status in ((404,) if restarted or size > PART else (204, 404)), answer
    answer = head(rig.port, path)
    assert answer.status == 404, answer
    assert "upload-offset" not in answer.headers
    assert request(rig.port, "GET", path).status == 404
    assert rig.place.key_of(path) not in rig.place.keys


def test_a_multipart_upload_that_is_aborted_before_the_object_is_made(rig: Rig) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = holding = HeldRequests(called("CompleteMultipartUpload"))
    with start_patch(rig.port, path, 0, len(DATA)) as connection:
        connection.send(DATA)
        holding.wait()
        assert rig.place.abort_multiparts(path) == 1
        holding.release()
        answer = connection.answer(GIVE_UP)
    assert answer.status in (404, 409), answer
    assert head(rig.port, path).status == 404
    assert request(rig.port, "GET", path).status == 404


def test_tails_that_somebody_removed(rig: Rig) -> None:
    """HEAD goes back to what is there: the client sends the rest again."""
    path = create(rig.port, len(DATA))
    assert patch(rig.port, path, 0, DATA[:1000]).offset == 1000
    rig.server.restart()  # it has nothing in memory
    rig.place.remove([key for key in rig.place.traces_of(path) if "tails" in key])
    assert offset_of(rig.port, path) == 0
    finish(rig, path, DATA)


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


# S3 is away.


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


# A host that freezes while its parts are on their way.


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


# Leftovers.


def test_the_janitor_removes_what_crashes_left_and_nothing_else(tmp_path: Path) -> None:
    place = Place(s3_server())
    records = tmp_path / "records"
    with FaultyProxy(place.server) as proxy:
        with serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0") as server:
            finished = create(server.port, len(DATA), body=DATA)
            small = create(server.port, len(DATA), body=DATA[:1000])
            large = create(server.port, len(DATA), body=DATA[: 2 * PART + 1000])
            killed = create(server.port, len(DATA))
            proxy.faults = holding = HeldRequests(called("UploadPart"))
            with start_patch(server.port, killed, 0, len(DATA)) as connection:
                connection.send(DATA[:PART])
                holding.wait()
                server.kill()  # the record does not know of the multipart upload
            holding.release()
            proxy.faults = no_fault
            server.origin = server.url = ""
            server.start()
            proxy.faults = always(Fault.LOST, "PutObject")
            assert patch(server.port, small, 1000, DATA[1000:2000]).status in (500, 503)
            server.kill()  # nor of this tail
            proxy.faults = no_fault
            assert len(place.traces_of(small)) == 2
        kept = {upload: place.traces_of(upload) for upload in (finished, large)}
        dry = asyncio.run(clean(records, place, dry_run=True))
        assert sorted(one.upload_id for one in dry) == sorted([id_of(killed), id_of(small)])
        assert place.traces_of(killed)
        assert asyncio.run(clean(records, place)) == dry
        assert asyncio.run(clean(records, place)) == []
        assert place.traces_of(killed) == []
        assert len(place.traces_of(small)) == 1
        assert {upload: place.traces_of(upload) for upload in kept} == kept
        with serving(tmp_path, place) as server:
            for path, offset in ((small, 1000), (large, 2 * PART + 1000), (killed, 0)):
                assert offset_of(server.port, path) == offset
                assert patch(server.port, path, offset, DATA[offset:]).offset == len(DATA)
                place.assert_alone(path, DATA)
            assert_content(server.port, finished, DATA)
        assert asyncio.run(clean(records, place)) == []


# Everything at once.


@dataclass
class Client:
    """Uploads one file after the other, comes back after every failure, and trusts nothing that it was told."""

    rig: Rig
    chance: random.Random
    stop: threading.Event
    finished: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: int = 0
    doing: str = ""

    def run(self) -> None:
        kinds: list[Callable[[], object]] = [self.upload, self.upload, self.concatenate, self.terminate]
        while not self.stop.is_set():
            self.chance.choice(kinds)()

    def upload(self, headers: dict[str, str] | None = None) -> tuple[str, bytes]:
        size = self.chance.choice([5000, MEBI, PART, 3 * PART])
        data = self.chance.randbytes(self.chance.randrange(1, size))
        deferred = self.chance.random() < 0.3
        answer = self.ask("POST", "/files", creation_headers(None if deferred else len(data)) | (headers or {}))
        assert (answer.status, answer.offset) == (201, 0), answer
        path = path_of(answer)
        self.send(path, data, deferred=deferred)
        self.finished[path] = digest_of(data)
        return path, data

    def send(self, path: str, data: bytes, *, deferred: bool) -> None:
        size = max(self.chance.choice([30 * KIBI, 400 * KIBI, 4 * MEBI, len(data)]), len(data) // 20)
        acknowledged = 0
        while acknowledged < len(data):
            end = min(len(data), acknowledged + size)
            if self.patch(path, data, acknowledged, end, declare=deferred and end == len(data)):
                acknowledged = end
                continue
            self.broken += 1
            answer = self.ask("HEAD", path)
            assert answer.status == 200, answer
            assert acknowledged <= answer.offset <= end, (
                f"HEAD answered {answer.offset}, acknowledged were {acknowledged} of {end}"
            )
            acknowledged = answer.offset
            if acknowledged == len(data) and "upload-length" not in answer.headers:
                assert deferred
                self.declare(path, len(data))

    def declare(self, path: str, length: int) -> None:
        while not self.patch(path, bytes(length), length, length, declare=True):
            answer = self.ask("HEAD", path)
            assert (answer.status, answer.offset) == (200, length), answer

    def patch(self, path: str, data: bytes, start: int, end: int, *, declare: bool) -> bool:
        """Send one PATCH; return whether it was acknowledged."""
        self.doing = f"PATCH {path} {start} {end}"
        headers = {"Upload-Length": str(len(data))} if declare else {}
        if self.chance.random() < 0.2:
            headers |= checksum(data[start:end])
        try:
            answer = request(
                self.rig.port,
                "PATCH",
                path,
                {"Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream", **headers},
                data[start:end],
                GIVE_UP,
            )
        except OSError:
            return False
        assert answer.status in (204, 409, 423, 500, 503), (self.doing, answer)
        assert answer.status != 204 or answer.offset == end, (self.doing, answer)
        return answer.status == 204

    def concatenate(self) -> None:
        parts = [self.upload({"Upload-Concat": "partial"}) for _ in range(self.chance.randrange(1, 4))]
        header = "final;" + " ".join(path for path, _ in parts)
        answer = self.ask("POST", "/files", {"Upload-Concat": header})
        assert answer.status == 201, answer
        self.finished[path_of(answer)] = digest_of(b"".join(data for _, data in parts))

    def terminate(self) -> None:
        path, _ = self.upload()
        answer = self.ask("DELETE", path)
        assert answer.status in (204, 404), answer
        assert self.ask("HEAD", path).status == 404
        del self.finished[path]

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Repeat what is harmless to repeat until it succeeds; HEAD answers nothing that makes a client begin anew."""
        deadline = time.monotonic() + GIVE_UP
        while True:
            self.doing = f"{method} {path}"
            with suppress(OSError):
                answer = request(self.rig.port, method, path, headers, timeout=GIVE_UP)
                if method == "HEAD":
                    assert answer.status in (200, 404, 423), (self.doing, answer)
                if answer.status not in (423, 500, 503):
                    return answer
            assert time.monotonic() < deadline, f"{self.doing}: nothing comes of it"
            time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(2 * CHAOS_SECONDS + 150)  # every upload is read twice in the end
def test_uploads_survive_whatever_happens_to_s3_and_the_server(
    tmp_path: Path, clock_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed and stopped, its wall clock steps, and requests are cancelled; S3 answers as it likes."""
    monkeypatch.setattr(harness, "COMMAND", cancelling.COMMAND)
    chance = seeded_random()
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    options: dict[str, Any] = {"expires_after": "1h", "sweep_interval": "0.5s", "shutdown_grace": "1s"}
    options["env"] = clock.env | {"CANCEL_SHARE": "0.05"}
    place = Place(s3_server())
    faults = random_faults(chance.randrange(1 << 32), FAULTS)
    records = tmp_path / "records"
    kills = 0
    with (
        FaultyProxy(place.server, faults) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, **options) as server,
        ThreadPoolExecutor(4) as executor,
    ):
        rig = Rig(server, proxy, place)
        stop = threading.Event()
        clients = [Client(rig, random.Random(chance.random()), stop) for _ in range(4)]
        running = [executor.submit(client.run) for client in clients]
        try:
            deadline = time.monotonic() + CHAOS_SECONDS
            while (time.monotonic() < deadline or kills < 3) and not any(one.done() for one in running):
                time.sleep(chance.uniform(0.01, MAX_LIFE))
                if chance.random() < 0.3:
                    clock.set(chance.choice([0, chance.uniform(-SKEW, SKEW)]))
                if chance.random() < 0.2:
                    server.terminate(TIMEOUT)
                else:
                    server.kill()
                kills += 1
                server.start_again()
        finally:
            stop.set()
            clock.set(0)
            proxy.faults = no_fault
        for client, one in zip(clients, running, strict=True):
            one.result(2 * GIVE_UP)
            assert client.finished
        finished = {path: digest for client in clients for path, digest in client.finished.items()}
        broken = sum(client.broken for client in clients)
        print(
            f"{kills} kills and stops, {len(proxy.requests)} requests to S3, {len(finished)} uploads, {broken} broken"
        )
        for path, digest in finished.items():
            assert place.digest(place.key_of(path)) == digest
            assert digest_of(stored_content(server.port, path)) == digest
        for path in unfinished(records):  # its creation was not answered
            while request(server.port, "DELETE", path).status == 503:  # cancelled
                pass
            assert request(server.port, "DELETE", path).status in (404, 503)
        wait_until(lambda: not unfinished(records), "the sweeper removes the rest")
    found = asyncio.run(clean(records, place, dry_run=True))
    print(f"{len(found)} orphans")
    assert asyncio.run(clean(records, place)) == found
    assert asyncio.run(clean(records, place)) == []
    assert place.multiparts == []
    assert set(place.keys) == {place.key_of(path) for path in finished}
    for path, digest in finished.items():
        assert place.digest(place.key_of(path)) == digest
    assert kills >= 3


def unfinished(records: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{records / '.tusd-py' / 'uploads.sqlite3'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT id FROM uploads WHERE status != 'complete'").fetchall()
    return [f"/files/{row[0]}" for row in rows]


def test_the_orphan_cleanup_beside_a_running_patch_leaves_it_alone(tmp_path: Path) -> None:
    """Of any age: its multipart upload is not in the record yet."""
    place = Place(s3_server())
    with FaultyProxy(place.server) as proxy, serving(tmp_path, place, proxy.server.endpoint) as server:
        path = create(server.port, len(DATA))
        proxy.faults = holding = HeldRequests(called("UploadPart"))
        with start_patch(server.port, path, 0, len(DATA)) as connection:
            connection.send(DATA[: PART + 1000])
            holding.wait()
            assert place.multiparts
            assert asyncio.run(clean(tmp_path / "records", place)) == []
            holding.release()
            proxy.faults = no_fault
            connection.send(DATA[PART + 1000 :])
            assert connection.answer(GIVE_UP).offset == len(DATA)
        place.assert_alone(path, DATA)
