"""Hosts that freeze or die while they write: no acknowledged byte is lost, and none is overwritten."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hosts import (
    RECOVERY,
    assert_ended,
    counted,
    files_of,
    several_hosts,
    stopped,
    taken_over,
    traces_of,
)
from tests.support.redis_server import RedisServer
from tests.support.services import Body, running_service
from tests.support.timing import promptly, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, payload
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
from tusd_py.backends.disk.shared import SharedDiskStorage, SharedDiskWriter
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import LockLost, UploadNotFound
from tusd_py.core.upload import Upload
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

# Two clients that send different bytes show in the file who wrote what.
OLD, NEW = payload(6 * MEBI, 1), payload(6 * MEBI, 2)


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


@pytest.mark.long
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


def test_an_offset_whose_bytes_a_host_took_along_is_told_by_nobody(tmp_path: Path, redis: RedisServer) -> None:
    """A host lost its power, and with it what was in its memory only; its lease goes on for a moment."""
    with several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(OLD))
        told: set[int | None] = set()

        def offset_is_known() -> bool:
            refused, asked = patch(second.port, path, 0, NEW[:KIBI]), head(second.port, path)
            assert (refused.status, asked.status) in [(423, 423), (423, 200), (409, 200)], (refused, asked)
            told.update(answer.offset for answer in (refused, asked) if answer.status != 423)
            return asked.status == 200

        with stalled_patch(first.port, path, OLD, MEBI):
            assert offset_of(second.port, path) == MEBI
            first.kill()
            (file,) = files_of(second, path)
            os.truncate(file, KIBI)
            wait_until(offset_is_known, "the lease has ended", RECOVERY)
        assert told == {KIBI}
        complete(second.port, path, OLD[:KIBI] + NEW[KIBI:])
        assert_content(second.port, path, OLD[:KIBI] + NEW[KIBI:])
        first.restart()


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


def service_of_a_host(folder: Path, redis: RedisServer) -> AbstractAsyncContextManager[UploadService]:
    return running_service({"upload_dir": folder / "uploads", "redis_url": redis.url, "lock_ttl": 60})


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
                await service.get_completed(upload.id)
            assert (await service.inspect(upload.id)).offset == 2000
        assert (await second.append(upload.id, AppendRequest(2000, Body(new[2000:])))).is_complete
        for service in (first, second):
            found = await service.get_completed(upload.id)
            content_of = [bytes(data) async for data in service.storage.read(found, 0, 3000)]
            assert b"".join(content_of) == new
