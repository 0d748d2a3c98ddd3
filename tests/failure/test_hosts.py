"""Hosts that die, freeze or lose Redis, and a Redis that dies, freezes or forgets: no acknowledged byte is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.chaos import Uploader, expect_progress, raise_first
from tests.support.harness import ServerProcess
from tests.support.hosts import (
    LEASE,
    Body,
    Hosts,
    counted,
    files_of,
    is_ready,
    seeded_random,
    several_hosts,
    stopped,
    traces_of,
)
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.timing import PATIENCE, promptly, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, Answer, creation_headers, patch_headers, path_of, payload, sha256
from tests.support.wire.requests import (
    assert_content,
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
from tusd_py.backends.disk.shared import SharedDiskStorage, SharedDiskWriter
from tusd_py.composition import build_service, close_service, open_service
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import LockLost, UploadNotFound
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.settings import load
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "40"))
BOUNDED = 5.0  # seconds within which a request is answered while Redis is away
RECOVERY = LEASE + 6.0  # seconds within which everything goes on once the last fault is over


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that keeps what it acknowledged when it is killed."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server


# Two clients that send different bytes show in the file who wrote what.
OLD, NEW = payload(6 * MEBI, 1), payload(6 * MEBI, 2)


def taken_over(server: ServerProcess, path: str, offset: int, body: bytes) -> Answer:
    """Repeat a PATCH until the lease of an earlier one has ended; return the answer."""
    deadline = time.monotonic() + RECOVERY
    while True:
        answer = patch(server.port, path, offset, body)
        if answer.status not in (423, 503):
            return answer
        assert "retry-after" in answer.headers, answer
        assert time.monotonic() < deadline, "the lease does not end"
        time.sleep(0.05)


def assert_ended(answer: Answer | None) -> None:
    """Assert the answer of a PATCH that was taken over, or lost its lease."""
    assert answer is None or answer.status in (409, 423, 503), answer


# A host that freezes.


@pytest.mark.parametrize("wakes", ["before the other one writes", "while the other one writes", "at the end"])
def test_a_frozen_writer_that_wakes_up_changes_nothing(tmp_path: Path, redis: RedisServer, wakes: str) -> None:
    """The frozen host has bytes in memory and in its sockets, and does not know that time has passed."""
    with several_hosts(tmp_path, redis.url, 2) as (first, second), ExitStack() as stack:
        paths = [create(first.port, len(OLD)) for _ in range(4)]
        offsets: dict[str, int] = {}
        frozen: list[Connection] = []
        with ExitStack() as freeze:
            for path in paths:
                connection = stack.enter_context(stalled_patch(first.port, path, OLD, MEBI))
                assert offset_of(second.port, path) == MEBI
                connection.send(OLD[MEBI : MEBI + 200 * KIBI])  # not committed yet
                frozen.append(connection)
            for connection in frozen:
                connection.wait_until_read()
            freeze.enter_context(stopped(first))
            for connection in frozen:
                connection.send(OLD[MEBI + 200 * KIBI :][: 200 * KIBI])
            for path in paths:
                with promptly("HEAD"):
                    offsets[path] = offset_of(second.port, path)
                assert MEBI <= offsets[path] <= MEBI + 200 * KIBI
                empty = taken_over(second, path, offsets[path], b"")
                assert (empty.status, empty.offset) == (204, offsets[path])
                if wakes != "before the other one writes":
                    part = NEW[offsets[path] : offsets[path] + 300 * KIBI]
                    assert patch(second.port, path, offsets[path], part).offset == offsets[path] + len(part)
            if wakes == "at the end":
                for path in paths:
                    complete(second.port, path, OLD[: offsets[path]] + NEW[offsets[path] :])
        for connection in frozen:
            with suppress(OSError):
                connection.send(OLD[MEBI + 400 * KIBI :])
        for path in paths:
            complete(second.port, path, OLD[: offsets[path]] + NEW[offsets[path] :])
        for connection in frozen:
            assert_ended(connection.answer_or_closed())
        for path in paths:
            assert_content(first.port, path, OLD[: offsets[path]] + NEW[offsets[path] :])
            assert_content(second.port, path, OLD[: offsets[path]] + NEW[offsets[path] :])
            assert len(files_of(second, path)) == 1
        assert counted([second], "tusd_lock_takeovers_total") >= len(paths)


def test_a_frozen_writer_that_has_everything_when_it_wakes_up_finishes_nothing(
    tmp_path: Path, redis: RedisServer
) -> None:
    """The last bytes are in its sockets. Another one has gone on meanwhile, and is not done yet."""
    length, rest = MEBI + 300 * KIBI, 300 * KIBI
    with several_hosts(tmp_path, redis.url, 2) as (first, second), ExitStack() as stack:
        paths = [create(first.port, length) for _ in range(8)]
        frozen: list[Connection] = []
        for path in paths:
            connection = stack.enter_context(stalled_patch(first.port, path, OLD[:length], MEBI))
            assert offset_of(second.port, path) == MEBI
            frozen.append(connection)
        with stopped(first):
            for connection in frozen:
                connection.send(OLD[MEBI:length])
            for path in paths:
                answer = taken_over(second, path, MEBI, NEW[MEBI : length - rest // 2])
                assert (answer.status, answer.offset) == (204, length - rest // 2)
        for connection in frozen:
            assert_ended(connection.answer_or_closed())
        expected = OLD[:MEBI] + NEW[MEBI:length]
        for path in paths:
            for server in (first, second):
                assert request(server.port, "GET", path).status == 404  # it is not finished
                assert offset_of(server.port, path) == length - rest // 2
            complete(second.port, path, expected)
            assert_content(first.port, path, expected)


def test_writers_that_freeze_one_after_the_other_change_nothing(tmp_path: Path, redis: RedisServer) -> None:
    contents = [payload(4 * MEBI, seed) for seed in range(3)]
    with several_hosts(tmp_path, redis.url, 3) as hosts, ExitStack() as stack:
        path = create(hosts[0].port, 4 * MEBI)
        expected = b""
        frozen: list[Connection] = []
        with ExitStack() as freeze:
            for server, data, other in zip(hosts[:2], contents, hosts[1:], strict=False):
                empty = taken_over(server, path, len(expected), b"")
                assert empty.status == 204
                connection = start_patch(server.port, path, len(expected), len(data) - len(expected))
                stack.enter_context(connection)
                connection.send(data[len(expected) : len(expected) + MEBI])
                connection.wait_until_read()
                start = len(expected)
                wait_until(lambda: offset_of(other.port, path) == start + MEBI, "it is committed")  # noqa: B023
                expected += data[start : start + MEBI]
                freeze.enter_context(stopped(server))
                connection.send(data[len(expected) : len(expected) + 100 * KIBI])
                frozen.append(connection)
            last = contents[2][len(expected) :]
            answer = taken_over(hosts[2], path, len(expected), last[:MEBI])
            assert (answer.status, answer.offset) == (204, 3 * MEBI)
        expected += last
        for connection in frozen:
            assert_ended(connection.answer_or_closed())
        complete(hosts[2].port, path, expected)
        for server in hosts:
            assert_content(server.port, path, expected)


def test_a_host_that_freezes_for_less_than_its_lease_goes_on(tmp_path: Path, redis: RedisServer) -> None:
    with several_hosts(tmp_path, redis.url, 2, lock_ttl="30s") as (first, second):
        path = create(first.port, len(OLD))
        with stalled_patch(first.port, path, OLD, MEBI) as connection:
            with stopped(first):
                refused = patch(second.port, path, MEBI, NEW[MEBI:])
                assert (refused.status, "retry-after" in refused.headers) == (423, True)
            with suppress(ConnectionError):
                connection.send(OLD[MEBI:])
            answer = connection.answer_or_closed()
            assert answer is None or answer.status in (204, 423)
        complete(second.port, path, OLD)


def test_a_killed_writer_blocks_nobody_for_longer_than_its_lease(tmp_path: Path, redis: RedisServer) -> None:
    with several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(OLD))
        with stalled_patch(first.port, path, OLD, MEBI):
            assert offset_of(second.port, path) == MEBI
            first.kill()
            with promptly("HEAD"):
                assert offset_of(second.port, path) == MEBI
            with promptly("the PATCH of the client that came back", RECOVERY):
                answer = taken_over(second, path, MEBI, NEW[MEBI:])
        assert (answer.status, answer.offset) == (204, len(OLD))
        assert_content(second.port, path, OLD[:MEBI] + NEW[MEBI:])
        assert len(files_of(second, path)) == 1
        first.restart()
        assert_content(first.port, path, OLD[:MEBI] + NEW[MEBI:])


def test_an_upload_whose_writer_was_killed_can_be_terminated(tmp_path: Path, redis: RedisServer) -> None:
    with several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(OLD))
        with stalled_patch(first.port, path, OLD, MEBI):
            first.kill()
        assert taken_over(second, path, offset_of(second.port, path), NEW[:10]).status in (204, 409)

        def is_deleted() -> bool:
            answer = request(second.port, "DELETE", path)
            assert answer.status in (204, 404, 423), answer
            return answer.status != 423

        wait_until(is_deleted, "the upload is terminated", RECOVERY)
        assert head(second.port, path).status == 404
        assert traces_of(second, path) == []
        first.restart()


# The fence of the storage.


def fenced_off(unreleased_predecessors: bool) -> str:
    return "fenced" if unreleased_predecessors else "not fenced"


@pytest.mark.parametrize("unreleased_predecessors", [True, False], ids=fenced_off)
@pytest.mark.parametrize("wakes", ["before the end", "after the end"])
async def test_a_writer_that_wakes_up_corrupts_what_is_not_fenced(
    tmp_path: Path, unreleased_predecessors: bool, wakes: str
) -> None:
    """The scenario is a dangerous one: a second writer that does not know of the first one loses its bytes."""
    start, size = 1000, 3000
    old, new = payload(size, 1), payload(size, 2)
    storage = SharedDiskStorage(tmp_path / "uploads", tmp_path / "notes")
    await storage.open()
    upload = Upload(id="upload", created_at=0.0, length=size)
    paused = storage.writer(upload, 1)
    await paused.flush([old[:start]], sync=False)
    committed = replace(upload, offset=start, storage_state=paused.snapshot().storage_state, token=1)

    second = storage.writer(committed, 2, unreleased_predecessors=unreleased_predecessors)
    await second.flush([new[start:2000]], sync=False)
    if wakes == "before the end":
        await paused.flush([old[start:]], sync=False)
    whole = await second.finish([new[2000:]], sync=False)
    full = replace(committed, offset=size, storage_state=second.snapshot().storage_state, token=2)
    if wakes == "after the end":
        await paused.flush([old[start:]], sync=False)
    if not whole:
        full = replace(full, storage_state=await storage.finish(full, sync=False))
    stored = b"".join([bytes(data) async for data in storage.read(full, 0, size)])
    await second.close()
    await paused.close()
    await storage.close()
    assert (stored == old[:start] + new[start:]) == unreleased_predecessors


async def test_a_writer_that_wakes_up_after_completion_does_not_reach_the_finished_file(tmp_path: Path) -> None:
    start, size = 1000, 3000
    old, new = payload(size, 1), payload(size, 2)
    storage = SharedDiskStorage(tmp_path / "uploads", tmp_path / "notes")
    await storage.open()
    upload = Upload(id="upload", created_at=0.0, length=size)
    paused = storage.writer(upload, 1)
    await paused.flush([old[:1500]], sync=False)  # 500 of them were never committed
    committed = replace(upload, offset=start, storage_state="", token=1)
    second = storage.writer(committed, 2, unreleased_predecessors=True)
    assert not await second.finish([new[start:]], sync=False)
    full = replace(committed, offset=size, storage_state=second.snapshot().storage_state, token=2)
    full = replace(full, storage_state=await storage.finish(full, sync=False))
    await paused.finish([old[1500:]], sync=False)
    await storage.finish(replace(upload, offset=size), sync=False)  # as the paused one would
    stored = b"".join([bytes(data) async for data in storage.read(full, 0, size)])
    await second.close()
    await paused.close()
    await storage.close()
    assert stored == old[:start] + new[start:]


@contextlib.asynccontextmanager
async def service_of_a_host(folder: Path, redis: RedisServer) -> AsyncIterator[UploadService]:
    settings = load({"upload_dir": folder / "uploads", "redis_url": redis.url, "lock_ttl": 60}).settings
    service = build_service(settings, EventBus())
    await open_service(service, settings)
    yield service
    await close_service(service)


def end_lease(redis: RedisServer, upload_id: str) -> None:
    """End a lease without the knowledge of its holder, as if the time was over."""
    (lock,) = [key for key in redis.command("KEYS", f"*{{{upload_id}}}*") if key.endswith("lock")]
    redis.command("DEL", lock)


async def test_a_writer_that_froze_before_its_last_commit_finishes_nothing(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host has stored every byte, and only has to say so."""
    stored, wake_up = asyncio.Event(), asyncio.Event()
    finish = SharedDiskWriter.finish

    async def finish_and_freeze(writer: SharedDiskWriter, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        whole = await finish(writer, buffers, sync=sync)
        if not stored.is_set():
            stored.set()
            await wake_up.wait()
        return whole

    monkeypatch.setattr(SharedDiskWriter, "finish", finish_and_freeze)
    old, new = OLD[:3000], OLD[:1000] + NEW[1000:3000]
    async with service_of_a_host(tmp_path, redis) as first, service_of_a_host(tmp_path, redis) as second:
        upload = await first.create(NewUpload(length=3000))
        await first.append(upload.id, AppendRequest(0, Body(old[:1000])))
        freezing = asyncio.create_task(first.append(upload.id, AppendRequest(1000, Body(old[1000:]))))
        await stored.wait()
        end_lease(redis, upload.id)
        assert (await second.append(upload.id, AppendRequest(1000, Body(new[1000:2000])))).offset == 2000
        wake_up.set()
        with pytest.raises(LockLost):
            await freezing
        for service in (first, second):
            with pytest.raises(UploadNotFound):  # a download, before the end
                await service.finished(upload.id)
            assert (await service.inspect(upload.id)).offset == 2000
        assert (await second.append(upload.id, AppendRequest(2000, Body(new[2000:])))).is_complete
        for service in (first, second):
            found = await service.finished(upload.id)
            content_of = [bytes(data) async for data in service.storage.read(found, 0, 3000)]
            assert b"".join(content_of) == new


# A host that cannot reach Redis.


@pytest.mark.parametrize("failure", [FaultyNetwork.stall, FaultyNetwork.refuse], ids=["hanging", "refused"])
def test_a_host_cut_off_from_redis_stops_writing_before_its_lease_ends(
    tmp_path: Path, redis: RedisServer, failure: Callable[[FaultyNetwork], None]
) -> None:
    """The host goes on receiving bytes: only its connection to Redis is gone."""
    piece = 20 * KIBI
    with FaultyNetwork(redis.port) as network, several_hosts(tmp_path, [url_of(network), redis.url]) as (first, second):
        path = create(first.port, len(OLD))
        with start_patch(first.port, path, 0, len(OLD)) as connection:
            connection.send(OLD[:MEBI])
            connection.wait_until_read()
            assert offset_of(second.port, path) == MEBI
            failure(network)
            with ThreadPoolExecutor(1) as executor:
                sending = executor.submit(send_until_closed, connection, OLD[MEBI:], piece)
                offset = offset_of(second.port, path)
                answer = taken_over(second, path, offset, NEW[offset : offset + MEBI])
                if answer.status == 409:  # what the first one committed last, before it was cut off
                    offset = answer.offset
                    answer = taken_over(second, path, offset, NEW[offset : offset + MEBI])
                assert (answer.status, answer.offset) == (204, offset + MEBI), answer
                assert_ended(connection.answer_or_closed())
                connection.reset()
                sending.result()
            network.resume()
        expected = OLD[:offset] + NEW[offset:]
        wait_until(lambda: is_ready(first), "the host finds Redis again", RECOVERY)
        complete(first.port, path, expected)
        assert_content(second.port, path, expected)


def url_of(network: FaultyNetwork) -> str:
    return f"redis://127.0.0.1:{network.port}/0"


def send_until_closed(connection: Connection, data: bytes, piece: int) -> None:
    """Send slowly until the server closes the connection."""
    with suppress(OSError):
        for start in range(0, len(data), piece):
            connection.send(data[start : start + piece])
            time.sleep(0.03)


def test_connections_to_redis_that_break_are_made_again(tmp_path: Path, redis: RedisServer) -> None:
    """Requests under way do not notice."""
    data = payload(60 * 32 * KIBI)
    with several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(data))
        with start_patch(first.port, path, 0, len(data)) as connection:
            for start in range(0, len(data), 32 * KIBI):
                connection.send(data[start : start + 32 * KIBI])
                if start % (3 * 32 * KIBI) == 0:
                    redis.disconnect_clients()
                assert offset_of(second.port, path) >= start - MEBI
            answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(data))
        assert_content(second.port, path, data)


# Redis is away.


def stop_redis(redis: RedisServer) -> Callable[[], object]:
    redis.kill()
    return redis.start


def pause_redis(redis: RedisServer) -> Callable[[], object]:
    redis.pause()
    return redis.resume


ABSENCES = pytest.mark.parametrize("leave", [stop_redis, pause_redis], ids=["stopped", "hanging"])
Leave = Callable[[RedisServer], Callable[[], object]]


@ABSENCES
def test_requests_are_answered_in_bounded_time_while_redis_is_away(
    tmp_path: Path, redis: RedisServer, leave: Leave
) -> None:
    data = payload(100 * KIBI)
    with several_hosts(tmp_path, redis.url, 1) as (server,):
        unfinished = create(server.port, len(data), body=data[:1000])
        finished = create(server.port, len(data), body=data)
        come_back = leave(redis)
        asked: list[tuple[str, str, dict[str, str], bytes]] = [
            ("HEAD", unfinished, {}, b""),
            ("HEAD", finished, {}, b""),
            ("HEAD", "/files/0123456789abcdef0123456789abcdef", {}, b""),
            ("POST", "/files", creation_headers(10), b""),
            ("POST", "/files", creation_headers(10, b"0123456789"), b"0123456789"),
            ("POST", "/files", {"Upload-Concat": f"final;{finished}"}, b""),
            ("PATCH", unfinished, patch_headers(1000), data[1000:]),
            ("DELETE", unfinished, {}, b""),
            ("DELETE", finished, {}, b""),
        ]

        def ask(one: tuple[str, str, dict[str, str], bytes]) -> Answer:
            method, path, headers, body = one
            with promptly(method, BOUNDED):
                return request(server.port, method, path, headers, body)

        with ThreadPoolExecutor(len(asked)) as executor:
            for round_number in range(2):
                for one, answer in zip(asked, executor.map(ask, asked), strict=True):
                    assert answer.status == (423 if one[0] == "HEAD" else 503), (round_number, one[:2], answer)
                    assert int(answer.headers["retry-after"]) >= 1
                    assert "upload-offset" not in answer.headers
        with promptly("readyz", BOUNDED):
            assert not is_ready(server)
        assert request(server.port, "GET", "/healthz").status == 200
        assert request(server.port, "OPTIONS", "/files").status in (200, 204)
        come_back()
        wait_until(lambda: is_ready(server), "the server finds Redis again", RECOVERY)
        assert offset_of(server.port, unfinished) == 1000
        complete(server.port, unfinished, data)
        assert_content(server.port, finished, data)
        complete(server.port, create(server.port, len(data)), data)


@ABSENCES
def test_many_requests_while_redis_is_away_wait_for_each_other_no_longer(
    tmp_path: Path, redis: RedisServer, leave: Leave
) -> None:
    with several_hosts(tmp_path, redis.url, 1) as (server,):
        path = create(server.port, 1000)
        come_back = leave(redis)

        def ask(number: int) -> int:
            with promptly("the request", BOUNDED):
                if number % 2:
                    return request(server.port, "HEAD", path).status
                return patch(server.port, path, 0, bytes(1000)).status

        with ThreadPoolExecutor(150) as executor:
            assert set(executor.map(ask, range(150))) == {423, 503}
        come_back()
        wait_until(lambda: is_ready(server), "the server finds Redis again", RECOVERY)
        complete(server.port, path, bytes(1000))


@ABSENCES
def test_an_append_outlives_a_redis_that_is_back_within_the_lease(
    tmp_path: Path, redis: RedisServer, leave: Leave
) -> None:
    piece = 64 * KIBI
    data = payload(64 * piece)
    with several_hosts(tmp_path, redis.url, 2, lock_ttl="12s") as (first, second):
        path = create(first.port, len(data))
        with start_patch(first.port, path, 0, len(data)) as connection:
            connection.send(data[: 4 * piece])
            connection.wait_until_read()
            assert offset_of(second.port, path) == 4 * piece
            come_back = leave(redis)
            away = time.monotonic()
            for start in range(4 * piece, len(data), piece):
                connection.send(data[start : start + piece])
                time.sleep(0.05)  # three seconds altogether: commits fall due while Redis is away
            assert time.monotonic() - away < 9, "this machine is too slow for the test"
            come_back()
            answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(data)), answer
        for server in (first, second):
            assert_content(server.port, path, data)


@ABSENCES
def test_an_append_ends_cleanly_if_redis_is_away_for_longer_than_the_lease(
    tmp_path: Path, redis: RedisServer, leave: Leave
) -> None:
    data = payload(8 * MEBI)
    with several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(data))
        with start_patch(first.port, path, 0, len(data)) as connection, ThreadPoolExecutor(1) as executor:
            connection.send(data[:MEBI])
            connection.wait_until_read()
            assert offset_of(second.port, path) == MEBI
            come_back = leave(redis)
            sending = executor.submit(send_until_closed, connection, data[MEBI:], 32 * KIBI)
            with promptly("the end of the PATCH", 2 * LEASE + BOUNDED):
                assert_ended(connection.answer_or_closed())
            connection.reset()
            sending.result()
            come_back()
        for server in (first, second):
            wait_until(lambda server=server: is_ready(server), "the host finds Redis again", RECOVERY)  # type: ignore[misc]
        offset = offset_of(second.port, path)
        assert offset >= MEBI
        answer = taken_over(second, path, offset, data[offset:])
        assert (answer.status, answer.offset) == (204, len(data))
        for server in (first, second):
            assert_content(server.port, path, data)


# Redis forgets.


def wait_until_ready(hosts: Sequence[ServerProcess]) -> None:
    wait_until(lambda: all(is_ready(server) for server in hosts), "every host finds Redis again", RECOVERY)


@contextlib.contextmanager
def forgetful_redis() -> Iterator[RedisServer]:
    """Run a Redis that stores nothing by itself."""
    with RedisServer() as server:
        yield server


def test_finished_uploads_outlive_the_loss_of_everything_in_redis(tmp_path: Path) -> None:
    data = payload(2 * MEBI)
    metadata = {"Upload-Metadata": "filename YS50eHQ=,flag"}
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url) as hosts:
        finished = create(hosts[0].port, len(data), metadata)
        assert patch(hosts[1].port, finished, 0, data[:MEBI]).status == 204
        assert patch(hosts[2].port, finished, MEBI, data[MEBI:]).status == 204
        at_once = create(hosts[0].port, len(data), body=data)
        partials = [create(server.port, MEBI, {"Upload-Concat": "partial"}, data[:MEBI]) for server in hosts]
        final = path_of(request(hosts[0].port, "POST", "/files", {"Upload-Concat": "final;" + " ".join(partials)}))
        deleted = create(hosts[1].port, len(data), body=data)
        assert request(hosts[2].port, "DELETE", deleted).status == 204
        etag = request(hosts[0].port, "GET", finished, {"Range": "bytes=0-0"}).headers["etag"]

        redis.restart(kill=True, keep=False)
        wait_until_ready(hosts)
        for server in hosts:
            assert_content(server.port, at_once, data)
            assert_content(server.port, finished, data)
            assert_content(server.port, final, data[:MEBI] * 3)
            answer = head(server.port, finished)
            assert (answer.status, answer.offset, answer.headers["upload-length"]) == (200, len(data), str(len(data)))
            assert answer.headers["upload-metadata"] == metadata["Upload-Metadata"]
            assert request(server.port, "GET", finished, {"Range": "bytes=0-0"}).headers["etag"] == etag
            assert head(server.port, deleted).status == 404
            assert request(server.port, "GET", deleted).status == 404
        for server in hosts:
            assert patch(server.port, finished, 0, bytes(len(data))).status in (403, 404, 409)
            assert_content(server.port, finished, data)
        assert request(hosts[1].port, "DELETE", finished).status == 204
        redis.restart(kill=True, keep=False)
        wait_until_ready(hosts)
        for server in hosts:
            assert head(server.port, finished).status == 404


def test_a_finished_upload_is_never_written_to_after_its_record_was_lost(tmp_path: Path) -> None:
    """The first request after the loss is a HEAD, a PATCH, or a DELETE and a creation of other bytes."""
    data = payload(MEBI)
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(data), body=data)
        (file,) = files_of(first, path)
        before = file.stat()
        redis.restart(kill=True, keep=False)
        wait_until_ready([first, second])
        for offset in (0, 1000):
            answer = patch(second.port, path, offset, bytes(len(data) - offset))
            assert answer.status in (404, 409), answer
        assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
        assert_content(second.port, path, data)


def test_an_unfinished_upload_is_unknown_after_the_loss_of_everything_in_redis(tmp_path: Path) -> None:
    data = payload(2 * MEBI)
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(data), body=data[:MEBI])
        running = create(first.port, len(data))
        with stalled_patch(first.port, running, data, MEBI) as connection:
            assert offset_of(second.port, running) == MEBI
            redis.restart(kill=True, keep=False)
            wait_until_ready([first, second])
            for server in (first, second):
                for lost in (path, running):
                    answer = head(server.port, lost)
                    assert answer.status == 404 or (answer.status == 200 and answer.offset <= MEBI), answer
            with suppress(OSError):
                connection.send(data[MEBI:])
            ended = connection.answer_or_closed()
            assert ended is None or ended.status in (404, 409, 423, 503), ended
        if head(first.port, running).status == 200:  # it had everything, and said so in its note
            assert_content(second.port, running, data)
        else:
            assert request(second.port, "GET", running).status == 404
        complete(second.port, create(first.port, len(data)), data)


def test_redis_that_went_back_in_time_takes_no_byte_away(tmp_path: Path) -> None:
    """Redis is restarted with an older copy of its data, as after a failover to a replica that lagged behind."""
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url) as hosts:
        first, second, third = hosts
        growing = create(first.port, len(OLD), body=OLD[:MEBI])
        taken = create(first.port, len(OLD), body=OLD[:MEBI])
        finished = create(second.port, len(OLD), body=OLD[:MEBI])
        at_the_end = create(second.port, MEBI)
        terminated = create(third.port, len(OLD), body=OLD[:MEBI])
        redis.save_snapshot(redis.folder / "earlier")

        assert patch(second.port, growing, MEBI, OLD[MEBI : 2 * MEBI]).status == 204
        assert patch(third.port, taken, MEBI, OLD[MEBI : 2 * MEBI]).status == 204
        assert patch(third.port, finished, MEBI, OLD[MEBI:]).offset == len(OLD)
        assert patch(third.port, at_the_end, 0, OLD[:MEBI]).offset == MEBI
        assert request(first.port, "DELETE", terminated).status == 204
        unknown = create(first.port, len(OLD), body=OLD[:MEBI])
        finished_later = create(first.port, MEBI, body=OLD[:MEBI])

        redis.restore_snapshot(redis.folder / "earlier")
        wait_until_ready(hosts)
        offset = offset_of(third.port, growing)
        assert MEBI <= offset <= 2 * MEBI
        complete(third.port, growing, OLD)
        # The client goes on with other bytes from where it is told to, which is what the file has to hold.
        offset = offset_of(third.port, taken)
        assert MEBI <= offset <= 2 * MEBI
        complete(third.port, taken, OLD[:offset] + NEW[offset:])
        refused = patch(second.port, finished, MEBI, NEW[MEBI:])
        assert (refused.status, refused.offset) == (409, len(OLD))
        for server in hosts:
            assert_content(server.port, finished, OLD)
            assert_content(server.port, at_the_end, OLD[:MEBI])
            assert_content(server.port, finished_later, OLD[:MEBI])
            assert offset_of(server.port, finished) == len(OLD)
            assert head(server.port, unknown).status == 404
            assert_content(server.port, taken, OLD[:offset] + NEW[offset:])
        answer = head(first.port, terminated)
        assert answer.status == 404 or (answer.status == 200 and answer.offset <= MEBI)
        assert request(first.port, "GET", terminated).status == 404


def test_a_patch_under_way_when_redis_goes_back_in_time_ends_or_is_right(tmp_path: Path) -> None:
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(OLD), body=OLD[: 100 * KIBI])
        redis.save_snapshot(redis.folder / "earlier")
        with start_patch(first.port, path, 100 * KIBI, len(OLD) - 100 * KIBI) as connection:
            connection.send(OLD[100 * KIBI : 2 * MEBI])
            connection.wait_until_read()
            assert offset_of(second.port, path) == 2 * MEBI
            redis.restore_snapshot(redis.folder / "earlier")
            wait_until_ready([first, second])
            answer = head(second.port, path)
            assert answer.status == 423 or 100 * KIBI <= answer.offset <= 2 * MEBI
            with suppress(OSError):
                connection.send(OLD[2 * MEBI :])
            ended = connection.answer_or_closed()
            if ended is not None and ended.status == 204:
                assert ended.offset == len(OLD)
                assert_content(second.port, path, OLD)
                return
            assert_ended(ended)
        wait_until(lambda: head(second.port, path).status == 200, "HEAD answers an offset", RECOVERY)
        offset = offset_of(second.port, path)
        answer = taken_over(second, path, offset, NEW[offset:])
        assert (answer.status, answer.offset) == (204, len(OLD))
        for server in (first, second):
            assert_content(server.port, path, OLD[:offset] + NEW[offset:])


# Everything at once.


class Chaos:
    """A source of faults, one at a time at each place."""

    def __init__(
        self, hosts: Hosts, redis: RedisServer, networks: Sequence[FaultyNetwork], chance: random.Random
    ) -> None:
        self.hosts = hosts
        self.redis = redis
        self.networks = networks
        self.chance = random.Random(chance.random())
        self.count: dict[str, int] = defaultdict(int)
        self.longest = 1.6 * LEASE

    def wreak(self, seconds: float) -> None:
        """Make faults at two places at the same time for a while; then everything runs again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            number = self.chance.randrange(len(self.hosts))
            at_host = [self.kill_host, self.freeze_host, self.cut_host_off]
            at_redis = [self.freeze_redis, self.restart_redis, self.disconnect_redis]
            with ThreadPoolExecutor(2) as executor:
                first = executor.submit(self.chance.choice(at_host), number, self.chance.uniform(0, self.longest))
                time.sleep(self.chance.uniform(0, 1))
                if self.chance.random() < 0.5:
                    self.chance.choice(at_redis)(self.chance.uniform(0, self.longest))
                first.result()
            time.sleep(self.chance.uniform(0, 0.5))

    def kill_host(self, number: int, seconds: float) -> None:
        self.count["hosts killed"] += 1
        server = self.hosts[number]
        server.kill()
        server.origin = server.url = ""
        time.sleep(seconds / 4)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                server.start()
                return
            except RuntimeError:  # Redis is away too
                assert time.monotonic() < deadline, "".join(server.log)
                server.origin = ""

    def freeze_host(self, number: int, seconds: float) -> None:
        self.count["hosts frozen"] += 1
        with stopped(self.hosts[number]):
            time.sleep(seconds)

    def cut_host_off(self, number: int, seconds: float) -> None:
        self.count["hosts cut off from Redis"] += 1
        network = self.networks[number]
        self.chance.choice([network.stall, network.refuse, network.cut])()
        time.sleep(seconds)
        network.resume()

    def freeze_redis(self, seconds: float) -> None:
        self.count["Redis frozen"] += 1
        self.redis.pause()
        time.sleep(seconds)
        self.redis.resume()

    def restart_redis(self, seconds: float) -> None:
        self.count["Redis killed"] += 1
        self.redis.kill()
        time.sleep(seconds / 2)
        self.redis.start()

    def disconnect_redis(self, seconds: float) -> None:
        self.count["connections to Redis cut"] += 1
        self.redis.disconnect_clients()


@pytest.mark.timeout(CHAOS_SECONDS + 120)
def test_uploads_survive_whatever_happens_to_hosts_and_redis(tmp_path: Path, redis: RedisServer) -> None:
    chance = seeded_random()
    with ExitStack() as stack:
        networks = [stack.enter_context(FaultyNetwork(redis.port)) for _ in range(3)]
        hosts = stack.enter_context(several_hosts(tmp_path, [url_of(network) for network in networks]))
        chaos = Chaos(hosts, redis, networks, chance)
        uploaders = [Uploader([server.port for server in hosts], chance) for _ in range(6)]
        executor = stack.enter_context(ThreadPoolExecutor(len(uploaders)))
        running = [executor.submit(uploader.run) for uploader in uploaders]
        try:
            deadline = time.monotonic() + CHAOS_SECONDS
            while time.monotonic() < deadline:
                chaos.wreak(min(10.0, max(1.0, deadline - time.monotonic())))
                raise_first(running)
                expect_progress(uploaders, running, RECOVERY)
        finally:
            for uploader in uploaders:
                uploader.stop.set()
        for one in running:
            one.result(2 * PATIENCE)
        finished = [one for uploader in uploaders for one in uploader.finished]
        broken = sum(uploader.broken for uploader in uploaders)
        print(f"{dict(chaos.count)}, {len(finished)} uploads, {broken} PATCHes without success")
        time.sleep(LEASE)  # whoever woke up late has done its worst by now
        for number, (path, digest) in enumerate(finished):
            assert sha256(content(hosts[number % 3].port, path)) == digest
        assert len(finished) >= len(uploaders)
        assert sum(chaos.count.values()) >= 4
