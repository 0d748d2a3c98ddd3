"""Cost of administration (`python -m bench.administration`).

First the pages of a list of very many records, as a client of `/admin/api` gets them: milliseconds. Then the cost for
uploads, a POST and a PATCH of 1 KiB: three servers have their turns in each of many short rounds, without
administration, with it, and with a client that looks at a page of the list every two seconds, as the page for operators
does. CPU is that of the server, with that of the lists, without syncs. The last column is the median of the ratios
within the rounds, which a machine that is busy in turns disturbs least. `--redis` keeps the records in Redis,
`--records N` is the length of the list, `--directory DIR` is the place of the uploads.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from bench.client import METADATA
from bench.events import pair_cost
from bench.growth import BATCH, LIFETIME, cpu_seconds
from bench.payload import payload_file
from bench.recipes import WORK, Recipe, ours
from bench.report import table
from bench.servers import Target, running
from bench.workloads import SMALL_BYTES
from tests.support.redis_server import RedisServer
from tusd_py.backends.disk.locations import TOP
from tusd_py.composition import build_service
from tusd_py.contracts.state import StateStore
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import opened
from tusd_py.settings import Settings
from tusd_py.uploads.queries import RecordQueries

RECORDS = 100_000
OWNERS = 100
DAYS = 30 * 86400  # seconds over which the creations are spread
REQUESTS = 40  # of each list
ROUNDS = 60
PAIRS = 200
REFRESH = 2.0  # seconds between two looks of a client
TOKEN = "a-token-that-only-a-benchmark-knows"
LISTS = {
    "newest first": {},
    "oldest first": {"order": "created_at"},
    "unfinished": {"state": "active"},
    "finished": {"state": "complete"},
    "of one owner": {"owner": "owner-7"},
    "of one day": {"created_after": "DAY"},
    "text in every record": {"q": "bench"},
}


def record_of(number: int, now: float) -> Upload:
    """Return a record, every third of an unfinished upload, none with a file."""
    is_open = number % 3 == 0
    created = now - random.random() * DAYS
    return Upload(
        secrets.token_hex(16),
        created,
        length=SMALL_BYTES,
        offset=0 if is_open else SMALL_BYTES,
        metadata=METADATA,
        owner=f"owner-{number % OWNERS}",
        status=Status.ACTIVE if is_open else Status.COMPLETE,
        completed_at=None if is_open else created,
        expires_at=now + LIFETIME if is_open else None,
        location=TOP,
    )


async def fill(state: StateStore, count: int) -> None:
    """Insert records, with what lists of them need."""
    await RecordQueries(state).prepare()
    now = time.time()
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        await asyncio.gather(*(state.create(record_of(number, now)) for number in numbers))


async def prepare(directory: Path, redis: str, count: int) -> None:
    """Make the records of a server that does not run yet."""
    records: dict[str, Any] = {"redis_url": redis, "redis_prefix": "list:"} if redis else {}
    settings = Settings(upload_dir=directory, **records)
    async with opened(build_service(settings, EventBus()), settings) as service:
        await fill(service.state, count)


class Administrator:
    """A client of the administration of one server, on one connection."""

    def __init__(self, target: Target) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)

    def page(self, **parameters: str) -> Any:
        """Return a page of the list."""
        path = f"/admin/api/uploads?{urlencode(parameters)}"
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path} was answered {answer.status}: {content!r}")
        return json.loads(content)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


@contextlib.contextmanager
def looking(target: Target) -> Iterator[None]:
    """Look at the list every `REFRESH` seconds, for the context."""
    ended = threading.Event()

    def look() -> None:
        administrator = Administrator(target)
        while not ended.wait(REFRESH):
            administrator.page()
        administrator.close()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def token_file(home: Path) -> Path:
    """Return the file with the token."""
    path = home / "admin-token"
    path.write_text(TOKEN)
    return path


def server(name: str, home: Path, redis: str, *, administrated: bool) -> Recipe:
    """Return the recipe of a server; its records have a place of their own in Redis."""
    administration = ["--admin-token-file", str(token_file(home))] if administrated else []
    records = ["--redis-url", redis, "--redis-prefix", f"{name}:"] if redis else []
    return ours(name, "--durability", "never", *administration, *records)


def measure_lists(home: Path, redis: str, count: int) -> list[list[str]]:
    """Return a row for each list, in milliseconds."""
    asyncio.run(prepare(home / "list", redis, count))
    rows = [["list", "page, ms: median", "longest", "second page: median", "CPU ms of a page", "uploads of a page"]]
    with running(server("list", home, redis, administrated=True), home) as target:
        administrator = Administrator(target)
        day = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 86400))
        for name, chosen in LISTS.items():
            parameters = {key: value.replace("DAY", day) for key, value in chosen.items()}
            before = cpu_seconds(target)
            first, page = timed(administrator, parameters)
            cost = (cpu_seconds(target) - before) / REQUESTS
            if page["next"] is None:
                raise SystemExit(f"the list {name} has one page only: take more --records")
            following, _ = timed(administrator, {**parameters, "after": page["next"]})
            figures = (median(first), max(first), median(following), cost)
            rows.append([name, *(f"{seconds * 1e3:.1f}" for seconds in figures), str(len(page["uploads"]))])
        administrator.close()
    return rows


def timed(administrator: Administrator, parameters: dict[str, str]) -> tuple[list[float], Any]:
    """Return the seconds of requests for a page, and the page."""
    seconds, page = [], None
    for _ in range(REQUESTS):
        started = time.perf_counter()
        page = administrator.page(**parameters)
        seconds.append(time.perf_counter() - started)
    return seconds, page


def measure_uploads(home: Path, redis: str, rounds: int) -> list[list[str]]:
    """Return a row for each kind of server, in milliseconds of CPU time for a pair."""
    kinds = {"without administration": False, "with it": True, "with a client": True}
    with contextlib.ExitStack() as stack:
        payload = stack.enter_context(payload_file(home / "payload", 2 * PAIRS * SMALL_BYTES))
        targets: dict[str, Target] = {}
        for number, (name, administrated) in enumerate(kinds.items()):
            recipe = server(f"server-{number}", home, redis, administrated=administrated)
            targets[name] = stack.enter_context(running(recipe, home))
        stack.enter_context(looking(targets["with a client"]))
        costs: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(rounds):
            for name in random.sample(list(targets), len(targets)):
                costs[name].append(pair_cost(targets[name], payload))
    base = costs["without administration"]
    rows = [["", "CPU ms, best", "of that without", "CPU ms, median", "median of the ratios"]]
    for name, found in costs.items():
        ratios = [one / other for one, other in zip(found, base, strict=True)]
        best, middle = min(found), median(found)
        rows.append([name, f"{best:.3f}", f"{best / min(base):.3f}", f"{middle:.3f}", f"{median(ratios):.3f}"])
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=WORK, help="place of the uploads")
    parser.add_argument("--records", type=int, default=RECORDS, help="length of the list; 0: no lists")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="0: no uploads")
    parser.add_argument("--redis", action="store_true", help="keep the records in Redis")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="administration-", dir=arguments.directory) as name,
        contextlib.ExitStack() as stack,
    ):
        url = stack.enter_context(RedisServer()).url if arguments.redis else ""
        if arguments.records:
            sys.stdout.write("\n".join(table(measure_lists(Path(name), url, arguments.records))) + "\n\n")
        if arguments.rounds:
            sys.stdout.write("\n".join(table(measure_uploads(Path(name), url, arguments.rounds))) + "\n")


if __name__ == "__main__":
    main()
