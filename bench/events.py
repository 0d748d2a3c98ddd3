"""Cost of stored events for a POST and a PATCH of 1 KiB (`python -m bench.events`).

Three servers have their turns in each of many short rounds: without events, with a sink that is away, so that the
events are stored alone, and with a sink that takes every event over HTTP, which this process plays. CPU is that of the
server, without syncs. `--redis` keeps the records in Redis, `--directory DIR` is the place of the uploads.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from bench.growth import cpu_seconds
from bench.measure import Meter
from bench.payload import Payload, delete, payload_file
from bench.recipes import WORK, ours
from bench.report import table
from bench.servers import Target, running
from bench.workloads import SMALL_BYTES, Plan, small
from tests.support.redis_server import RedisServer

ROUNDS = 40
PAIRS = 200
AWAY = "http://127.0.0.1:9/events"  # the discard port: nobody listens


class Handler(BaseHTTPRequestHandler):
    """A receiver that takes every event."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the event, and answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """Run the receiver in threads; yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/events"
        finally:
            server.shutdown()


def pair_cost(target: Target, payload: Payload) -> float:
    """Return the milliseconds of CPU time for a pair."""
    before = cpu_seconds(target)
    work = small(target, Plan(small_uploads=PAIRS), payload, Meter(target.process))
    cost = (cpu_seconds(target) - before) / PAIRS * 1e3
    delete(target.port, target.directory, work.uploads)
    return cost


def options(number: int, sink: str, redis: str) -> list[str]:
    """Return the options of the server with this number; its records have a place of their own in Redis."""
    events = ["--events-to", sink] if sink else []
    records = ["--redis-url", redis, "--redis-prefix", f"server-{number}:"] if redis else []
    return ["--durability", "never", *events, *records]


def measure(home: Path, redis: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each round by the kind of server; `redis` is the URL of the records, if not empty."""
    with contextlib.ExitStack() as stack:
        sinks = {"without events": "", "stored, sink away": AWAY, "stored and sent": stack.enter_context(receiver())}
        payload = stack.enter_context(payload_file(home / "payload", 2 * PAIRS * SMALL_BYTES))
        targets = {}
        for number, (name, sink) in enumerate(sinks.items()):
            recipe = ours(f"server-{number}", *options(number, sink, redis))
            targets[name] = stack.enter_context(running(recipe, home))
        costs: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(rounds):
            for name in random.sample(list(targets), len(targets)):
                costs[name].append(pair_cost(targets[name], payload))
    return costs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=WORK, help="place of the uploads")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--redis", action="store_true", help="keep the records in Redis")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="events-", dir=arguments.directory) as name,
        contextlib.ExitStack() as stack,
    ):
        url = stack.enter_context(RedisServer()).url if arguments.redis else ""
        costs = measure(Path(name), url, arguments.rounds)
    base = costs["without events"]
    rows = [["", "CPU ms, best", "of that without", "CPU ms, median", "of that without"]]
    for kind, found in costs.items():
        best, middle = min(found), median(found)
        rows.append([kind, f"{best:.3f}", f"{best / min(base):.2f}", f"{middle:.3f}", f"{middle / median(base):.2f}"])
    sys.stdout.write("\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()
