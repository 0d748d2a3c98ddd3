"""Calls of Redis whose answer is lost, whose connection breaks, or whose caller is cancelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from redis.asyncio.connection import AbstractConnection

from tests.contracts.parts import within
from tests.support.proxies import FaultyNetwork
from tests.support.redis_hosts import UPLOAD, Holder, Host, exercise, url_of
from tests.support.redis_server import RedisServer, shared_redis_url
from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.core.errors import LockLost, StateUnavailable, UploadExists
from tusd_py.core.upload import Upload, UploadPart


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


async def test_a_call_that_is_tried_again_after_its_connection_was_closed_ends_as_unavailable(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = RedisConnection(redis.url)
    await connection.open()
    failed = asyncio.Event()
    monkeypatch.setattr(connection, "_report_call", lambda *_, **__: failed.set())
    redis.stop()

    call = asyncio.create_task(connection.command("GET", "key"))
    await within(failed.wait())
    await connection.close()

    with pytest.raises(StateUnavailable):
        await within(call)


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
            pipeline._current._writer.transport.abort()
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


@LOOPS
def test_calls_whose_time_is_over_at_once_leave_the_next_ones_alone(
    redis: RedisServer, prefix: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def ask() -> None:
        async with Host(redis.url, prefix) as one:
            pipeline: Any = one.connection._pipeline
            now = asyncio.get_running_loop().time()
            calls = [pipeline.call(("PING",), now + seconds) for seconds in (0.0002, 0.0001)]
            for result in await within(asyncio.gather(*calls, return_exceptions=True)):
                assert result == "PONG" or isinstance(result, TimeoutError), result
            await one.state.create(UPLOAD)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(ask())


async def test_scripts_that_redis_forgot_are_sent_again(redis: RedisServer, prefix: str) -> None:
    async with Host(redis.url, prefix) as one:
        await exercise(one)
        redis.command("SCRIPT", "FLUSH")
        await exercise(one)


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
