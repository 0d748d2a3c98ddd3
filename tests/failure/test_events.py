"""kill -9 of the server, the receiver and Redis at any time: events arrive at least once, in order, none invented.

`EVENT_UPLOADS` is the number of uploads of the random runs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clocks import DAY, PreloadedClock
from tests.support.event_receiver import EventReceiver, check_received
from tests.support.harness import ROOT, ServerProcess
from tests.support.hook_endpoint import NO_OPINION, Asked, HookEndpoint, Reply
from tests.support.hosts import counted, seeded_random, several_hosts
from tests.support.process_memory import resident_size
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.timing import TIMEOUT, promptly, scaled, wait_until
from tests.support.wire.messages import creation_headers, patch_headers, path_of
from tests.support.wire.requests import complete, create, head, patch, request

UPLOADS = int(os.environ.get("EVENT_UPLOADS", "40"))
WAITING = int(os.environ.get("EVENTS_WAITING", "1000"))
MEBI = 1 << 20


def stored_events(server: ServerProcess) -> list[dict[str, Any]]:
    """Return the answer of `tusd-py events list --json`, beside the running server or without one."""
    arguments = ["events", "list", "--json", "--upload-dir", str(server.upload_dir)]
    if "redis_url" in server.options:
        arguments += ["--redis-url", str(server.options["redis_url"])]
    command = [sys.executable, "-m", "tusd_py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def told_of(receiver: EventReceiver) -> set[str]:
    """Return the ids of the events that have arrived."""
    return {event["id"] for event in receiver.received()}


def id_of(path: str) -> str:
    return path.rpartition("/")[2]


def upload(port: int, data: bytes = b"some bytes") -> str:
    """Upload in two requests; return the id."""
    path = create(port, len(data))
    complete(port, path, data)
    return id_of(path)


# One kill at a certain point.


def test_events_of_an_upload_outlive_a_kill_before_their_delivery(tmp_path: Path) -> None:
    receiver = EventReceiver(tmp_path)
    with ServerProcess(tmp_path / "uploads", events_to=receiver.url) as server:
        upload_id = upload(server.port)
        server.kill()
        listed = sorted(stored_events(server), key=lambda one: int(one["sequence"]))
        assert [(one["upload"], one["type"]) for one in listed] == [
            (upload_id, "tus.upload.created"),
            (upload_id, "tus.upload.finished"),
        ]
        assert {one["sink"] for one in listed} == {receiver.url}
        assert {one["status"] for one in listed} == {"waiting"}
        with receiver:
            server.start_again()
            events = receiver.wait_for(2)
        assert [event["id"] for event in events] == [one["id"] for one in listed]
        assert [event["type"] for event in events] == [one["type"] for one in listed]
        wait_until(lambda: stored_events(server) == [], "the outbox is empty")


def test_event_comes_again_with_its_id_after_a_kill_before_the_answer(tmp_path: Path) -> None:
    with (
        EventReceiver(tmp_path, "hold") as receiver,
        ServerProcess(tmp_path / "uploads", events_to=receiver.url) as server,
    ):
        upload_id = upload(server.port)
        first = receiver.wait_for(1)[0]
        server.kill()
        receiver.restart("take")
        server.start_again()
        events = receiver.wait_for(3)
        assert [event["id"] for event in events[:2]] == [first["id"], first["id"]]
        assert list(check_received(events)) == [upload_id]
        wait_until(lambda: stored_events(server) == [], "the outbox is empty")


def test_event_comes_again_after_a_kill_of_the_receiver_before_its_answer(tmp_path: Path) -> None:
    with (
        EventReceiver(tmp_path, "hold") as receiver,
        ServerProcess(tmp_path / "uploads", events_to=receiver.url) as server,
    ):
        upload(server.port)
        first = receiver.wait_for(1)[0]
        receiver.restart("take")
        events = receiver.wait_for(3)
        assert [event["id"] for event in events[:2]] == [first["id"], first["id"]]
        check_received(events)


def test_another_host_delivers_after_a_kill_of_the_one_that_did(tmp_path: Path, redis: RedisServer) -> None:
    with (
        EventReceiver(tmp_path) as receiver,
        several_hosts(tmp_path, redis.url, events_to=receiver.url) as hosts,
    ):
        first = upload(hosts[0].port)
        receiver.wait_for(2)
        receiver.kill()
        uploads = {first, *(upload(host.port) for host in hosts)}
        for host in hosts[:2]:  # one of these or the third one delivers; either way the third one has to
            host.kill()
        receiver.start()
        wait_until(lambda: len(told_of(receiver)) == 2 * len(uploads), "every upload is told of", scaled(60))
        assert set(check_received(receiver.received())) == uploads
        for host in hosts[:2]:
            host.start_again()


# Redis in trouble.


def test_a_full_redis_stores_the_event_of_a_deletion_and_delivers(tmp_path: Path, redis: RedisServer) -> None:
    receiver = EventReceiver(tmp_path)
    with ServerProcess(tmp_path / "uploads", events_to=receiver.url, redis_url=redis.url, lock_ttl="2s") as server:
        upload_id = upload(server.port)
        redis.command("CONFIG", "SET", "maxmemory", 1 << 20)
        assert request(server.port, "POST", "/files", creation_headers(5)).status == 507
        assert request(server.port, "DELETE", f"/files/{upload_id}").status == 204
        with receiver:
            told = check_received(receiver.wait_for(3))
            wait_until(lambda: stored_events(server) == [], "the outbox is empty")
        types = [event["type"].rpartition(".")[2] for event in told[upload_id]]
        assert types == ["created", "finished", "terminated"]


def test_hosts_with_wrong_clocks_deliver_by_the_clock_of_redis(
    tmp_path: Path, redis: RedisServer, clock_library: Path
) -> None:
    with EventReceiver(tmp_path, "refuse") as receiver, ExitStack() as stack:
        hosts = []
        for name, ahead in (("ahead", 1.5 * DAY), ("behind", -1.5 * DAY)):
            clock = PreloadedClock(tmp_path / name, clock_library)
            clock.set(ahead)
            options: dict[str, Any] = {"redis_url": redis.url, "events_to": receiver.url, "lock_ttl": "2s"}
            host = ServerProcess(tmp_path / "uploads", env=clock.env, **options)
            hosts.append(stack.enter_context(host))
        uploads = {upload(host.port) for host in hosts}
        wait_until(lambda: any(one["attempts"] for one in stored_events(hosts[0])), "an attempt has failed")
        receiver.restart("take")
        told = check_received(receiver.wait_for(4))
        assert set(told) == uploads
        for events in told.values():
            for event in events:
                age = time.time() - datetime.fromisoformat(event["time"]).timestamp()
                assert -60 < age < 3600


# Kills at random.


@dataclass
class Uploads:
    """Clients that upload through every kill, and know what they were told.

    They end after `wanted` uploads, and not before a tenth as many kills.
    """

    ports: Sequence[int]
    chance: random.Random
    wanted: int
    kills: int = 0
    finished: set[str] = field(default_factory=set)
    created: set[str] = field(default_factory=set)
    started: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        while True:
            with self.lock:
                if self.started >= self.wanted and self.kills >= self.wanted // 10:
                    return
                self.started += 1
                data = self.chance.randbytes(self.chance.randrange(1, 30_000))
            self.upload(data)

    def upload(self, data: bytes) -> None:
        body = data[: self.chance.choice([0, 0, len(data), len(data) // 2])]
        headers = creation_headers(len(data), body) if body else creation_headers(len(data))
        made = self.again(lambda: request(self.port(), "POST", "/files", headers, body, timeout=5), {201})
        path, offset = path_of(made), made.offset
        self.created.add(id_of(path))
        while offset < len(data):
            with suppress(OSError):
                request(self.port(), "PATCH", path, patch_headers(offset), data[offset:], timeout=5)
            offset = self.again(lambda: request(self.port(), "HEAD", path, patch_headers(0), timeout=5), {200}).offset
        self.finished.add(id_of(path))

    def port(self) -> int:
        return self.chance.choice(self.ports)

    def again(self, call: Callable[[], Any], allowed: set[int]) -> Any:
        while True:
            with suppress(OSError):
                answer = call()
                if answer.status in allowed:
                    return answer
                assert answer.status in (423, 503), answer
            time.sleep(0.05)


def upload_and_kill(uploads: Uploads, kills: Sequence[Callable[[], None]], chance: random.Random) -> None:
    """Let four clients upload while something is killed all the time."""
    with ThreadPoolExecutor(4) as executor:
        running = [executor.submit(uploads.run) for _ in range(4)]
        while not all(one.done() for one in running):
            time.sleep(chance.uniform(0.05, 0.8))
            chance.choice(kills)()
            uploads.kills += 1
        for one in running:
            one.result()


def wait_until_empty(server: ServerProcess) -> None:
    deadline = time.monotonic() + scaled(120)
    while listed := stored_events(server):
        assert time.monotonic() < deadline, listed[:5]
        time.sleep(0.5)


def check_events(uploads: Uploads, receiver: EventReceiver, port: int) -> None:
    """Assert that every upload that a client finished is told of, and that no event is of something else."""
    told = check_received(receiver.received())
    finished = {key for key, events in told.items() if events[-1]["type"] == "tus.upload.finished"}
    assert uploads.finished <= finished
    for key, events in told.items():
        types = [event["type"].removeprefix("tus.upload.") for event in events]
        assert types in (["created"], ["created", "finished"]), types
        answer = head(port, f"/files/{key}")  # the client may have lost the answer to its creation: yet it exists
        assert answer.status == 200, answer
        assert (key in finished) == (answer.offset == int(answer.headers["upload-length"]))
        assert events[-1]["data"]["offset"] <= answer.offset
    assert uploads.created <= set(told)


class Application:
    """An endpoint that is asked before completions, and takes its time, so that kills come before its answers."""

    def __init__(self, endpoint: HookEndpoint, seed: int) -> None:
        self.endpoint = endpoint
        self.options: dict[str, Any] = {"hooks_http": f"{endpoint.url}#pre-finish", "hooks_http_backoff": "50ms"}
        chance = random.Random(seed)

        def reply(_: Asked) -> Reply:
            time.sleep(chance.uniform(0, 0.1))
            return chance.choice([NO_OPINION, NO_OPINION, NO_OPINION, Reply(b"", 500)])

        endpoint.reply = reply

    def finish(self, uploads: Uploads, receiver: EventReceiver, server: ServerProcess) -> None:
        """Have every upload completed that has all bytes, also those whose clients do not know of them."""
        self.endpoint.reply = NO_OPINION
        for key in check_received(receiver.received()):
            head_of = partial(request, server.port, "HEAD", f"/files/{key}", patch_headers(0), timeout=5)
            uploads.again(head_of, {200})
        wait_until_empty(server)

    def check(self, receiver: EventReceiver) -> None:
        """Assert that every finished upload was asked about."""
        asked = {one.payload["Event"]["Upload"]["ID"] for one in self.endpoint.asked}
        told = check_received(receiver.received())
        assert {key for key, events in told.items() if events[-1]["type"] == "tus.upload.finished"} <= asked


def report(receiver: EventReceiver, uploads: Uploads, kills: dict[str, int]) -> None:
    events = receiver.received()
    repeated = len(events) - len({event["id"] for event in events})
    print(f"{len(uploads.finished)} uploads, {len(events)} events of which {repeated} repeated; killed: {kills}")


@pytest.mark.long
@pytest.mark.timeout(120 + UPLOADS * 5)
@pytest.mark.parametrize("asks", [False, True], ids=["", "with hooks"])
def test_every_finished_upload_is_told_of_whatever_is_killed(tmp_path: Path, asks: bool) -> None:
    chance = seeded_random()
    killed = {"server": 0, "receiver": 0}
    with ExitStack() as stack:
        application = Application(stack.enter_context(HookEndpoint()), chance.randrange(1000)) if asks else None
        options: dict[str, Any] = application.options if application is not None else {}
        receiver = stack.enter_context(EventReceiver(tmp_path))
        server = stack.enter_context(ServerProcess(tmp_path / "uploads", events_to=receiver.url, **options))

        def kill_server() -> None:
            killed["server"] += 1
            server.kill()
            time.sleep(chance.uniform(0, 0.3))
            server.start_again()

        def kill_receiver() -> None:
            killed["receiver"] += 1
            receiver.restart(chance.choice(["take", "take", "take", "hold", "refuse"]))

        uploads = Uploads([server.port], chance, UPLOADS)
        upload_and_kill(uploads, [kill_server, kill_receiver], chance)
        receiver.restart("take")
        wait_until_empty(server)
        if application is not None:
            application.finish(uploads, receiver, server)
            application.check(receiver)
        report(receiver, uploads, killed)
        check_events(uploads, receiver, server.port)


@pytest.mark.long
@pytest.mark.timeout(120 + UPLOADS * 5)
@pytest.mark.parametrize("asks", [False, True], ids=["", "with hooks"])
def test_every_finished_upload_is_told_of_by_several_hosts(tmp_path: Path, redis: RedisServer, asks: bool) -> None:
    chance = seeded_random()
    killed = {"hosts": 0, "receiver": 0, "Redis": 0}
    with ExitStack() as stack:
        application = Application(stack.enter_context(HookEndpoint()), chance.randrange(1000)) if asks else None
        options: dict[str, Any] = application.options if application is not None else {}
        receiver = stack.enter_context(EventReceiver(tmp_path))
        hosts = stack.enter_context(several_hosts(tmp_path, redis.url, events_to=receiver.url, **options))

        def kill_host() -> None:
            killed["hosts"] += 1
            host = chance.choice(hosts)
            host.kill()
            time.sleep(chance.uniform(0, 0.5))
            host.start_again()

        def kill_receiver() -> None:
            killed["receiver"] += 1
            receiver.restart(chance.choice(["take", "take", "take", "hold", "refuse"]))

        def kill_redis() -> None:
            killed["Redis"] += 1
            redis.kill()
            time.sleep(chance.uniform(0, 0.5))
            redis.start()

        uploads = Uploads([host.port for host in hosts], chance, UPLOADS)
        upload_and_kill(uploads, [kill_host, kill_host, kill_receiver, kill_receiver, kill_redis], chance)
        receiver.restart("take")
        wait_until_empty(hosts[0])
        if application is not None:
            application.finish(uploads, receiver, hosts[0])
            application.check(receiver)
        report(receiver, uploads, killed)
        check_events(uploads, receiver, hosts[0].port)


# Many events that wait.


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("records", ["sqlite", "redis"])
def test_events_that_wait_cost_no_memory_and_slow_nothing_down(tmp_path: Path, records: str) -> None:
    receiver = EventReceiver(tmp_path, "refuse")
    options: dict[str, Any] = {}
    if records == "redis":
        options = {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    with receiver, ServerProcess(tmp_path / "uploads", events_to=receiver.url, **options) as server:
        for _ in range(50):
            upload(server.port)
        before, quick = resident_size(server.pid), seconds_of_an_upload(server.port)
        with ThreadPoolExecutor(4) as executor:
            list(
                executor.map(lambda _: create(server.port, 0), range(WAITING // 2))
            )  # created and finished: two events
        wait_until(lambda: counted([server], "tusd_outbox_events") >= WAITING, "the metric tells of all")
        slow, after = seconds_of_an_upload(server.port), resident_size(server.pid)
        print(f"{WAITING} events wait: {(after - before) / MEBI:.1f} MiB more; an upload took {quick * 1000:.1f} ms"
              f" before and {slow * 1000:.1f} ms then")  # fmt: skip
        assert after - before < 16 * MEBI
        assert slow < 3 * quick + 0.02
        with promptly("HEAD while events wait"):
            head(server.port, f"/files/{upload(server.port)}")
        receiver.restart("take")
        wait_until(lambda: counted([server], "tusd_outbox_events") == 0, "all are delivered", 120)
        assert resident_size(server.pid) - before < 24 * MEBI
        assert len({event["id"] for event in receiver.received()}) >= WAITING


def seconds_of_an_upload(port: int) -> float:
    """Return the median time of a creation, a PATCH and a HEAD together."""
    times = []
    for _ in range(30):
        began = time.perf_counter()
        path = create(port, 4)
        assert patch(port, path, 0, b"four").status == 204
        assert head(port, path).status == 200
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
