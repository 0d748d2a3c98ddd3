"""Code of the user that is slow, blocks, raises, never ends, or ends the very upload that it is told of."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi_calls import TIMEOUT, Call, ask, create, offset_stream
from tests.support.watched import watch
from tusd_py import TusServer, UploadCreated, UploadFinished, UploadProgressed, UploadTerminated
from tusd_py.events import subscribers


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TusServer]:
    server = TusServer(upload_dir=tmp_path, sweep_interval=0, lock_timeout=5, shutdown_grace=1)
    async with server.lifespan():
        yield server


async def upload(server: TusServer, data: bytes = b"hello", **headers: str) -> tuple[str, Call]:
    path = await create(server, len(data), **headers)
    return path, await ask(server, "PATCH", path, offset_stream(0), data)


def name_of(event: Any) -> tuple[str, str]:
    return type(event).__name__, event.upload.id


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_the_client_is_answered_after_subscribers_have_returned_in_order(server: TusServer, kind: str) -> None:
    told: list[str] = []

    def note(event: Any) -> None:
        time.sleep(0.05)
        told.append(type(event).__name__)

    async def note_later(event: Any) -> None:
        await asyncio.sleep(0.05)
        told.append(type(event).__name__)

    for event in (UploadCreated, UploadProgressed, UploadFinished, UploadTerminated):
        server.on(event)(note if kind == "plain" else note_later)
    path, patched = await upload(server)
    assert patched.status == 204
    assert told == ["UploadCreated", "UploadProgressed", "UploadFinished"]
    assert (await ask(server, "DELETE", path)).status == 204
    assert told[3:] == ["UploadTerminated"]


async def test_a_plain_subscriber_that_blocks_holds_up_nobody_else(server: TusServer) -> None:
    may_go_on = threading.Event()
    slow = await create(server, 5)

    @server.on(UploadFinished)
    def block(event: UploadFinished) -> None:
        if event.upload.id == slow[1:]:
            may_go_on.wait(TIMEOUT)

    blockbuster = watch()  # a call that blocks the loop is an error
    try:
        waiting = Call(server, "PATCH", slow, offset_stream(0))
        waiting.give(b"hello", more=False)
        for _ in range(20):
            assert (await upload(server))[1].status == 204
        head = await ask(server, "HEAD", slow)  # its lock is free
        assert (head.status, head.offset) == (200, 5)
        assert not await server.service.locker.is_held(slow[1:])
        assert not waiting.task.done()
    finally:
        blockbuster.deactivate()
        may_go_on.set()
    assert (await waiting.answer()).status == 204


@pytest.mark.parametrize("event", [UploadCreated, UploadProgressed, UploadFinished])
@pytest.mark.parametrize("kind", ["plain", "async", "request"])
async def test_a_subscriber_may_end_its_own_upload(
    server: TusServer, monkeypatch: pytest.MonkeyPatch, event: type[Any], kind: str
) -> None:
    monkeypatch.setattr(subscribers, "SUBSCRIBER_TIMEOUT", 10 * TIMEOUT)
    loop = asyncio.get_running_loop()
    ended: list[tuple[str, str]] = []
    server.on(UploadTerminated)(lambda event: ended.append(name_of(event)))

    async def end(event: Any) -> None:
        await server.service.terminate(event.upload.id)

    def end_from_a_thread(event: Any) -> None:
        asyncio.run_coroutine_threadsafe(end(event), loop).result(TIMEOUT)

    async def end_by_request(event: Any) -> None:
        await asyncio.create_task(ask(server, "DELETE", f"/{event.upload.id}"), context=contextvars.Context())

    server.on(event)({"plain": end_from_a_thread, "async": end, "request": end_by_request}[kind])
    async with asyncio.timeout(TIMEOUT):
        created = await ask(server, "POST", "/", {"Upload-Length": "5"})
        path = "/" + created.headers["location"].rpartition("/")[2]
        patched = await ask(server, "PATCH", path, offset_stream(0), b"hello")
        while not ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert patched.status in ((404,) if event is UploadCreated else (204, 404))
    assert ended == [("UploadTerminated", path[1:])]
    assert (await ask(server, "HEAD", path)).status == 404


async def test_error_of_a_subscriber_is_logged_and_affects_no_other(
    server: TusServer, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    @server.on(UploadFinished)
    def fail(event: UploadFinished) -> None:
        raise ValueError("plain")

    @server.on(UploadFinished)
    async def fail_later(event: UploadFinished) -> None:
        raise asyncio.CancelledError

    @server.on(UploadFinished)
    async def note(event: UploadFinished) -> None:
        told.append(event.upload.id)

    path, patched = await upload(server)
    assert patched.status == 204
    assert told == [path[1:]]
    assert [record.getMessage() for record in caplog.records if "subscriber" in record.getMessage()] == [
        "a subscriber of UploadFinished failed"
    ] * 2


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyError, asyncio.CancelledError])
async def test_client_is_answered_at_once_when_a_subscriber_raises(
    server: TusServer, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[BaseException]
) -> None:
    monkeypatch.setattr(subscribers, "SUBSCRIBER_TIMEOUT", 10 * TIMEOUT)
    monkeypatch.setattr(subscribers, "MAX_HUNG", 1)
    told: list[str] = []

    def fail(event: UploadFinished) -> None:
        raise error

    async def fail_later(event: UploadFinished) -> None:
        raise error

    server.on(UploadFinished)(fail if kind == "plain" else fail_later)
    server.on(UploadFinished)(lambda event: told.append(event.upload.id))
    async with asyncio.timeout(TIMEOUT):
        finished = [await upload(server) for _ in range(2)]
    assert [patched.status for _, patched in finished] == [204, 204]
    assert told == [path[1:] for path, _ in finished]


@pytest.mark.parametrize("kind", ["plain", "async", "async that swallows its cancellation"])
async def test_subscribers_that_never_end_delay_their_own_upload_only(
    server: TusServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(subscribers, "SUBSCRIBER_TIMEOUT", 0.5)
    monkeypatch.setattr(subscribers, "MAX_THREADS", 2)
    end = threading.Event()
    hang = True

    def block(event: Any) -> None:
        if hang:
            end.wait(TIMEOUT)

    async def wait(event: Any) -> None:
        while hang:
            try:
                await asyncio.sleep(TIMEOUT)
            except asyncio.CancelledError:
                if kind == "async":
                    raise

    server.on(UploadFinished)(block if kind == "plain" else wait)
    assert [(await upload(server))[1].status for _ in range(4)] == [204] * 4
    hang = False
    started = time.monotonic()
    assert (await upload(server))[1].status == 204
    assert time.monotonic() - started < TIMEOUT
    end.set()
    if kind.endswith("cancellation"):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # now it sees that it may end
            if "wait" in repr(task.get_coro()):
                task.cancel()


async def test_progress_is_told_while_the_upload_is_still_written_to(server: TusServer) -> None:
    told: asyncio.Queue[int] = asyncio.Queue()

    @server.on(UploadProgressed)
    async def note(event: UploadProgressed) -> None:
        told.put_nowait(event.received)

    path = await create(server, 10)
    patch = Call(server, "PATCH", path, offset_stream(0))
    patch.give(b"hello")
    async with asyncio.timeout(TIMEOUT):
        assert await told.get() == 5
    assert await server.service.locker.is_held(path[1:])
    patch.give(b"world", more=False)
    assert (await patch.answer()).status == 204


async def test_events_of_a_cancelled_request_are_told_all_the_same(server: TusServer) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    @server.on(UploadFinished)
    async def note(event: Any) -> None:
        told.put_nowait(event.upload.id)

    path = await create(server, 5)
    patch = Call(server, "PATCH", path, offset_stream(0))
    patch.give(b"hello", more=False)
    while not server.service._appending._appends:  # noqa: ASYNC110
        await asyncio.sleep(0)
    patch.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await patch.task
    async with asyncio.timeout(TIMEOUT):
        head = await ask(server, "HEAD", path)
        if head.offset == 5:
            assert await told.get() == path[1:]
