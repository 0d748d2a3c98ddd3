"""A Redis that is refused at the start, is away, or is full."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import TIMEOUT
from tests.support.harness import COMMAND, ROOT
from tests.support.proxies import FaultyNetwork, Stream
from tests.support.redis_hosts import BOUNDED, LEASE, UPLOAD, Holder, Host, eventually_free, url_of
from tests.support.redis_server import RedisServer, free_port
from tusd_py.composition import build_service
from tusd_py.core.errors import StateFull, StateUnavailable
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import close_service, open_service
from tusd_py.settings import load


class OldRedis(FaultyNetwork):
    """A Redis that behaves as before 7.0."""

    async def forward(self, data: bytes, source: Stream, target: Stream) -> None:
        await super().forward(data.replace(b"redis_version:7.", b"redis_version:6."), source, target)


async def opening_fails(url: str, tmp_path: Path) -> str:
    """Return the message of a server that cannot use its Redis."""
    settings = load({"upload_dir": tmp_path / "uploads", "redis_url": url}).settings
    service = build_service(settings, EventBus())
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(StateUnavailable) as caught:
            await open_service(service, settings)
        await close_service(service)
    message = caught.value.message
    assert "\n" not in message
    assert len(message) < 200
    assert "127.0.0.1" in message
    return message


async def test_a_redis_that_is_too_old_is_refused(redis: RedisServer, tmp_path: Path) -> None:
    with OldRedis(redis.port) as proxy:
        assert "7.0 or later is needed" in await opening_fails(url_of(proxy), tmp_path)


async def test_a_redis_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    assert f"127.0.0.1:{port}" in await opening_fails(f"redis://127.0.0.1:{port}/0", tmp_path)


async def test_a_redis_that_hangs_is_named(redis: RedisServer, tmp_path: Path) -> None:
    redis.pause()
    assert str(redis.port) in await opening_fails(redis.url, tmp_path)
    redis.resume()


@pytest.mark.parametrize(("user", "password"), [("", "wrong-secret"), ("", ""), ("nobody", "wrong-secret")])
async def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path, user: str, password: str) -> None:
    with RedisServer(password="right-secret") as redis:
        message = await opening_fails(redis.url_for(user, password), tmp_path)
    assert "secret" not in message
    assert "password" in message or "auth" in message.lower()


def test_a_server_that_cannot_reach_redis_says_so_and_ends(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    arguments = ["serve", "--port", "0", "--upload-dir", str(tmp_path / "uploads"), "--redis-url", url]
    ended = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout
    assert "127.0.0.1" in ended.stderr


@pytest.mark.long
@pytest.mark.parametrize("leave", [RedisServer.pause, RedisServer.kill], ids=["hanging", "stopped"])
async def test_every_call_fails_in_bounded_time_while_redis_is_away(
    redis: RedisServer, prefix: str, leave: object
) -> None:
    assert callable(leave)
    async with Host(redis.url, prefix) as one:
        await one.state.create(UPLOAD)
        leave(redis)

        async def ask_commit() -> None:
            async with one.locker.request_commit(UPLOAD.id):
                pass

        for call in (
            lambda: one.state.get(UPLOAD.id),
            lambda: one.state.create(replace(UPLOAD, id="another", expires_at=5.0)),
            lambda: one.state.update(UPLOAD, UPLOAD.at(10), 1),
            lambda: one.state.delete(UPLOAD.id, 1),
            lambda: one.state.due(0.0, 10),
            lambda: one.locker.acquire(UPLOAD.id, Holder(), TIMEOUT),
            lambda: one.locker.acquire(UPLOAD.id, Holder(), 0),
            lambda: one.locker.is_held(UPLOAD.id),
            ask_commit,
        ):
            async with asyncio.timeout(BOUNDED):
                with pytest.raises(StateUnavailable):
                    await call()
        if redis.process is None:
            redis.start()
        redis.resume()
        async with asyncio.timeout(BOUNDED):
            while True:
                with contextlib.suppress(StateUnavailable):
                    await one.state.get(UPLOAD.id)
                    break
        async with asyncio.timeout(LEASE + BOUNDED):
            await eventually_free(one, UPLOAD.id, LEASE + BOUNDED)


async def create_many(host: Host) -> None:
    for number in range(1000):
        await host.state.create(replace(UPLOAD, id=f"upload-{number}", metadata="m" * 100_000))


async def test_a_redis_without_memory_left_is_full(prefix: str) -> None:
    with RedisServer(maxmemory="6mb", maxmemory_policy="noeviction") as redis:
        async with Host(redis.url, prefix) as one:
            await one.state.create(UPLOAD)
            with pytest.raises(StateFull):
                await create_many(one)
            redis.command("CONFIG", "SET", "maxmemory", "1mb")  # the buffers of clients come and go
            with pytest.raises(StateFull):
                await one.state.update(UPLOAD, replace(UPLOAD.at(10), metadata="m" * 100_000), 1)
            assert await one.state.get(UPLOAD.id) == UPLOAD
            await one.state.delete("upload-0", 1)  # makes room
            await one.state.delete("upload-1", 1)
            redis.command("CONFIG", "SET", "maxmemory", "0")
            await one.state.update(UPLOAD, UPLOAD.at(10), 1)
            await eventually_free(one, UPLOAD.id, LEASE + BOUNDED)


async def test_a_redis_without_memory_left_does_not_hand_out_locks(prefix: str) -> None:
    with RedisServer(maxmemory_policy="noeviction") as redis:
        async with Host(redis.url, prefix) as one:
            await one.state.create(UPLOAD)
            redis.command("CONFIG", "SET", "maxmemory", "1mb")
            with pytest.raises(StateFull):
                await one.locker.acquire(UPLOAD.id, Holder(), 1)
            redis.command("CONFIG", "SET", "maxmemory", "0")
            await eventually_free(one, UPLOAD.id, LEASE + BOUNDED)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_open_with_a_policy_that_evicts_records_is_refused(tmp_path: Path, policy: str) -> None:
    with RedisServer(maxmemory="64mb", maxmemory_policy=policy) as redis:
        message = await opening_fails(redis.url, tmp_path)
    assert policy in message
    assert "noeviction" in message


@pytest.mark.parametrize(
    ("maxmemory", "policy", "warned"),
    [
        ("0", "allkeys-lru", True),
        ("64mb", "volatile-lru", True),
        ("64mb", "noeviction", False),
        ("0", "noeviction", False),
    ],
)
async def test_open_with_a_policy_that_may_evict_later_warns(
    prefix: str, caplog: pytest.LogCaptureFixture, maxmemory: str, policy: str, warned: bool
) -> None:
    with RedisServer(maxmemory=maxmemory, maxmemory_policy=policy) as redis:
        async with Host(redis.url, prefix) as one:
            await one.state.create(UPLOAD)
    warnings = [record.message for record in caplog.records if policy in record.message]
    assert len(warnings) == warned


async def test_a_user_without_a_right_that_is_needed_is_told_so(tmp_path: Path, prefix: str) -> None:
    user = "uploads on >secret ~another:* &another:* +@all"
    with RedisServer(password="another", users=[user]) as redis:
        url = redis.url_for("uploads", "secret")
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(StateUnavailable):
                async with Host(url, "tus:") as host:
                    await host.state.create(UPLOAD)
