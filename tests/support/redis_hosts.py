"""Records and locks in Redis, as single processes have them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis import Redis

from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer, shared_redis_url
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.backends.redis.state import RedisState
from tusd_py.core.errors import LockLost
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.testing.support import TIMEOUT, within

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=100)
LEASE = 2.0  # seconds; that of `redis_holder`, too
LONG = 60.0  # a lease that does not end in a test
BOUNDED = 5.0  # seconds within which a call fails while Redis is away


class Holder:
    def __init__(self) -> None:
        self.release_asked = asyncio.Event()
        self.commit_asked = asyncio.Event()
        self.lost = asyncio.Event()

    def release_requested(self) -> None:
        self.release_asked.set()

    def commit_requested(self) -> None:
        self.commit_asked.set()

    def lock_lost(self) -> None:
        self.lost.set()


class Host:
    """The records and the locks of one process."""

    def __init__(self, url: str, prefix: str, ttl: float = LEASE) -> None:
        self.connection = RedisConnection(url)
        self.state = RedisState(self.connection, prefix)
        self.locker = RedisLocker(self.connection, prefix, ttl)

    async def __aenter__(self) -> Host:
        await self.state.open()
        try:
            await self.locker.open()
        except BaseException:
            await self.state.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await within(self.locker.close())
        await within(self.state.close())


def url_of(network: FaultyNetwork) -> str:
    return f"redis://127.0.0.1:{network.port}/0"


def keys_of(prefix: str) -> list[str]:
    with Redis.from_url(shared_redis_url(), decode_responses=True) as client:
        return sorted(client.keys(f"{prefix}*"))


async def eventually_free(host: Host, upload_id: str, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        lock = await host.locker.acquire(upload_id, Holder(), TIMEOUT)
    await lock.release()


async def ask_for_release(one: Host, other: Host) -> None:
    holder = Holder()
    lock = await one.locker.acquire(UPLOAD.id, holder, 1)
    waiting = asyncio.create_task(other.locker.acquire(UPLOAD.id, Holder(), TIMEOUT))
    await within(holder.release_asked.wait())
    await lock.release()
    await (await within(waiting)).release()


async def ask_for_commit(one: Host, other: Host) -> None:
    holder = Holder()
    lock = await one.locker.acquire(UPLOAD.id, holder, 1)
    async with other.locker.request_commit(UPLOAD.id) as held:
        assert held
        await within(holder.commit_asked.wait())
    assert not holder.release_asked.is_set()
    await lock.release()


def subscribers(redis: RedisServer, prefix: str) -> int:
    return int(redis.command("PUBSUB", "NUMSUB", f"{prefix}wishes")[-1])


async def exercise(host: Host) -> None:
    """Make every kind of call that a server makes to Redis once."""
    for number in range(6):  # in different slots
        upload = replace(UPLOAD, id=f"upload-{number}", expires_at=5.0)
        await host.state.create(upload)
        await ask_for_release(host, host)
        holder = Holder()
        lock = await host.locker.acquire(upload.id, holder, 1)
        async with host.locker.request_commit(upload.id) as held:
            assert held
            await within(holder.commit_asked.wait())
        stored = await host.state.update(upload, upload.at(10), lock.token, parts=[UploadPart(1, 10, "etag")])
        with pytest.raises(LockLost):
            await host.state.update(upload, upload.at(10), lock.token)
        assert await host.state.get(upload.id) == stored
        assert list(await host.state.parts(upload.id)) == [UploadPart(1, 10, "etag")]
        await lock.release()
        assert not await host.locker.is_held(upload.id)
    assert len(await host.state.due(10.0, 100)) == 6
    assert len([upload async for upload in host.state.all()]) == 6
    for number in range(6):
        await host.state.delete(f"upload-{number}", 1 << 60)
    assert [upload async for upload in host.state.all()] == []
    assert list(await host.state.due(10.0, 100)) == []
