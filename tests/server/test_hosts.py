"""Three hosts with one Redis and one directory: a client may meet a different one at every request."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import (
    Hosts,
    counted,
    files_of,
    is_ready,
    seeded_random,
    several_hosts,
    traces_of,
    wait_until_locked,
)
from tests.support.proxies import RoundRobin
from tests.support.redis_server import RedisServer
from tests.support.timing import promptly, wait_until
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, path_of, payload
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
from tests.support.wire.scenarios import (
    contend,
    look_at_a_running_patch,
    take_over,
    take_over_a_stalled_patch,
    terminate_a_stalled_patch,
)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Hosts]:
    """Three hosts with the default lease; tests that need other settings have hosts of their own."""
    with several_hosts(tmp_path_factory.mktemp("hosts"), redis.url, lock_ttl="6s") as servers:
        yield servers


class Wanderer:
    """A client that sends every request to a host chosen at random."""

    def __init__(self, hosts: Hosts, chance: random.Random) -> None:
        self.hosts = hosts
        self.chance = random.Random(chance.random())

    @property
    def port(self) -> int:
        return self.chance.choice(self.hosts).port

    def send(self, path: str, data: bytes, offset: int, *, deferred: bool = False) -> None:
        """PATCHes, with a checksum now and then, and a HEAD after each."""
        while offset < len(data):
            part = data[offset : offset + self.chance.randrange(1, 120 * KIBI)]
            headers = checksum(part) if self.chance.random() < 0.5 else {}
            if deferred and offset + len(part) == len(data):
                headers["Upload-Length"] = str(len(data))
            answer = patch(self.port, path, offset, part, headers)
            assert (answer.status, answer.offset) == (204, offset + len(part)), answer
            offset = answer.offset
            assert offset_of(self.port, path) == offset

    def assert_everywhere(self, path: str, data: bytes) -> None:
        for server in self.hosts:
            assert offset_of(server.port, path) == len(data)
            assert_content(server.port, path, data)


@pytest.fixture
def wanderer(hosts: Hosts) -> Wanderer:
    return Wanderer(hosts, seeded_random())


# Every request at another host.


@pytest.mark.parametrize("kind", ["plain", "with creation", "deferred"])
def test_every_request_may_meet_another_host(hosts: Hosts, kind: str) -> None:
    chance = seeded_random()

    def upload(number: int) -> None:
        client = Wanderer(hosts, random.Random(chance.random() + number))
        data = payload(600 * KIBI, number)
        first = data[: 50 * KIBI] if kind == "with creation" else b""
        length = None if kind == "deferred" else len(data)
        path = create(client.port, length, {"Upload-Metadata": "filename YQ=="}, first)
        seen = head(client.port, path)
        assert (seen.status, seen.offset, seen.headers["upload-metadata"]) == (200, len(first), "filename YQ==")
        client.send(path, data, len(first), deferred=kind == "deferred")
        client.assert_everywhere(path, data)

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(upload, range(6)))


def test_a_finished_upload_is_one_plain_file(wanderer: Wanderer) -> None:
    data = payload(300 * KIBI)
    path = create(wanderer.port, len(data))
    wanderer.send(path, data, 0)
    (file,) = files_of(wanderer.hosts[0], path)
    assert (file.name, file.read_bytes() == data) == (path.rpartition("/")[2], True)


def test_an_upload_of_no_bytes(wanderer: Wanderer) -> None:
    answer = request(wanderer.port, "POST", "/files", creation_headers(0))
    assert answer.status == 201, answer
    assert answer.offset == 0
    wanderer.assert_everywhere(path_of(answer), b"")


def test_a_wrong_checksum_at_one_host_keeps_nothing_at_another(wanderer: Wanderer) -> None:
    data = payload(2 * MEBI)
    path = create(wanderer.port, len(data))
    assert patch(wanderer.port, path, 0, data[:MEBI]).status == 204
    answer = patch(wanderer.port, path, MEBI, bytes(MEBI), checksum(data[MEBI:]))
    assert answer.status == 460
    for server in wanderer.hosts:
        assert offset_of(server.port, path) == MEBI
    answer = patch(wanderer.port, path, MEBI, data[MEBI:], checksum(data[MEBI:], "sha256"))
    assert (answer.status, answer.offset) == (204, len(data))
    wanderer.assert_everywhere(path, data)


def test_a_wrong_offset_is_answered_with_the_right_one_by_every_host(hosts: Hosts) -> None:
    path = create(hosts[0].port, 1000, body=bytes(400))
    for server in hosts:
        answer = patch(server.port, path, 0, bytes(1000))
        assert (answer.status, answer.offset) == (409, 400)


def test_every_host_describes_a_download_alike(hosts: Hosts) -> None:
    data = payload(MEBI)
    path = create(hosts[0].port, len(data), {"Upload-Metadata": "filename YS50eHQ="}, data)
    answers = [request(server.port, "GET", path, {"Range": "bytes=1000-1999"}) for server in hosts]
    for answer in answers:
        assert (answer.status, answer.body) == (206, data[1000:2000])
    for name in ("etag", "last-modified", "content-disposition", "content-range"):
        assert len({answer.headers[name] for answer in answers}) == 1, name
    for server in hosts:
        assert request(server.port, "GET", path, {"If-None-Match": answers[0].headers["etag"]}).status == 304


def test_every_host_is_ready_and_healthy(hosts: Hosts) -> None:
    for server in hosts:
        assert is_ready(server)
        assert request(server.port, "GET", "/healthz").status == 200


def test_every_request_of_a_client_may_be_dealt_to_another_host(hosts: Hosts) -> None:
    data = payload(MEBI)
    with RoundRobin([server.port for server in hosts]) as proxy:
        path = create(proxy.port, len(data))
        for offset in range(0, len(data), 100 * KIBI):
            assert patch(proxy.port, path, offset, data[offset : offset + 100 * KIBI]).status == 204
        assert_content(proxy.port, path, data)
        assert {port for _, port in proxy.served} == {server.port for server in hosts}


# Coming back at another host.


def test_a_client_resumes_at_another_host(hosts: Hosts, redis: RedisServer) -> None:
    data = payload(3 * MEBI)
    path = create(hosts[0].port, len(data))
    with start_patch(hosts[0].port, path, 0, len(data)) as connection:
        connection.send(data[:MEBI])
        connection.wait_until_read()
        wait_until_locked(redis, path)  # a host that has just started reads more than it has stored until then
        connection.reset()
    with promptly("HEAD"):
        assert offset_of(hosts[1].port, path) == MEBI
    complete(hosts[2].port, path, data)


@pytest.mark.parametrize("silence", [0.0, 1.5])
def test_a_patch_that_stalls_at_one_host_is_taken_over_by_another(hosts: Hosts, silence: float) -> None:
    path = take_over_a_stalled_patch([server.port for server in hosts], silence)
    assert len(files_of(hosts[0], path)) == 1


def test_many_patches_that_stall_at_every_host_are_taken_over(hosts: Hosts) -> None:
    data = payload(MEBI)
    paths = [create(hosts[0].port, len(data)) for _ in range(12)]
    with ExitStack() as stack:
        for number, path in enumerate(paths):
            stack.enter_context(stalled_patch(hosts[number % 3].port, path, data, 1 + 40_000 * number))
        for number, path in enumerate(paths):
            complete(hosts[(number + 1) % 3].port, path, data)


def test_a_newcomer_at_another_host_needs_no_head(hosts: Hosts) -> None:
    data = payload(MEBI)
    path = create(hosts[0].port, len(data))
    with stalled_patch(hosts[0].port, path, data, 700_000):
        with promptly("the PATCH"):
            answer = patch(hosts[1].port, path, 700_000, data[700_000:])
        assert (answer.status, answer.offset) == (204, len(data))
    assert_content(hosts[2].port, path, data)


def test_a_second_patch_takes_over_a_live_one_of_another_host(hosts: Hosts) -> None:
    take_over([host.port for host in hosts])


def test_a_stalled_patch_with_a_checksum_keeps_nothing_at_any_host(hosts: Hosts) -> None:
    data = payload(MEBI)
    path = create(hosts[0].port, len(data), body=data[:1000])
    with start_patch(hosts[0].port, path, 1000, len(data) - 1000, checksum(data[1000:])) as stalled:
        stalled.send(data[1000:500_000])
        stalled.wait_until_read()
        with promptly("HEAD"):
            assert offset_of(hosts[1].port, path) == 1000
        complete(hosts[2].port, path, data, checksum(data[1000:]))


def test_head_at_another_host_neither_waits_for_a_running_patch_nor_ends_it(hosts: Hosts) -> None:
    look_at_a_running_patch(hosts[0].port, hosts[1].port, payload(12 * MEBI))


def test_contending_writers_at_different_hosts_never_interleave(hosts: Hosts) -> None:
    contend([server.port for server in hosts], payload(2 * MEBI), writers=6)


# Putting together, removing, expiring.


def test_partials_of_different_hosts_are_concatenated(hosts: Hosts) -> None:
    parts = [payload(size, size) for size in (300 * KIBI, 1, 0, 2 * MEBI)]
    ports = [server.port for server in (*hosts, hosts[0])]

    def upload(number: int) -> str:
        path = create(ports[number], len(parts[number]), {"Upload-Concat": "partial"})
        if parts[number]:
            assert patch(ports[number - 1], path, 0, parts[number]).status == 204
        return path

    def concatenate(port: int) -> Answer:
        return request(port, "POST", "/files", headers)

    with ThreadPoolExecutor(4) as executor:
        headers = {"Upload-Concat": "final;" + " ".join(executor.map(upload, range(4)))}
        answers = list(executor.map(concatenate, ports))  # a client that did not wait for the answer
    assert [answer.status for answer in answers] == [201] * 4
    assert len({path_of(answer) for answer in answers}) == 1
    for server in hosts:
        assert head(server.port, path_of(answers[0])).headers["upload-concat"] == headers["Upload-Concat"]
        assert_content(server.port, path_of(answers[0]), b"".join(parts))


def test_a_final_upload_cannot_be_changed_at_any_host(hosts: Hosts) -> None:
    partial = create(hosts[0].port, 100, {"Upload-Concat": "partial"}, bytes(100))
    final = path_of(request(hosts[1].port, "POST", "/files", {"Upload-Concat": f"final;{partial}"}))
    for server in hosts:
        assert patch(server.port, final, 100, b"more").status == 403


def test_an_unfinished_partial_of_another_host_is_refused(hosts: Hosts) -> None:
    partial = create(hosts[0].port, 100, {"Upload-Concat": "partial"}, bytes(99))
    assert request(hosts[1].port, "POST", "/files", {"Upload-Concat": f"final;{partial}"}).status == 400


@pytest.mark.parametrize("finished", [False, True])
def test_a_termination_is_known_to_every_host(hosts: Hosts, finished: bool) -> None:
    path = create(hosts[0].port, 1000, body=bytes(1000 if finished else 500))
    assert request(hosts[1].port, "DELETE", path).status == 204
    for server in hosts:
        assert head(server.port, path).status == 404
        assert request(server.port, "GET", path).status == 404
        assert request(server.port, "DELETE", path).status == 404
        assert patch(server.port, path, 500, bytes(500)).status == 404
    assert traces_of(hosts[0], path) == []


def test_an_upload_whose_patch_is_stalled_at_another_host_can_be_terminated(hosts: Hosts) -> None:
    path = terminate_a_stalled_patch([server.port for server in hosts])
    assert traces_of(hosts[0], path) == []


def test_nothing_of_a_terminated_upload_stays_in_redis(hosts: Hosts, redis: RedisServer) -> None:
    path = create(hosts[0].port, 1000, body=bytes(500))
    upload_id = path.rpartition("/")[2]
    assert redis.command("KEYS", f"*{upload_id}*")
    assert request(hosts[1].port, "DELETE", path).status == 204
    wait_until(lambda: not redis.command("KEYS", f"*{upload_id}*"), "every key of the upload is gone", 10)


def test_expired_uploads_are_swept_once_by_all_hosts_together(tmp_path: Path, redis: RedisServer) -> None:
    data = payload(100 * KIBI)
    options: dict[str, Any] = {"redis_prefix": "swept:", "expires_after": "1.5s", "sweep_interval": "0.2s"}
    with several_hosts(tmp_path, redis.url, **options) as servers:
        unfinished = [create(servers[number % 3].port, len(data), body=data[:1000]) for number in range(9)]
        finished = create(servers[0].port, len(data), body=data)
        kept_alive = create(servers[0].port, len(data))
        offset = 0
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:  # every byte puts the expiry off, at whatever host
            offset = patch(servers[offset % 3].port, kept_alive, offset, data[offset : offset + 1]).offset
            time.sleep(0.1)
        for number, path in enumerate(unfinished):
            assert head(servers[number % 3].port, path).status == 404
            assert patch(servers[number % 3 - 1].port, path, 1000, data[1000:]).status == 404
        wait_until(lambda: not any(traces_of(servers[0], path) for path in unfinished), "their files are removed", 10)
        for server in servers:
            assert_content(server.port, finished, data)
            assert offset_of(server.port, kept_alive) == offset
        assert counted(servers, "tusd_uploads_expired") == len(unfinished)
        complete(servers[1].port, kept_alive, data)
        names = [path.rpartition("/")[2] for path in unfinished]
        # A late attempt of a creation is refused for some seconds.
        wait_until(lambda: not any(redis.command("KEYS", f"*{name}*") for name in names), "their keys are removed", 10)


def test_the_sweeper_of_one_host_leaves_the_patch_of_another_alone(tmp_path: Path, redis: RedisServer) -> None:
    """An upload whose expiry passes while bytes arrive is in use, and not swept."""
    data = payload(100_000)
    options: dict[str, Any] = {"redis_prefix": "in-use:", "expires_after": "1s", "sweep_interval": "0.1s"}
    with several_hosts(tmp_path, redis.url, 2, **options) as (first, second):
        path = create(first.port, len(data))
        with start_patch(first.port, path, 0, len(data)) as connection:
            for start in range(0, len(data), 5_000):
                connection.send(data[start : start + 5_000])
                time.sleep(0.15)  # three seconds altogether
            answer = connection.answer()
        assert (answer.status, answer.offset) == (204, len(data))
        assert_content(second.port, path, data)


# Hosts come and go.


def test_a_host_that_shuts_down_hands_its_uploads_to_the_others(tmp_path: Path, redis: RedisServer) -> None:
    data = payload(2 * MEBI)
    with several_hosts(tmp_path, redis.url, 2, redis_prefix="leaving:") as (first, second):
        path = create(first.port, len(data))
        with stalled_patch(first.port, path, data, 900_000) as connection:
            first.process.terminate()
            answer = connection.answer_or_closed()
            assert answer is None or answer.status == 503
            complete(second.port, path, data)
        first.wait(15)
        assert len(files_of(second, path)) == 1


def test_a_host_that_joins_serves_what_is_there(tmp_path: Path, redis: RedisServer) -> None:
    data = payload(MEBI)
    with several_hosts(tmp_path, redis.url, 1, redis_prefix="joining:") as (first,):
        unfinished = create(first.port, len(data), body=data[:5000])
        finished = create(first.port, len(data), body=data)
        with several_hosts(tmp_path, redis.url, 1, redis_prefix="joining:") as (second,):
            assert_content(second.port, finished, data)
            complete(second.port, unfinished, data)
        assert_content(first.port, unfinished, data)


def test_several_processes_of_a_host_share_its_uploads_with_another_host(tmp_path: Path, redis: RedisServer) -> None:
    data = payload(MEBI)
    with several_hosts(tmp_path, redis.url, 2, workers=2, redis_prefix="workers:") as (first, second):
        paths = [create(first.port, len(data)) for _ in range(8)]
        with ExitStack() as stack:
            for number, path in enumerate(paths):
                stack.enter_context(stalled_patch(first.port, path, data, 1000 * (number + 1)))
            for path in paths:
                complete(second.port, path, data)


def test_two_prefixes_do_not_see_each_others_uploads(tmp_path: Path, redis: RedisServer) -> None:
    with (
        several_hosts(tmp_path / "a", redis.url, 1, redis_prefix="a:") as (first,),
        several_hosts(tmp_path / "b", redis.url, 1, redis_prefix="b:") as (second,),
    ):
        path = create(first.port, 10, body=b"12345")
        assert head(second.port, path).status == 404
        assert offset_of(first.port, path) == 5


@pytest.mark.parametrize("attempt", range(3))
def test_hosts_that_start_at_once_share_a_new_directory(tmp_path: Path, redis: RedisServer, attempt: int) -> None:
    with several_hosts(tmp_path, redis.url, 4, redis_prefix=f"new-{attempt}:") as servers:
        data = payload(50_000)
        paths = [create(server.port, len(data), body=data) for server in servers]
        for server in servers:
            for path in paths:
                assert_content(server.port, path, data)
