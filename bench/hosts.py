"""Cost of Redis compared with the embedded records, and takeovers between hosts (`python -m bench.hosts`).

`--directory DIR` is the place of the uploads, such as /dev/shm.
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

from bench.client import Connection, Request, Response, build, build_creation, build_patch, create, location_path
from bench.measure import Meter
from bench.payload import Payload, delete, payload_file
from bench.recipes import WORK, Recipe
from bench.servers import Target, running
from bench.workloads import SMALL_BYTES, Plan, small
from tests.support.redis_server import RedisServer

ROUNDS = 6
PAIRS = 1000
PATCHES = 2000
PATCH_SIZE = 1024
TAKEOVERS = 200
CHUNK = 64 * 1024
SETTLE_SECONDS = 0.1
CALLS = re.compile(r'^tusd_redis_call_duration_seconds_count\{call="(\w+)"\} (\S+)', re.MULTILINE)
LOCK_WAITS = re.compile(r"^tusd_lock_wait_seconds_(sum|count) (\S+)", re.MULTILINE)


def recipe(name: str, directory: Path | None, *arguments: str) -> Recipe:
    """Return the recipe of our server; with a directory, as one of several hosts that share it."""

    def command(port: int, own: Path) -> list[str]:
        base = [sys.executable, "-m", "tusd_py", "serve", "--port", str(port), "--log-level", "warning"]
        return [*base, "--upload-dir", str(directory or own), *arguments]

    return Recipe(name, "", command, "/files", ours=True)


def patch_cost(target: Target) -> float:
    """Return the milliseconds of CPU time for a PATCH of one KiB."""
    with Connection(target.port) as connection:
        path = create(connection, target.creation_path, (PATCHES + 1) * PATCH_SIZE)
        meter = Meter(target.process)
        with meter:
            for number in range(PATCHES):
                request = build_patch(path, number * PATCH_SIZE, bytes(PATCH_SIZE))
                connection.exchange(request).expect(204, "a PATCH")
    assert meter.usage is not None
    return meter.usage.cpu_seconds / PATCHES * 1000


def pair_cost(target: Target, payload: Payload) -> float:
    """Return the milliseconds of CPU time for a POST and a PATCH of one KiB, over eight connections."""
    meter = Meter(target.process)
    work = small(target, Plan(small_uploads=PAIRS), payload, meter)
    delete(target.port, target.directory, work.uploads)
    assert meter.usage is not None
    return meter.usage.cpu_seconds / PAIRS * 1000


def compare(home: Path, redis_url: str) -> None:
    """Print the CPU time of requests with Redis divided by that with the embedded records, both without syncs."""
    options = ("--durability", "never")
    hosted_options = (*options, "--redis-url", redis_url)
    costs: dict[str, list[tuple[float, float]]] = {"PATCH of 1 KiB": [], "POST and PATCH of 1 KiB": []}
    with (
        payload_file(home / "payload", 2 * PAIRS * SMALL_BYTES) as payload,
        running(recipe("embedded", None, *options), home / "embedded") as embedded,
        running(recipe("redis", None, *hosted_options), home / "redis") as hosted,
    ):
        for _ in range(ROUNDS):
            costs["PATCH of 1 KiB"].append((patch_cost(embedded), patch_cost(hosted)))
            costs["POST and PATCH of 1 KiB"].append((pair_cost(embedded, payload), pair_cost(hosted, payload)))
    for name, pairs in costs.items():
        one, other = (min(costs) for costs in zip(*pairs, strict=True))
        print(f"{name}: {one:.3f} ms CPU embedded, {other:.3f} ms with Redis: {other / one:.2f} times", flush=True)


def metrics(target: Target) -> str:
    with urlopen(f"http://127.0.0.1:{target.port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def calls(target: Target) -> Counter[str]:
    """Return the number of calls to Redis so far, by kind."""
    return Counter({name: round(float(count)) for name, count in CALLS.findall(metrics(target))})


def lock_wait(target: Target) -> float:
    """Return the seconds that a lock took on average."""
    waits = {name: float(value) for name, value in LOCK_WAITS.findall(metrics(target))}
    return waits["sum"] / waits["count"]


def calls_by_request(target: Target) -> dict[str, str]:
    """Return the number of calls to Redis made by one request of each kind."""
    counted: dict[str, str] = {}

    def count(name: str, request: Request, status: int) -> Response:
        before = calls(target)
        response = connection.exchange(request).expect(status, name)
        time.sleep(SETTLE_SECONDS)
        made = calls(target) - before
        counted[name] = f"{made.total()} ({', '.join(f'{count} {call}' for call, count in sorted(made.items()))})"
        return response

    with Connection(target.port) as connection:
        path = location_path(count("POST", build_creation(target.creation_path, 2 * PATCH_SIZE), 201))
        count("HEAD", build("HEAD", path), 200)
        count("PATCH", build_patch(path, 0, bytes(PATCH_SIZE)), 204)
        count("PATCH, the last", build_patch(path, PATCH_SIZE, bytes(PATCH_SIZE)), 204)
        count("HEAD, complete", build("HEAD", path), 200)
        count("DELETE", build("DELETE", path), 204)
    return counted


def takeovers(first: Target, second: Target) -> list[float]:
    """Return the seconds from a HEAD at another host to the answer to the PATCH after it, sorted."""
    times = []
    with Connection(first.port) as connection, Connection(second.port) as other:
        for _ in range(TAKEOVERS):
            path = create(connection, first.creation_path, 3 * CHUNK)
            with Connection(first.port) as stalled:
                stalled.socket.sendall(build_patch(path, 0, length=3 * CHUNK).data + bytes(CHUNK))
                time.sleep(0.02)
                started = time.perf_counter()
                offset = int(other.exchange(build("HEAD", path)).expect(200, "a HEAD").headers["upload-offset"])
                other.exchange(build_patch(path, offset, bytes(CHUNK))).expect(204, "a PATCH")
                times.append(time.perf_counter() - started)
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=WORK, help="place of the uploads")
    place: Path = parser.parse_args().directory
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hosts-", dir=place) as name, RedisServer() as redis:
        home = Path(name)
        compare(home, redis.url)
        shared = home / "shared"
        with_redis = ("--redis-url", redis.url, "--redis-prefix", "hosts:")
        with (
            running(recipe("first", shared, *with_redis), home / "first") as first,
            running(recipe("second", shared, *with_redis), home / "second") as second,
        ):
            for method, sent in calls_by_request(first).items():
                print(f"{method}: {sent} calls")
            times = takeovers(first, second)
            wait = lock_wait(second)
        middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
        print(f"takeover by another host (HEAD and PATCH): p50 {middle * 1000:.1f} ms, p99 {late * 1000:.1f} ms")
        print(f"of that the lock: {wait * 1000:.1f} ms")


if __name__ == "__main__":
    main()
