"""Particulars of records and locks in Redis: leases, retries, a Redis in trouble, every kind of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis import Redis
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from tests.contracts.parts import TIMEOUT, line_of, within
from tests.support.harness import COMMAND, ROOT
from tests.support.proxies import FaultyNetwork, Stream
from tests.support.redis_server import (
    RedisNodes,
    RedisSentinels,
    RedisServer,
    free_port,
    is_system_wanted,
    shared_redis_url,
)
from tests.support.timing import wait_until
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.locker import RedisLocker
from tusd_py.backends.redis.state import RedisState
from tusd_py.composition import build_service, close_service, open_service
from tusd_py.core.errors import LockLost, LockTimeout, StateFull, StateUnavailable, UploadExists
from tusd_py.core.upload import Status, Upload, UploadKind, UploadPart
from tusd_py.events.bus import EventBus
from tusd_py.settings import load

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


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}:"


@pytest.fixture
async def host(prefix: str) -> AsyncIterator[Host]:
    async with Host(shared_redis_url(), prefix) as one:
        yield one


@pytest.fixture
async def other(prefix: str) -> AsyncIterator[Host]:
    async with Host(shared_redis_url(), prefix) as one:
        yield one


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A server for one test, which makes trouble for it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def network(redis: RedisServer) -> Iterator[FaultyNetwork]:
    with FaultyNetwork(redis.port) as proxy:
        yield proxy


def url_of(network: FaultyNetwork) -> str:
    return f"redis://127.0.0.1:{network.port}/0"


def keys_of(prefix: str) -> list[str]:
    with Redis.from_url(shared_redis_url(), decode_responses=True) as client:
        return sorted(client.keys(f"{prefix}*"))


async def eventually_free(host: Host, upload_id: str, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        lock = await host.locker.acquire(upload_id, Holder(), TIMEOUT)
    await lock.release()


# Keys.


async def test_two_prefixes_do_not_see_each_other(host: Host, prefix: str) -> None:
    async with Host(shared_redis_url(), prefix + "another:") as stranger:
        await host.state.create(replace(UPLOAD, expires_at=1.0))
        assert await stranger.state.get(UPLOAD.id) is None
        assert list(await stranger.state.due(2.0, 10)) == []
        assert [upload async for upload in stranger.state.all()] == []
        lock = await host.locker.acquire(UPLOAD.id, Holder(), 1)
        await (await stranger.locker.acquire(UPLOAD.id, Holder(), 0)).release()
        async with stranger.locker.request_commit(UPLOAD.id) as held:
            assert not held
        await stranger.state.create(UPLOAD)
        await stranger.state.delete(UPLOAD.id, 1)
        assert await host.locker.is_held(UPLOAD.id)
        await lock.release()
        assert len(await host.state.due(2.0, 10)) == 1


@pytest.mark.parametrize("pattern", ["*", "?", "[a]", "a\\", "{x}"])
async def test_a_prefix_is_no_pattern(prefix: str, pattern: str) -> None:
    async with Host(shared_redis_url(), prefix) as near, Host(shared_redis_url(), f"{prefix}{pattern}") as one:
        await near.state.create(replace(UPLOAD, id="near"))
        await one.state.create(UPLOAD)
        assert [upload.id async for upload in one.state.all()] == [UPLOAD.id]


async def test_everything_of_an_upload_is_in_one_hash_slot(host: Host, other: Host, prefix: str) -> None:
    upload = replace(UPLOAD, expires_at=5.0)
    await host.state.create(upload)
    holder = Holder()
    lock = await host.locker.acquire(upload.id, holder, 1)
    await host.state.update(upload, upload.at(10), lock.token, parts=[UploadPart(1, 10, "etag")])
    async with other.locker.request_commit(upload.id):
        pass
    with pytest.raises(LockTimeout):
        await other.locker.acquire(upload.id, Holder(), 0.2)
    keys = [key for key in keys_of(prefix) if upload.id in key.removeprefix(prefix)]
    assert len(keys) >= 3
    assert {key_slot(key.encode()) for key in keys} == {key_slot(upload.id.encode())}
    await lock.release()


async def test_nothing_of_a_deleted_upload_stays(host: Host, prefix: str) -> None:
    upload = replace(UPLOAD, expires_at=5.0)
    await host.state.create(upload)
    lock = await host.locker.acquire(upload.id, Holder(), 1)
    stored = await host.state.update(upload, upload.at(10), lock.token, parts=[UploadPart(1, 10, "etag")])
    await host.state.delete(stored.id, lock.token)
    await lock.release()
    assert keys_of(prefix) in ([], [f"{prefix}due"])
    assert list(await host.state.due(10.0, 10)) == []


# Retries: the answer to a call is lost after the script ran, and the call is made again.


@pytest.fixture
async def troubled(network: FaultyNetwork, prefix: str) -> AsyncIterator[Host]:
    """A host whose scripts are known to Redis, behind a network that can be made to fail."""
    async with Host(url_of(network), prefix) as one:
        warm = replace(UPLOAD, id="warm")
        await one.state.create(warm)
        lock = await one.locker.acquire(warm.id, Holder(), 1)
        async with one.locker.request_commit(warm.id):
            pass
        await one.state.update(warm, warm.at(1), lock.token)
        await one.state.delete(warm.id, lock.token)
        await lock.release()
        yield one


async def test_a_lock_whose_answer_is_lost_is_found_to_be_mine(troubled: Host, network: FaultyNetwork) -> None:
    await troubled.state.create(UPLOAD)
    network.lose_answer_to(UPLOAD.id.encode())
    lock = await within(troubled.locker.acquire(UPLOAD.id, Holder(), 0))
    assert network.lost_answers == 1
    assert not lock.unreleased_predecessors
    assert await troubled.locker.is_held(UPLOAD.id)
    await lock.release()
    lock = await troubled.locker.acquire(UPLOAD.id, Holder(), 0)
    assert not lock.unreleased_predecessors
    await lock.release()


async def test_a_release_whose_answer_is_lost_is_a_release(troubled: Host, network: FaultyNetwork) -> None:
    await troubled.state.create(UPLOAD)
    lock = await troubled.locker.acquire(UPLOAD.id, Holder(), 0)
    network.lose_answer_to(UPLOAD.id.encode())
    await within(lock.release())
    assert network.lost_answers == 1
    lock = await troubled.locker.acquire(UPLOAD.id, Holder(), 0)
    assert not lock.unreleased_predecessors
    await lock.release()


async def test_a_creation_whose_answer_is_lost_is_one_creation(troubled: Host, network: FaultyNetwork) -> None:
    network.lose_answer_to(UPLOAD.id.encode())
    await within(troubled.state.create(UPLOAD))
    assert network.lost_answers == 1
    assert await troubled.state.get(UPLOAD.id) == UPLOAD
    with pytest.raises(UploadExists):
        await troubled.state.create(UPLOAD)


async def test_a_change_whose_answer_is_lost_is_one_change(troubled: Host, network: FaultyNetwork) -> None:
    await troubled.state.create(UPLOAD)
    network.lose_answer_to(UPLOAD.id.encode())
    stored = await within(troubled.state.update(UPLOAD, UPLOAD.at(10), 5, parts=[UploadPart(1, 10, "etag")]))
    assert network.lost_answers == 1
    assert await troubled.state.get(UPLOAD.id) == stored == replace(UPLOAD, offset=10, token=5)
    assert list(await troubled.state.parts(UPLOAD.id)) == [UploadPart(1, 10, "etag")]
    with pytest.raises(LockLost):
        await troubled.state.update(UPLOAD, UPLOAD.at(10), 5)


async def test_a_deletion_whose_answer_is_lost_is_a_deletion(troubled: Host, network: FaultyNetwork) -> None:
    await troubled.state.create(UPLOAD)
    network.lose_answer_to(UPLOAD.id.encode())
    await within(troubled.state.delete(UPLOAD.id, 5))
    assert network.lost_answers == 1
    assert await troubled.state.get(UPLOAD.id) is None


LOOPS = pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
def test_a_connection_that_the_loop_has_just_closed(
    prefix: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A broken connection is found out by a write, before the reader is told."""

    async def ask() -> None:
        async with Host(shared_redis_url(), prefix) as one:
            await one.state.create(UPLOAD)
            pipeline: Any = one.connection._pipeline
            pipeline._current._connection._writer.transport.abort()
            await asyncio.sleep(0)  # the loop closes it, the reader is told in the next round
            assert await one.state.get(UPLOAD.id) == UPLOAD

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(ask())


@LOOPS
def test_answers_go_to_who_asked_whatever_is_cancelled_or_cut(
    network: FaultyNetwork, prefix: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(ask_while_connections_break(network, prefix))


async def ask_while_connections_break(network: FaultyNetwork, prefix: str) -> None:
    chance = random.Random(5)
    async with Host(url_of(network), prefix) as one:
        uploads = [replace(UPLOAD, id=f"upload-{number}", metadata=str(number)) for number in range(40)]
        for upload in uploads:
            await one.state.create(upload)

        async def look(upload: Upload) -> None:
            assert await one.state.get(upload.id) == upload

        for number in range(60):
            tasks = [asyncio.create_task(look(chance.choice(uploads))) for _ in range(30)]
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            for task in chance.sample(tasks, 10):
                task.cancel()
            if number % 3 == 0:
                cutting = asyncio.create_task(asyncio.to_thread(network.cut))
                while not cutting.done() and len(tasks) < 500:  # at any moment of the end of a connection
                    tasks.append(asyncio.create_task(look(chance.choice(uploads))))
                    await asyncio.sleep(0)
                await cutting
            for result in await within(asyncio.gather(*tasks, return_exceptions=True)):
                assert result is None or isinstance(result, (asyncio.CancelledError, StateUnavailable)), result


# Leases.


async def test_a_lease_is_renewed_for_as_long_as_it_is_held(host: Host, other: Host) -> None:
    holder = Holder()
    lock = await host.locker.acquire(UPLOAD.id, holder, 1)
    deadline = time.monotonic() + 2.5 * LEASE
    while time.monotonic() < deadline:
        assert await other.locker.is_held(UPLOAD.id)
        with pytest.raises(LockTimeout):
            await other.locker.acquire(UPLOAD.id, Holder(), 0)
        await asyncio.sleep(0.1)
    assert not holder.lost.is_set()
    await lock.release()


async def test_a_clean_release_is_not_inherited(host: Host, other: Host) -> None:
    await host.state.create(UPLOAD)
    for number in range(4):
        lock = await (host, other)[number % 2].locker.acquire(UPLOAD.id, Holder(), 1)
        assert not lock.unreleased_predecessors
        await lock.release()


async def test_unreleased_holders_are_inherited_until_bytes_are_added(prefix: str, other: Host) -> None:
    await other.state.create(UPLOAD)
    for vanished in range(2):
        async with Host(shared_redis_url(), prefix) as vanishing:
            lock = await vanishing.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
            assert lock.unreleased_predecessors == vanished
    for _ in range(2):  # nobody has moved the offset: the first ones may still write where the next would
        lock = await other.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
        assert lock.unreleased_predecessors == 2
        await lock.release()
    lock = await other.locker.acquire(UPLOAD.id, Holder(), 1)
    await other.state.update(UPLOAD, UPLOAD.at(10), lock.token)
    await lock.release()
    lock = await other.locker.acquire(UPLOAD.id, Holder(), 1)
    assert not lock.unreleased_predecessors
    await lock.release()


@contextlib.contextmanager
def holder_process(prefix: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.contracts.redis_holder", shared_redis_url(), prefix, UPLOAD.id]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def lines_of(process: subprocess.Popen[str]) -> AsyncIterator[str]:
    """Read the lines that the process prints before it ends."""
    while line := await line_of(process):
        yield line


@pytest.mark.parametrize("changes", [False, True], ids=["only taken", "taken and changed"])
async def test_a_frozen_holder_loses_its_lock_and_is_told_when_it_wakes_up(
    other: Host, prefix: str, changes: bool
) -> None:
    await other.state.create(UPLOAD)
    with holder_process(prefix) as process:
        token = int(await line_of(process))
        os.kill(process.pid, signal.SIGSTOP)
        assert await other.locker.is_held(UPLOAD.id)
        async with asyncio.timeout(LEASE + BOUNDED):
            lock = await other.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
        assert lock.token > token
        assert lock.unreleased_predecessors
        record: Upload | None = UPLOAD
        if changes:
            record = await other.state.update(UPLOAD, UPLOAD.at(10), lock.token)
        os.kill(process.pid, signal.SIGCONT)
        lines = [line async for line in lines_of(process) if line != "release"]  # a wish may arrive late
        assert lines == ["lost", "LockLost"]
    assert await other.state.get(UPLOAD.id) == record
    assert await other.locker.is_held(UPLOAD.id)
    await lock.release()


@pytest.mark.parametrize("failure", [FaultyNetwork.stall, FaultyNetwork.refuse], ids=["hanging", "refused"])
async def test_a_holder_without_redis_is_told_before_its_lease_ends(
    redis: RedisServer, network: FaultyNetwork, prefix: str, failure: object
) -> None:
    assert callable(failure)
    async with Host(url_of(network), prefix) as cut_off, Host(redis.url, prefix) as other:
        await other.state.create(UPLOAD)
        holder = Holder()
        lock = await cut_off.locker.acquire(UPLOAD.id, holder, 1)
        failure(network)
        waiting = asyncio.create_task(other.locker.acquire(UPLOAD.id, Holder(), TIMEOUT))
        ended = asyncio.create_task(holder.lost.wait())
        done, _ = await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT)
        assert ended in done
        next_lock = await within(waiting)
        assert next_lock.token > lock.token
        network.resume()

        async def change() -> None:
            while True:
                with contextlib.suppress(StateUnavailable):
                    await cut_off.state.update(UPLOAD, UPLOAD.at(50), lock.token)
                    return

        with pytest.raises(LockLost):
            await within(change())
        with pytest.raises(LockLost):
            await cut_off.state.delete(UPLOAD.id, lock.token)
        await lock.release()
        assert await other.locker.is_held(UPLOAD.id)
        await next_lock.release()


async def test_a_holder_whose_lock_another_one_got_is_told(host: Host, other: Host, prefix: str) -> None:
    holder = Holder()
    await host.state.create(UPLOAD)
    lock = await host.locker.acquire(UPLOAD.id, holder, 1)
    forget_lock(prefix)
    next_lock = await other.locker.acquire(UPLOAD.id, Holder(), 0)
    await within(holder.lost.wait())
    await lock.release()
    assert await other.locker.is_held(UPLOAD.id)
    await next_lock.release()


def forget_lock(prefix: str) -> None:
    """Remove a lock in Redis, as if its time was over, without the knowledge of its holder."""
    (key,) = [key for key in keys_of(prefix) if key.endswith(":lock")]
    with Redis.from_url(shared_redis_url()) as client:
        client.delete(key)


@pytest.mark.parametrize("delay", [0, 0.0005, 0.001, 0.002, 0.005])
async def test_a_cancelled_acquisition_leaves_nothing_locked(host: Host, other: Host, delay: float) -> None:
    await host.state.create(UPLOAD)
    for _ in range(20):
        acquiring = asyncio.create_task(host.locker.acquire(UPLOAD.id, Holder(), 0))
        await asyncio.sleep(delay)
        acquiring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await acquiring).release()
        await eventually_free(other, UPLOAD.id, LEASE + BOUNDED)
    lock = await other.locker.acquire(UPLOAD.id, Holder(), 0)
    assert not lock.unreleased_predecessors
    await lock.release()


async def test_an_acquisition_cancelled_while_redis_hangs_leaves_nothing_locked(
    redis: RedisServer, network: FaultyNetwork, prefix: str
) -> None:
    async with Host(url_of(network), prefix) as one, Host(redis.url, prefix) as other:
        await other.state.create(UPLOAD)
        redis.pause()
        acquiring = asyncio.create_task(one.locker.acquire(UPLOAD.id, Holder(), TIMEOUT))
        await asyncio.sleep(0.1)
        acquiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acquiring
        redis.resume()
        await eventually_free(other, UPLOAD.id, LEASE + BOUNDED)


async def test_a_lease_whose_end_moved_away_with_the_clock_of_redis_ends_in_time(other: Host, prefix: str) -> None:
    """Redis keeps the end of a lease as a time of day; its holder has died just before the clock was set back."""
    await other.state.create(UPLOAD)
    async with Host(shared_redis_url(), prefix) as dead:
        lock = await dead.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
        dead.locker.leases._leases.clear()  # nobody renews or releases it
    with Redis.from_url(shared_redis_url()) as client:
        assert client.pexpire(f"{prefix}{{{UPLOAD.id}}}:lock", 86_400_000)
    await eventually_free(other, UPLOAD.id, LEASE + BOUNDED)
    next_lock = await other.locker.acquire(UPLOAD.id, Holder(), 0)
    assert next_lock.token > lock.token
    assert next_lock.unreleased_predecessors
    await next_lock.release()


# Messages.


async def test_a_wish_arrives_at_once(prefix: str) -> None:
    async with Host(shared_redis_url(), prefix, LONG) as one, Host(shared_redis_url(), prefix, LONG) as other:
        await ask_for_release(one, other)
        await ask_for_commit(one, other)


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


async def test_a_release_sends_a_message_only_if_somebody_waits(host: Host, other: Host, prefix: str) -> None:
    with Redis.from_url(shared_redis_url(), decode_responses=True) as client, client.pubsub() as listener:
        listener.subscribe(f"{prefix}wishes")
        await (await host.locker.acquire("alone", Holder(), 1)).release()
        await ask_for_release(host, other)
        client.publish(f"{prefix}wishes", "end")
        messages: list[str] = []
        while "end" not in messages:
            message = listener.get_message(timeout=TIMEOUT)
            assert message is not None
            messages += [message["data"]] if message["type"] == "message" else []
    assert f"released {UPLOAD.id} -" in messages
    assert "released alone -" not in messages


@pytest.mark.parametrize("deaf", ["the holder", "who waits"])
async def test_wishes_are_found_without_messages(
    redis: RedisServer, network: FaultyNetwork, prefix: str, deaf: str
) -> None:
    async with Host(url_of(network), prefix) as muted, Host(redis.url, prefix) as other:
        network.mute_messages()
        pair = (muted, other) if deaf == "the holder" else (other, muted)
        await ask_for_release(*pair)
        await ask_for_commit(*pair)


async def test_messages_arrive_again_after_their_connection_broke(redis: RedisServer, prefix: str) -> None:
    async with Host(redis.url, prefix, LONG) as one, Host(redis.url, prefix, LONG) as other:
        for _ in range(3):
            redis.disconnect_clients()
            await asyncio.to_thread(wait_until, lambda: subscribers(redis, prefix) == 2, "both listen again")
            await ask_for_release(one, other)
            await ask_for_commit(one, other)


def subscribers(redis: RedisServer, prefix: str) -> int:
    return int(redis.command("PUBSUB", "NUMSUB", f"{prefix}wishes")[-1])


# Redis in trouble.


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


@pytest.mark.parametrize("loss", ["all", "one entry"])
async def test_the_index_of_due_uploads_is_rebuilt_after_its_loss(redis: RedisServer, prefix: str, loss: str) -> None:
    async with Host(redis.url, prefix) as one:
        for number in range(450):
            await one.state.create(replace(UPLOAD, id=f"upload-{number}", expires_at=5.0))
        await one.state.create(replace(UPLOAD, id="later", expires_at=1e10))
        await one.state.create(replace(UPLOAD, id="finishing", status=Status.FINISHING, expires_at=None))
        await one.state.create(replace(UPLOAD, id="complete", status=Status.COMPLETE, expires_at=None))
        waiting = replace(UPLOAD, id="waiting", status=Status.FINISHING, concatenation=UploadKind.FINAL)
        await one.state.create(replace(waiting, expires_at=1e10))
        await one.state.repair_index()
        if loss == "all":
            redis.command("DEL", f"{prefix}due")
        else:
            redis.command("ZREM", f"{prefix}due", "upload-7")
        lacking = 453 if loss == "all" else 1
        assert len(await one.state.due(10.0, 1000)) < 451
        assert await one.state.repair_index(older_than=0) == lacking
        due = {upload.id for upload in await one.state.due(10.0, 1000)}
        assert due == {"finishing", *(f"upload-{number}" for number in range(450))}
        assert {"later", "waiting"} <= {upload.id for upload in await one.state.due(2e10, 1000)}


async def test_an_index_that_is_whole_is_not_looked_through_again(
    redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(redis.url, prefix) as one:
        await one.state.create(replace(UPLOAD, expires_at=5.0))
        await one.state.repair_index()
        assert [upload.id for upload in await one.state.due(10.0, 10)] == [UPLOAD.id]
        monkeypatch.setattr(one.connection, "keys", None)
        assert await one.state.repair_index() == 0


async def test_an_index_that_is_lost_while_it_is_compared_is_compared_again(
    redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(redis.url, prefix) as one:
        await one.state.create(replace(UPLOAD, expires_at=5.0))
        index = one.state._due_index
        repair_page = index._repair_page

        async def repair_and_lose(keys: Sequence[str], now: float) -> int:
            repaired = await repair_page(keys, now)
            await one.connection.command("DEL", f"{prefix}due")
            return repaired

        with monkeypatch.context() as patch:
            patch.setattr(index, "_repair_page", repair_and_lose)
            await one.state.repair_index()
        assert await one.state.repair_index() == 1
        assert [upload.id for upload in await one.state.due(10.0, 10)] == [UPLOAD.id]


async def test_scripts_that_redis_forgot_are_sent_again(redis: RedisServer, prefix: str) -> None:
    async with Host(redis.url, prefix) as one:
        await exercise(one)
        redis.command("SCRIPT", "FLUSH")
        await exercise(one)


# Every kind of Redis.


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


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_one_server(redis: RedisServer, prefix: str, scheme: str) -> None:
    async with Host(redis.url.replace("redis://", f"{scheme}://"), prefix) as host:
        await exercise(host)


async def test_a_database_other_than_the_first(redis: RedisServer, prefix: str) -> None:
    async with Host(redis.url_for("", "", database=3), prefix) as host:
        await exercise(host)
        await host.state.create(UPLOAD)
    assert "db3" in redis.command("INFO", "keyspace")
    assert "db0" not in redis.command("INFO", "keyspace")


async def test_a_unix_socket(tmp_path_factory: pytest.TempPathFactory, prefix: str) -> None:
    socket = tmp_path_factory.mktemp("s") / "redis"  # such a path must be short
    with RedisServer(unixsocket=socket):
        async with Host(f"unix://{socket}", prefix) as host:
            await exercise(host)


MINIMAL = "+@read +@write +@scripting +@pubsub +@connection +time"


@pytest.mark.parametrize("rights", [f"{MINIMAL} +info", MINIMAL], ids=["with info", "without info"])
async def test_a_user_with_the_fewest_rights(rights: str) -> None:
    user = f"uploads on >secret ~tus:* &tus:* -@all {rights}"
    with RedisServer(password="another", users=[user]) as redis:
        async with Host(redis.url_for("uploads", "secret"), "tus:") as host:
            await exercise(host)


async def test_a_user_without_a_right_that_is_needed_is_told_so(tmp_path: Path, prefix: str) -> None:
    user = "uploads on >secret ~another:* &another:* +@all"
    with RedisServer(password="another", users=[user]) as redis:
        url = redis.url_for("uploads", "secret")
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(StateUnavailable):
                async with Host(url, "tus:") as host:
                    await host.state.create(UPLOAD)


async def test_an_encrypted_connection(prefix: str) -> None:
    if not is_system_wanted():
        pytest.skip("the packaged server has no TLS; it takes TEST_REDIS=system")
    with RedisServer(tls=True) as redis:
        async with Host(redis.url, prefix) as host:
            await exercise(host)


async def test_a_cluster(tmp_path: Path, prefix: str) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with Host(nodes.url, prefix) as host:
            await exercise(host)
            await host.state.create(replace(UPLOAD, status=Status.FINISHING))
        assert sum(server.command("DBSIZE") > 0 for server in nodes.servers) >= 1


async def test_the_other_hosts_of_a_cluster_are_heard(tmp_path: Path, prefix: str) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with Host(nodes.url, prefix, LONG) as one, Host(nodes.url, prefix, LONG) as other:
            await ask_for_release(one, other)
            await ask_for_commit(one, other)


async def test_uploads_go_on_after_a_failover_by_sentinels(tmp_path: Path, prefix: str) -> None:
    with RedisSentinels(tmp_path / "sentinels") as group:
        async with Host(group.url, prefix) as host:
            await exercise(host)
            await host.state.create(UPLOAD)
            group.first.command("WAIT", 1, 5000)
            assert group.replica.command("EXISTS", *group.replica.command("KEYS", "*record"))
            group.first.kill()
            async with asyncio.timeout(TIMEOUT):
                while True:
                    with contextlib.suppress(StateUnavailable):
                        assert await host.state.get(UPLOAD.id) == UPLOAD
                        await host.state.update(UPLOAD, UPLOAD.at(10), 1)
                        break
                    await asyncio.sleep(0.1)
            await ask_for_release(host, host)


# Cancellation.


def cancel_when_sent(monkeypatch: pytest.MonkeyPatch) -> Callable[[asyncio.Task[Any]], None]:
    """Cancel a task, once it is given, as soon as a connection has sent a command for it."""
    send = AbstractConnection._send_packed_command
    tasks: list[asyncio.Task[Any]] = []

    async def send_and_cancel(connection: AbstractConnection, command: Any) -> None:
        await send(connection, command)
        while tasks:
            asyncio.get_running_loop().call_soon(tasks.pop().cancel)

    monkeypatch.setattr(AbstractConnection, "_send_packed_command", send_and_cancel)
    return tasks.append


async def all_keys(connection: RedisConnection) -> list[str]:
    return [key async for key in connection.keys("no-key*")]


@pytest.mark.parametrize(
    "call", [lambda connection: connection.listeners("channel"), all_keys], ids=["a call", "a scan of keys"]
)
async def test_a_cancellation_that_comes_when_a_command_has_been_sent_ends_the_call(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[RedisConnection], Coroutine[Any, Any, Any]]
) -> None:
    """redis-py sends with `asyncio.wait_for`, which before Python 3.12 prefers a result to a cancellation."""
    connection = RedisConnection(shared_redis_url())
    await connection.open()
    cancel = cancel_when_sent(monkeypatch)
    task = asyncio.create_task(call(connection))
    cancel(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    await connection.close()
