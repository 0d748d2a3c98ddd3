"""Disks that fail to sync, stall and fill up, servers that are killed, frozen and stopped, requests that are cancelled.

Several servers share one directory, on one host with SQLite and as hosts with Redis. In any case no acknowledged
byte is lost or changed beyond what a failed sync takes back, and once it is over every client gets on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clocks import PreloadedClock
from tests.faults.preload import PreloadedFaults
from tests.support import cancelling, harness
from tests.support.chaos import Uploader, stored_content, upload_during
from tests.support.harness import ServerProcess
from tests.support.hosts import BUGS, LEASE, seeded_random, stopped
from tests.support.redis_server import RedisServer
from tests.support.timing import TIMEOUT
from tests.support.wire.messages import sha256

CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
ONLY = os.environ.get("CHAOS_FAULTS", "")  # names of faults, to find the one that matters
RECOVERY = LEASE + 20.0  # seconds within which every client gets on once the last fault is over
DATA = "*/uploads/[0-9a-f]*"  # the files of the uploads, not the records
RECORDS = "*/.tusd-py/*"
DAY = 86400.0  # seconds
TRANSIENT = frozenset({423, 500, 503, 507})


@dataclass(frozen=True)
class Libraries:
    """The preloaded libraries that make system calls fail and wall clocks wrong."""

    calls: Path
    clock: Path


@pytest.fixture
def libraries(preload_library: Path, clock_library: Path) -> Libraries:
    return Libraries(preload_library, clock_library)


class Place:
    """One server, and the disk and the wall clock as it sees them."""

    def __init__(self, server: ServerProcess, faults: PreloadedFaults, clock: PreloadedClock) -> None:
        self.server = server
        self.faults = faults
        self.clock = clock
        self.losses: list[str] = []  # names of faults that made syncs fail

    def lost(self, upload_id: str) -> bool:
        return any(upload_id in path for name in self.losses for path in self.faults.affected_paths(name))


class Chaos:
    """A source of faults, one at a time at each server."""

    def __init__(self, places: list[Place], chance: random.Random) -> None:
        self.places = places
        self.chance = random.Random(chance.random())
        self.count: dict[str, int] = defaultdict(int)

    def wreak(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            with ThreadPoolExecutor(len(self.places)) as executor:
                for done in [executor.submit(self._trouble, place, deadline) for place in self.places]:
                    done.result()
        finally:
            for place in self.places:
                place.faults.clear()

    def _trouble(self, place: Place, deadline: float) -> None:
        while time.monotonic() < deadline:
            time.sleep(self.chance.uniform(0, 0.6))
            faults = [self.kill, self.freeze, self.stop, self.fail_sync, self.fail_record_sync, self.stall, self.fill]
            faults += [self.fail_unlink, self.stop_while_stalled, self.step_clock]
            if ONLY:
                faults = [fault for fault in faults if fault.__name__ in ONLY.split(",")]
            fault = self.chance.choice(faults)
            self.count[fault.__name__] += 1
            print(f"{time.strftime('%H:%M:%S')} {fault.__name__} at {place.server.port}")
            fault(place, self.chance.uniform(0.05, 2 * LEASE))
            place.faults.clear()

    def kill(self, place: Place, seconds: float) -> None:
        place.server.kill()
        time.sleep(seconds / 8)
        self._start(place)

    def stop(self, place: Place, seconds: float) -> None:
        place.server.terminate(TIMEOUT)
        self._start(place)

    def freeze(self, place: Place, seconds: float) -> None:
        with stopped(place.server):
            time.sleep(seconds)

    def fail_sync(self, place: Place, seconds: float) -> None:
        """Make every sync fail and lose the bytes that were not synced before."""
        fault = place.faults.lose("fsync,fdatasync", DATA)
        place.losses.append(fault.name)
        time.sleep(seconds / 4)

    def fail_record_sync(self, place: Place, seconds: float) -> None:
        place.faults.fail("fsync,fdatasync", RECORDS)
        time.sleep(seconds / 4)

    def stall(self, place: Place, seconds: float) -> None:
        place.faults.stall(self.chance.choice(["pwritev", "fsync,fdatasync", "*"]), DATA)
        time.sleep(seconds)

    def fill(self, place: Place, seconds: float) -> None:
        place.faults.fail("pwritev,pwrite,write,mkdir,copy_file_range", "*/uploads/*", errno.ENOSPC)
        time.sleep(seconds / 2)

    def fail_unlink(self, place: Place, seconds: float) -> None:
        place.faults.fail("unlink", "*/uploads/*")
        time.sleep(seconds / 2)

    def step_clock(self, place: Place, seconds: float) -> None:
        """Set the wall clock days ahead or back for a moment; in half of the cases the server starts meanwhile."""
        place.clock.set(self.chance.choice([-1, 1]) * self.chance.uniform(60, 3 * DAY))
        time.sleep(seconds / 2)
        if self.chance.random() < 0.5:
            place.server.terminate(TIMEOUT)
            self._start(place)
            time.sleep(seconds / 2)
        place.clock.set(0)

    def stop_while_stalled(self, place: Place, seconds: float) -> None:
        """Send SIGTERM while the disk stalls: the server ends within its grace, or is killed after it."""
        place.faults.stall("pwritev", DATA)
        time.sleep(0.2)
        os.kill(place.server.pid, signal.SIGTERM)
        time.sleep(seconds)
        place.faults.clear()
        place.server.wait(TIMEOUT)
        self._start(place)

    def _start(self, place: Place) -> None:
        place.faults.clear()
        place.server.start_again()


@contextlib.contextmanager
def servers(
    folder: Path, libraries: Libraries, count: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[list[Place]]:
    """Servers on one directory, whose requests are cancelled now and then; those of one host share its clock."""
    one_host = "redis_url" not in options
    monkeypatch.setattr(harness, "COMMAND", cancelling.COMMAND)
    places = []
    with ExitStack() as stack:
        for number in range(count):
            faults = PreloadedFaults(folder / f"faults{number}", libraries.calls)
            clock = PreloadedClock(folder / ("clock" if one_host else f"clock{number}"), libraries.clock)
            preload = f"{faults.env['LD_PRELOAD']}:{clock.env['LD_PRELOAD']}"
            env = faults.env | clock.env | {"LD_PRELOAD": preload, "CANCEL_SHARE": "0.05"}
            server = ServerProcess(
                folder / "uploads", env=env, log_level="warning", shutdown_grace="3s", sweep_interval="1s", **options
            )
            places.append(Place(stack.enter_context(server), faults, clock))
        try:
            yield places
        except BaseException:
            for place in places:  # they may tell why
                print(place.server.port, "".join(place.server.log)[-8000:])
            raise
    for place in places:
        log = "".join(place.server.log)
        assert not [text for text in (*BUGS, "Traceback") if text in log], log[-20000:]


def survive(places: list[Place], chance: random.Random) -> None:
    ports = [place.server.port for place in places]
    chaos = Chaos(places, chance)

    def sync_failed(upload_id: str) -> bool:
        return any(place.lost(upload_id) for place in places)

    uploaders = [Uploader(ports, chance, transient=TRANSIENT, sync_failed=sync_failed) for _ in range(6)]
    finished = upload_during(chaos.wreak, CHAOS_SECONDS, uploaders, recovery=RECOVERY)
    print(dict(chaos.count))
    for number, (path, digest) in enumerate(finished):
        assert sha256(stored_content(ports[number % len(ports)], path)) == digest


@pytest.mark.long
@pytest.mark.timeout(CHAOS_SECONDS + 300)
def test_uploads_on_one_host_survive_every_fault(
    tmp_path: Path, libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = seeded_random()
    with servers(tmp_path, libraries, 2, monkeypatch) as places:
        survive(places, chance)


@pytest.mark.long
@pytest.mark.timeout(CHAOS_SECONDS + 300)
def test_uploads_on_several_hosts_survive_every_fault(
    tmp_path: Path, libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = seeded_random()
    with RedisServer() as redis:
        options: dict[str, Any] = {"redis_url": redis.url, "lock_ttl": f"{LEASE}s"}
        with servers(tmp_path, libraries, 3, monkeypatch, **options) as places:
            survive(places, chance)
