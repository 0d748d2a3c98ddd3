"""Quotas under concurrent creations of several processes that are killed: never over, never leaking."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess
from tests.support.hosts import Hosts, seeded_random, several_hosts
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tests.support.wire.messages import TUS, Answer, creation_headers, patch_headers, path_of
from tests.support.wire.requests import create, request

QUOTA, UPLOADS = 1000, 40
CLIENTS = 50
KILLS = int(os.environ.get("QUOTA_KILLS", "4"))
OPTIONS: dict[str, Any] = {
    "quota_bytes": QUOTA,
    "quota_uploads": UPLOADS,
    "expires_after": "3s",
    "sweep_interval": "300ms",
}
ENDED = ("terminated", "expired")
READ_REDIS = """
local found = {redis.call('HMGET', 'tus:usage', 'b ', 'n ')}
for _, key in ipairs(redis.call('KEYS', 'tus:*:record')) do
  table.insert(found, redis.call('HMGET', key, 'length', 'offset', 'status', 'uncounted'))
end
return found
"""


@dataclass(frozen=True)
class Moment:
    """All records of one moment that count, as length, offset and status, with the usage that the store has counted."""

    records: Sequence[tuple[int | None, int, str]]
    usage: tuple[int, int]

    @property
    def unfinished(self) -> int:
        return sum(status not in (*ENDED, "complete") for *_, status in self.records)

    @property
    def held(self) -> int:
        living = [record for record in self.records if record[2] not in ENDED]
        return sum(offset if length is None else length for length, offset, _ in living)

    def assert_within_quota(self) -> None:
        assert self.held <= QUOTA, self
        assert self.unfinished <= UPLOADS, self
        assert self.usage == (self.held, self.unfinished), self


Look = Callable[[], Moment]


@contextlib.contextmanager
def sqlite_processes(folder: Path) -> Iterator[tuple[Hosts, Look]]:
    path = f"file:{folder / 'uploads' / '.tusd-py' / 'uploads.sqlite3'}?mode=ro"

    def look() -> Moment:
        with contextlib.closing(sqlite3.connect(path, uri=True, isolation_level=None)) as file:
            file.execute("BEGIN")
            records = file.execute("SELECT length, offset, status FROM uploads WHERE uncounted = 0").fetchall()
            usage = file.execute("SELECT bytes, open FROM owner_usage WHERE owner = ''").fetchone()
        return Moment(records, usage or (0, 0))

    servers = [ServerProcess(folder / "uploads", **OPTIONS) for _ in range(3)]
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        yield servers, look


@contextlib.contextmanager
def redis_hosts(folder: Path) -> Iterator[tuple[Hosts, Look]]:
    with RedisServer() as redis:

        def look() -> Moment:
            (size, unfinished), *records = redis.command("EVAL", READ_REDIS, 0)
            counting = [record[:3] for record in records if record[3] is None]
            found = [(length and int(length), int(offset), status) for length, offset, status in counting]
            return Moment(found, (int(size or 0), int(unfinished or 0)))

        with several_hosts(folder, redis.url, **OPTIONS) as servers:
            yield servers, look


PLACES = {"sqlite": sqlite_processes, "redis": redis_hosts}


class Client:
    """A client that creates uploads of all kinds, writes to some, and removes most."""

    def __init__(self, servers: Hosts, chance: random.Random) -> None:
        self.servers = servers
        self.chance = random.Random(chance.random())
        self.created = self.refused = 0

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer | None:
        """Make a request of a server that may die; return the answer, None if there is none."""
        try:
            return request(self.chance.choice(self.servers).port, method, path, TUS | headers, body)
        except OSError:
            return None

    def run(self, over: threading.Event) -> None:
        while not over.is_set():
            length = self.chance.choice((None, self.chance.randrange(1, 100), 0))
            size = 30 if length is None else length
            body = b"x" * (size if self.chance.random() < 0.1 else self.chance.randrange(size or 1))
            answer = self.send("POST", "/files", creation_headers(length, body), body)
            if answer is None:
                continue
            assert answer.status in (201, 413, 503), answer
            self.refused += answer.status == 413
            if answer.status != 201:
                continue
            self.created += 1
            path = path_of(answer)
            if length is None:
                self.send("PATCH", path, patch_headers(answer.offset), b"y" * 20)
            if self.chance.random() < 0.7:
                self.send("DELETE", path, {})


@pytest.mark.parametrize("place", PLACES)
def test_quota_holds_and_leaks_nothing_while_processes_are_killed(place: str, tmp_path: Path) -> None:
    chance = seeded_random()
    over = threading.Event()
    with PLACES[place](tmp_path) as (servers, look), ThreadPoolExecutor(CLIENTS) as executor:
        clients = [Client(servers, chance) for _ in range(CLIENTS)]
        running = [executor.submit(client.run, over) for client in clients]
        try:
            for _ in range(KILLS):
                wait_for_requests(clients)
                look().assert_within_quota()
                victim = chance.choice(servers)
                victim.kill()
                look().assert_within_quota()
                wait_for_requests(clients)
                victim.start_again()
        finally:
            over.set()
        for one in running:
            one.result()
        assert all(sum(count) for count in zip(*((one.created, one.refused) for one in clients), strict=True))
        look().assert_within_quota()
        assert_nothing_leaked(servers, look)


def test_upload_with_more_bytes_than_its_record_counts_until_it_expires(tmp_path: Path) -> None:
    """A crash leaves such an upload; its bytes are kept for the operator, where its owner cannot remove them."""
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads, quota_bytes=10, expires_after="1s", sweep_interval="0") as server:
        path = create(server.port, None, body=b"x" * 10)
        assert request(server.port, "POST", "/files", creation_headers(1)).status == 413
    with (uploads / path.rpartition("/")[2]).open("ab") as file:
        file.write(b"more")
    with ServerProcess(uploads, quota_bytes=10, quota_uploads=1, sweep_interval="200ms") as server:
        wait_until(lambda: request(server.port, "POST", "/files", creation_headers(10)).status == 201, "it expires")
        assert request(server.port, "POST", "/files", creation_headers(1)).status == 413
    assert (uploads / path.rpartition("/")[2]).read_bytes() == b"x" * 10 + b"more"


def wait_for_requests(clients: Sequence[Client]) -> None:
    """Return after the clients have had some answers."""

    def answers() -> int:
        return sum(client.created + client.refused for client in clients)

    before = answers()
    wait_until(lambda: answers() > before + CLIENTS, "the clients are served", 60)


def assert_nothing_leaked(servers: Hosts, look: Look) -> None:
    """Wait until all that is unfinished has expired, and use the whole quota again, on every server."""
    wait_until(lambda: look().unfinished == 0, "unfinished uploads expire", 60)
    moment = look()
    moment.assert_within_quota()
    for server in servers:
        answer = request(server.port, "POST", "/files", creation_headers(QUOTA - moment.held + 1))
        assert answer.status == 413, answer
        answer = request(server.port, "POST", "/files", creation_headers(QUOTA - moment.held))
        assert answer.status == 201, answer
        assert request(server.port, "DELETE", path_of(answer), TUS).status in (204, 404)
        look().assert_within_quota()
