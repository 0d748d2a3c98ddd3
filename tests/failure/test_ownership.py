"""No request owns storage work: locks outlast cancellations and shutdowns until the last step under them has ended."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stalls import OSFaults
from tests.support.asgi_calls import TIMEOUT, Call, ask, create, offset_stream
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place
from tusd_py import TusServer
from tusd_py.backends.s3.client import Client
from tusd_py.core.errors import StorageUnavailable

SIZE = 300_000


class Stall:
    """Work in a thread that waits until the test lets it continue."""

    def __init__(self) -> None:
        self._reached, self._lifted = threading.Event(), threading.Event()

    def meet(self) -> None:
        self._reached.set()
        self._lifted.wait(TIMEOUT)

    def wait(self) -> None:
        assert self._reached.wait(TIMEOUT)

    def lift(self) -> None:
        self._lifted.set()


@pytest.fixture(params=["disk", "redis", "s3"])
def stored_in(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of servers that share records and storage."""
    settings: dict[str, Any] = {"upload_dir": tmp_path / "uploads", "lock_timeout": 0.5, "sweep_interval": 0}
    if request.param == "redis":
        settings |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    elif request.param == "s3":
        settings |= {name: value for name, value in Place(s3_server()).options().items() if name != "env"}
    return settings


@pytest.fixture
def stall_write(
    stored_in: dict[str, Any], os_faults: OSFaults, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Any]]:
    """Make the next write to the storage stall."""
    stalls: list[Stall] = []

    def stall() -> Any:
        if "s3_bucket" not in stored_in:
            return os_faults.stall("pwritev", f"{stored_in['upload_dir']}/*", times=1)
        stalls.append(Stall())
        send = Client._send

        def sent_late(*arguments: Any) -> Any:
            monkeypatch.setattr(Client, "_send", send)
            stalls[-1].meet()
            return send(*arguments)

        monkeypatch.setattr(Client, "_send", sent_late)
        return stalls[-1]

    yield stall
    for one in stalls:
        one.lift()


@contextlib.asynccontextmanager
async def serving(settings: dict[str, Any], **changed: Any) -> AsyncIterator[TusServer]:
    server = TusServer(**{**settings, **changed})
    await server.startup()
    try:
        yield server
    finally:
        await server.shutdown()


async def upload_rest(server: TusServer, path: str, data: bytes) -> None:
    """Continue at the offset of the upload, and assert that it then has all acknowledged bytes."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            offset = await settled_offset(server, path)
            patched = await ask(server, "PATCH", path, offset_stream(offset), data[offset:])
            if patched.status != 409:  # as long as the earlier writer may still commit after the question
                break
    assert (patched.status, patched.offset) == (204, len(data))
    assert (await ask(server, "GET", path)).body == data


async def settled_offset(server: TusServer, path: str) -> int:
    async with asyncio.timeout(TIMEOUT):
        while (head := await ask(server, "HEAD", path)).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return head.offset


@pytest.mark.parametrize("cancel", ["once", "level-triggered"])
async def test_a_cancelled_patch_keeps_its_lock_until_its_write_has_ended(
    stored_in: dict[str, Any], stall_write: Callable[[], Any], cancel: str
) -> None:
    data = b"a" * SIZE
    async with serving(stored_in) as server, serving(stored_in) as other:
        path = await create(server, SIZE)
        stall = stall_write()
        patch = Call(server, "PATCH", path, offset_stream(0))
        patch.give(data[: SIZE // 2])
        patch.give(b"", more=False)
        await asyncio.to_thread(stall.wait)
        if cancel == "once":
            patch.task.cancel()
            await asyncio.wait((patch.task,), timeout=TIMEOUT)
        else:
            await patch.cancel_like_anyio()
        assert patch.task.cancelled()
        try:
            taken_over = await ask(other, "PATCH", path, offset_stream(0), b"b" * SIZE)
        finally:
            stall.lift()
        assert taken_over.status == 423
        await upload_rest(other, path, data)


async def test_a_cancelled_patch_keeps_what_had_arrived(stored_in: dict[str, Any]) -> None:
    async with serving(stored_in) as server:
        path = await create(server, SIZE)
        patch = Call(server, "PATCH", path, offset_stream(0))
        patch.give(b"a" * 1000)
        while (await ask(server, "HEAD", path)).headers.get("upload-offset") != "1000":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        patch.give(b"a" * 500)
        await asyncio.sleep(0)
        await patch.cancel_like_anyio()
        assert await settled_offset(server, path) in (1000, 1500)
        await upload_rest(server, path, b"a" * SIZE)


async def test_a_cancelled_wait_for_a_lock_takes_nothing(stored_in: dict[str, Any]) -> None:
    async with serving(stored_in, lock_timeout=TIMEOUT) as server:
        path = await create(server, SIZE)
        lock = await server.service.locker.acquire(path[1:], Deaf(), 0)
        waiting = Call(server, "PATCH", path, offset_stream(0))
        await asyncio.sleep(0.1)
        await waiting.cancel_like_anyio()
        await lock.release()
        await upload_rest(server, path, b"a" * SIZE)


class Deaf:
    """A holder that lets nobody in."""

    def release_requested(self) -> None: ...

    def commit_requested(self) -> None: ...

    def lock_lost(self) -> None: ...


async def partials_of(server: TusServer, data: bytes) -> list[str]:
    paths = []
    for part in (data[:1000], data[1000:]):
        path = await create(server, len(part), **{"Upload-Concat": "partial"})
        assert (await ask(server, "PATCH", path, offset_stream(0), part)).status == 204
        paths.append(path)
    return paths


@pytest.mark.parametrize("call", ["copy_file_range", "rename"])
async def test_a_cancelled_concatenation_is_made_under_its_lock(tmp_path: Path, os_faults: OSFaults, call: str) -> None:
    data = b"ab" * 1000
    settings = {"upload_dir": tmp_path, "lock_timeout": 0.5, "sweep_interval": 0}
    async with serving(settings) as server, serving(settings) as other:
        concat = {"Upload-Concat": f"final;{' '.join(await partials_of(server, data))}"}
        stall = os_faults.stall(call, "*", times=1)
        final = Call(server, "POST", "/", {**concat, "content-length": "0"})
        await asyncio.to_thread(stall.wait)
        await final.cancel_like_anyio()
        refused = await ask(other, "POST", "/", concat)
        stall.lift()
        assert refused.status == 423
        async with asyncio.timeout(TIMEOUT):
            while (made := await ask(other, "POST", "/", concat)).status != 201:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        path = "/" + made.headers["location"].rpartition("/")[2]
        assert (await ask(other, "GET", path)).body == data


async def test_a_cancelled_removal_comes_to_its_end_under_its_lock(tmp_path: Path, os_faults: OSFaults) -> None:
    settings = {"upload_dir": tmp_path, "lock_timeout": 0.5, "sweep_interval": 0}
    async with serving(settings) as server, serving(settings) as other:
        path = await create(server, 5)
        assert (await ask(server, "PATCH", path, offset_stream(0), b"hello")).status == 204
        stall = os_faults.stall("unlink", f"{tmp_path}{path}", times=1)
        removal = Call(server, "DELETE", path)
        await asyncio.to_thread(stall.wait)
        await removal.cancel_like_anyio()
        held = await other.service.locker.is_held(path[1:])
        stall.lift()
        assert held
        async with asyncio.timeout(TIMEOUT):
            while await other.service.locker.is_held(path[1:]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not (tmp_path / path[1:]).exists()
        assert await other.service.state.get(path[1:]) is None


# Shutdowns.


async def test_a_shutdown_in_the_middle_of_a_write_leaves_the_upload_locked(
    stored_in: dict[str, Any], stall_write: Callable[[], Any]
) -> None:
    data = b"a" * SIZE
    server = TusServer(**stored_in, shutdown_grace=1)
    await server.startup()
    async with serving(stored_in) as other:
        path = await create(server, SIZE)
        stall = stall_write()
        patch = Call(server, "PATCH", path, offset_stream(0))
        patch.give(data[: SIZE // 2])
        await asyncio.sleep(0)
        head = Call(server, "HEAD", path)  # has what arrived written
        await asyncio.to_thread(stall.wait)
        async with asyncio.timeout(TIMEOUT):
            await server.shutdown()
        assert (await ask(other, "PATCH", path, offset_stream(0), b"b" * SIZE)).status == 423
        with pytest.raises(StorageUnavailable):
            await server.startup()
        stall.lift()
        await upload_rest(other, path, data)
        await asyncio.wait((patch.task, head.task), timeout=TIMEOUT)
    async with asyncio.timeout(TIMEOUT):
        while True:
            with contextlib.suppress(StorageUnavailable):
                await server.startup()
                break
    assert await settled_offset(server, path) == SIZE
    await server.shutdown()


async def test_a_server_that_was_shut_down_takes_uploads_when_it_is_started_again(stored_in: dict[str, Any]) -> None:
    server = TusServer(**stored_in)
    for _ in range(3):
        async with server.lifespan():
            path = await create(server, SIZE)
            await upload_rest(server, path, b"a" * SIZE)


# Bytes on their way while somebody asks.


async def test_no_byte_is_lost_in_a_middleware_while_readers_ask_for_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A middleware may hold a message when the wait for it ends, as BaseHTTPMiddleware does."""
    monkeypatch.setattr("tusd_py.uploads.append.MAX_SILENCE", TIMEOUT)  # however slow the machine is
    data = bytes(range(256)) * 400
    async with serving({"upload_dir": tmp_path, "sweep_interval": 0}) as server:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def received_late() -> Any:
                message = await receive()
                for _ in range(5):
                    await asyncio.sleep(0)
                return message

            await server(scope, received_late if scope["method"] == "PATCH" else receive, send)

        path = await create(app, len(data))
        patch = Call(app, "PATCH", path, offset_stream(0))
        for start in range(0, len(data), 256):
            patch.give(data[start : start + 256], more=start + 256 < len(data))
            for _ in range(start // 256 % 7):
                await asyncio.sleep(0)
            if not patch.task.done():
                assert (await ask(app, "HEAD", path)).status == 200
        await patch.answer()
        assert patch.status == 204, patch.body
        assert patch.offset == len(data)
        assert (await ask(app, "GET", path)).body == data


@pytest.mark.parametrize("seed", range(3))
async def test_requests_that_are_cancelled_at_any_step_lose_nothing_and_leave_nothing_locked(
    stored_in: dict[str, Any], seed: int
) -> None:
    chance = random.Random(seed)
    async with serving(stored_in, lock_timeout=TIMEOUT) as server, serving(stored_in, lock_timeout=TIMEOUT) as other:

        async def upload(number: int) -> None:
            data = bytes([number]) * 1000 + random.Random(number).randbytes(50_000)
            path = await create(server, len(data))
            acknowledged = 0
            while acknowledged < len(data):
                at = chance.choice((server, other))
                offset = await settled_offset(at, path)
                assert offset >= acknowledged
                size = chance.randrange(1, 30_000)
                patch = Call(at, "PATCH", path, offset_stream(offset))
                for start in range(offset, min(len(data), offset + size), 5_000):
                    patch.give(data[start : min(start + 5_000, offset + size)])
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                patch.give(b"", more=False)
                for _ in range(chance.choice((0, 1, 3, 10, 30, 100, 10_000))):
                    if patch.task.done():
                        break
                    await asyncio.sleep(0)
                if not patch.task.done():
                    if chance.random() < 0.5:
                        patch.task.cancel()
                        await asyncio.wait((patch.task,), timeout=TIMEOUT)
                    else:
                        await patch.cancel_like_anyio()
                if not patch.task.cancelled() and patch.status == 204:
                    acknowledged = patch.offset
            assert (await ask(other, "GET", path)).body == data
            assert not await other.service.locker.is_held(path[1:])

        await asyncio.gather(*map(upload, range(12)))
