"""Leases of locks in Redis, and the messages between their holders."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis

from tests.contracts.parts import TIMEOUT, line_of, within
from tests.support.harness import ROOT
from tests.support.proxies import FaultyNetwork
from tests.support.redis_hosts import (
    BOUNDED,
    LEASE,
    LONG,
    UPLOAD,
    Holder,
    Host,
    ask_for_commit,
    ask_for_release,
    eventually_free,
    keys_of,
    subscribers,
    url_of,
)
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.timing import wait_until
from tusd_py.core.errors import LockLost, LockTimeout, StateUnavailable
from tusd_py.core.upload import Upload


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


async def test_last_holder_counts_as_unreleased_after_redis_was_a_replica_meanwhile(prefix: str) -> None:
    """The data of a master that followed another one for a while are those of the other one: a lease may be lost."""
    with RedisServer() as first, RedisServer() as second:
        async with Host(first.url, prefix) as one:
            await one.state.create(UPLOAD)
            lock = await one.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
            await lock.release()
        follow(second, first)
        second.command("REPLICAOF", "NO", "ONE")
        follow(first, second)
        first.command("REPLICAOF", "NO", "ONE")
        async with Host(first.url, prefix) as one:
            lock = await one.locker.acquire(UPLOAD.id, Holder(), TIMEOUT)
            assert lock.unreleased_predecessors == 1
            await lock.release()


def follow(replica: RedisServer, master: RedisServer) -> None:
    master.command("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    replica.command("REPLICAOF", "127.0.0.1", master.port)
    wait_until(lambda: replica.command("INFO", "replication")["master_link_status"] == "up", seconds=60)


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


async def test_a_wish_arrives_at_once(prefix: str) -> None:
    async with Host(shared_redis_url(), prefix, LONG) as one, Host(shared_redis_url(), prefix, LONG) as other:
        await ask_for_release(one, other)
        await ask_for_commit(one, other)


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
