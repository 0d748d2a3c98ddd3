"""All faults of S3 at random, and kills of the server: no acknowledged byte is lost, none is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clocks import PreloadedClock
from tests.support import cancelling, harness
from tests.support.chaos import stored_content
from tests.support.hosts import seeded_random
from tests.support.s3_rig import GIVE_UP, Rig, no_fault
from tests.support.s3_server import FaultyProxy, random_faults, s3_server
from tests.support.s3_uploads import PART, Place, clean, digest_of, serving
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, path_of
from tests.support.wire.requests import request

SKEW = 600.0  # seconds; S3 refuses requests whose time is 900 off
CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "25"))
FAULTS = 0.12  # of all requests to S3
MAX_LIFE = 6.0  # seconds a server lives between two kills


@dataclass
class Client:
    """Uploads one file after the other, comes back after every failure, and trusts nothing that it was told."""

    rig: Rig
    chance: random.Random
    stop: threading.Event
    finished: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: int = 0
    doing: str = ""

    def run(self) -> None:
        kinds: list[Callable[[], object]] = [self.upload, self.upload, self.concatenate, self.terminate]
        while not self.stop.is_set():
            self.chance.choice(kinds)()

    def upload(self, headers: dict[str, str] | None = None) -> tuple[str, bytes]:
        size = self.chance.choice([5000, MEBI, PART, 3 * PART])
        data = self.chance.randbytes(self.chance.randrange(1, size))
        deferred = self.chance.random() < 0.3
        answer = self.ask("POST", "/files", creation_headers(None if deferred else len(data)) | (headers or {}))
        assert (answer.status, answer.offset) == (201, 0), answer
        path = path_of(answer)
        self.send(path, data, deferred=deferred)
        self.finished[path] = digest_of(data)
        return path, data

    def send(self, path: str, data: bytes, *, deferred: bool) -> None:
        size = max(self.chance.choice([30 * KIBI, 400 * KIBI, 4 * MEBI, len(data)]), len(data) // 20)
        acknowledged = 0
        while acknowledged < len(data):
            end = min(len(data), acknowledged + size)
            if self.patch(path, data, acknowledged, end, declare=deferred and end == len(data)):
                acknowledged = end
                continue
            self.broken += 1
            answer = self.ask("HEAD", path)
            assert answer.status == 200, answer
            assert acknowledged <= answer.offset <= end, (
                f"HEAD answered {answer.offset}, acknowledged were {acknowledged} of {end}"
            )
            acknowledged = answer.offset
            if acknowledged == len(data) and "upload-length" not in answer.headers:
                assert deferred
                self.declare(path, len(data))

    def declare(self, path: str, length: int) -> None:
        while not self.patch(path, bytes(length), length, length, declare=True):
            answer = self.ask("HEAD", path)
            assert (answer.status, answer.offset) == (200, length), answer

    def patch(self, path: str, data: bytes, start: int, end: int, *, declare: bool) -> bool:
        """Send one PATCH; return whether it was acknowledged."""
        self.doing = f"PATCH {path} {start} {end}"
        headers = {"Upload-Length": str(len(data))} if declare else {}
        if self.chance.random() < 0.2:
            headers |= checksum(data[start:end])
        try:
            answer = request(
                self.rig.port,
                "PATCH",
                path,
                {"Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream", **headers},
                data[start:end],
                GIVE_UP,
            )
        except OSError:
            return False
        assert answer.status in (204, 409, 423, 500, 503), (self.doing, answer)
        assert answer.status != 204 or answer.offset == end, (self.doing, answer)
        return answer.status == 204

    def concatenate(self) -> None:
        parts = [self.upload({"Upload-Concat": "partial"}) for _ in range(self.chance.randrange(1, 4))]
        header = "final;" + " ".join(path for path, _ in parts)
        answer = self.ask("POST", "/files", {"Upload-Concat": header})
        assert answer.status == 201, answer
        self.finished[path_of(answer)] = digest_of(b"".join(data for _, data in parts))

    def terminate(self) -> None:
        path, _ = self.upload()
        answer = self.ask("DELETE", path)
        assert answer.status in (204, 404), answer
        assert self.ask("HEAD", path).status == 404
        del self.finished[path]

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Repeat what is harmless to repeat until it succeeds; HEAD answers nothing that makes a client begin anew."""
        deadline = time.monotonic() + GIVE_UP
        while True:
            self.doing = f"{method} {path}"
            with suppress(OSError):
                answer = request(self.rig.port, method, path, headers, timeout=GIVE_UP)
                if method == "HEAD":
                    assert answer.status in (200, 404, 423), (self.doing, answer)
                if answer.status not in (423, 500, 503):
                    return answer
            assert time.monotonic() < deadline, f"{self.doing}: nothing comes of it"
            time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(2 * CHAOS_SECONDS + 150)  # every upload is read twice in the end
def test_uploads_survive_whatever_happens_to_s3_and_the_server(
    tmp_path: Path, clock_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed and stopped, its wall clock steps, and requests are cancelled; S3 answers as it likes."""
    monkeypatch.setattr(harness, "COMMAND", cancelling.COMMAND)
    chance = seeded_random()
    clock = PreloadedClock(tmp_path / "clock", clock_library)
    options: dict[str, Any] = {"expires_after": "1h", "sweep_interval": "0.5s", "shutdown_grace": "1s"}
    options["env"] = clock.env | {"CANCEL_SHARE": "0.05"}
    place = Place(s3_server())
    faults = random_faults(chance.randrange(1 << 32), FAULTS)
    records = tmp_path / "records"
    kills = 0
    with (
        FaultyProxy(place.server, faults) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, **options) as server,
        ThreadPoolExecutor(4) as executor,
    ):
        rig = Rig(server, proxy, place)
        stop = threading.Event()
        clients = [Client(rig, random.Random(chance.random()), stop) for _ in range(4)]
        running = [executor.submit(client.run) for client in clients]
        try:
            deadline = time.monotonic() + CHAOS_SECONDS
            while (time.monotonic() < deadline or kills < 3) and not any(one.done() for one in running):
                time.sleep(chance.uniform(0.01, MAX_LIFE))
                if chance.random() < 0.3:
                    clock.set(chance.choice([0, chance.uniform(-SKEW, SKEW)]))
                if chance.random() < 0.2:
                    server.terminate(TIMEOUT)
                else:
                    server.kill()
                kills += 1
                server.start_again()
        finally:
            stop.set()
            clock.set(0)
            proxy.faults = no_fault
        for client, one in zip(clients, running, strict=True):
            one.result(2 * GIVE_UP)
            assert client.finished
        finished = {path: digest for client in clients for path, digest in client.finished.items()}
        broken = sum(client.broken for client in clients)
        print(
            f"{kills} kills and stops, {len(proxy.requests)} requests to S3, {len(finished)} uploads, {broken} broken"
        )
        for path, digest in finished.items():
            assert place.digest(place.key_of(path)) == digest
            assert digest_of(stored_content(server.port, path)) == digest
        for path in unfinished(records):  # its creation was not answered
            while request(server.port, "DELETE", path).status == 503:  # cancelled
                pass
            assert request(server.port, "DELETE", path).status in (404, 503)
        wait_until(lambda: not unfinished(records), "the sweeper removes the rest")
    found = asyncio.run(clean(records, place, dry_run=True))
    print(f"{len(found)} orphans")
    assert asyncio.run(clean(records, place)) == found
    assert asyncio.run(clean(records, place)) == []
    assert place.multiparts == []
    assert set(place.keys) == {place.key_of(path) for path in finished}
    for path, digest in finished.items():
        assert place.digest(place.key_of(path)) == digest
    assert kills >= 3


def unfinished(records: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{records / '.tusd-py' / 'uploads.sqlite3'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT id FROM uploads WHERE status != 'complete'").fetchall()
    return [f"/files/{row[0]}" for row in rows]
