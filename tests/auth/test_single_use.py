"""The one creation of a grant on several hosts with Redis: under concurrent requests, and while hosts are killed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from tests.auth.signing import creation, signing_files
from tests.support.harness import ServerProcess, serving
from tests.support.hosts import Hosts, several_hosts
from tests.support.redis_server import shared_redis_url
from tests.support.stored import stored
from tests.support.timing import wait_until
from tests.support.wire.messages import creation_headers
from tests.support.wire.requests import request

REQUESTS = 50
BODIES = {"empty": b"", "with bytes": b"four"}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    options = signing_files(tmp_path, capability_urls=True, redis_prefix=f"{tmp_path.name}:")
    with several_hosts(tmp_path, shared_redis_url(), **options) as servers:
        yield servers


def records(tmp_path: Path) -> list[str]:
    with Redis.from_url(shared_redis_url(), decode_responses=True) as client:
        return [
            key
            for key in client.keys(f"{tmp_path.name}:*")
            if client.type(key) == "hash" and client.hexists(key, "created_at")
        ]


def race(servers: Sequence[ServerProcess], url: str, body: bytes) -> list[tuple[int, str]]:
    """Send the same creation many times at once; return the statuses, each with the Location or the text."""
    start = threading.Barrier(REQUESTS)

    def post(number: int) -> tuple[int, str]:
        start.wait(60)
        answer = request(servers[number % len(servers)].port, "POST", url, creation_headers(4, body), body)
        return answer.status, answer.get("Location") or answer.text

    with ThreadPoolExecutor(REQUESTS) as executor:
        return list(executor.map(post, range(REQUESTS)))


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("workers", [1, 3])
def test_one_of_fifty_requests_to_the_processes_of_a_host_creates_the_upload(
    tmp_path: Path, workers: int, kind: str
) -> None:
    with serving(tmp_path, **signing_files(tmp_path), workers=workers) as server:
        answers = race([server], creation(owner="ann"), BODIES[kind])
        assert sorted(status for status, _ in answers) == [201] + [401] * (REQUESTS - 1)
        assert [record[1] for record in stored(server).records.values()] == [len(BODIES[kind])]


@pytest.mark.parametrize("kind", BODIES)
def test_one_of_fifty_requests_to_three_hosts_creates_the_upload(hosts: Hosts, tmp_path: Path, kind: str) -> None:
    body, url = BODIES[kind], creation(owner="ann")
    answers = race(hosts, url, body)
    assert sorted(status for status, _ in answers) == [201] + [401] * (REQUESTS - 1)
    texts = {text for status, text in answers if status == 401}
    assert texts == {"ERR_UNAUTHORIZED: this URL has created its upload\n"}
    assert len(records(tmp_path)) == 1
    location = next(text for status, text in answers if status == 201).partition("/files")[2]
    for server in hosts:
        assert request(server.port, "HEAD", f"/files{location}", {"Tus-Resumable": "1.0.0"}).offset == len(body)
    assert request(hosts[0].port, "DELETE", f"/files{location}", {"Tus-Resumable": "1.0.0"}).status == 204
    assert [request(server.port, "POST", url, creation_headers(4)).status for server in hosts] == [401] * 3


def test_grants_are_used_once_while_hosts_are_killed(hosts: Hosts, tmp_path: Path) -> None:
    urls = [creation(owner="ann") for _ in range(12)]
    created: list[str] = []
    over = threading.Event()

    def post(number: int) -> None:
        server = hosts[number % len(hosts)]
        while not over.is_set():
            for url in urls:
                with contextlib.suppress(OSError, AssertionError):  # the host has just been killed
                    if request(server.port, "POST", url, creation_headers(4, b"four"), b"four").status == 201:
                        created.append(url)

    with ThreadPoolExecutor(6) as executor:
        for number in range(6):
            executor.submit(post, number)
        try:
            for server in (*hosts, *hosts):
                server.restart()
        finally:
            over.set()

    def is_used(url: str) -> bool:
        answer = request(hosts[0].port, "POST", url, creation_headers(4))
        if answer.status == 201:
            created.append(url)
        return answer.status == 401

    for url in urls:
        wait_until(partial(is_used, url))
    assert len(created) == len(set(created))
    assert len(records(tmp_path)) == len(urls)
