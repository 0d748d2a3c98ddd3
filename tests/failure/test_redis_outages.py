"""Hosts that cannot reach Redis, and a Redis that is away: every request is answered in time, and no byte is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.hosts import (
    LEASE,
    RECOVERY,
    assert_ended,
    is_ready,
    proxied_url,
    several_hosts,
    taken_over,
)
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.timing import promptly, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, Answer, creation_headers, patch_headers, payload
from tests.support.wire.requests import (
    assert_content,
    complete,
    create,
    offset_of,
    patch,
    request,
    start_patch,
)

# Two clients that send different bytes show in the file who wrote what.
OLD, NEW = payload(6 * MEBI, 1), payload(6 * MEBI, 2)
BOUNDED = 5.0  # seconds within which a request is answered while Redis is away


# A host that cannot reach Redis.


@pytest.mark.long
@pytest.mark.parametrize("failure", [FaultyNetwork.stall, FaultyNetwork.refuse], ids=["hanging", "refused"])
def test_a_host_cut_off_from_redis_stops_writing_before_its_lease_ends(
    tmp_path: Path, redis: RedisServer, failure: Callable[[FaultyNetwork], None]
) -> None:
    """The host goes on receiving bytes: only its connection to Redis is gone."""
    piece = 20 * KIBI
    with (
        FaultyNetwork(redis.port) as network,
        several_hosts(tmp_path, [proxied_url(network), redis.url]) as (first, second),
    ):
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


def send_until_closed(connection: Connection, data: bytes, piece: int) -> None:
    """Send slowly until the server closes the connection."""
    with suppress(OSError):
        for start in range(0, len(data), piece):
            connection.send(data[start : start + piece])
            time.sleep(0.03)


@pytest.mark.long
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


@pytest.mark.long
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
    piece = 8 * KIBI  # all pieces fit into the kernel: a server that waits for Redis need not read them
    data = payload(64 * piece)
    with several_hosts(tmp_path, redis.url, 2, lock_ttl="12s") as (first, second):
        path = create(first.port, len(data))
        with start_patch(first.port, path, 0, len(data)) as connection:
            connection.send(data[: 4 * piece])
            wait_until(lambda: offset_of(second.port, path) == 4 * piece, "the append has begun and can be asked")
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


@pytest.mark.long
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
