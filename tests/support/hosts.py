"""Several servers with one upload directory and one Redis, like hosts with a shared file system."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.harness import ServerProcess
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tests.support.wire.messages import Answer
from tests.support.wire.requests import patch, request

# Texts in the log lines of bugs; other lines with a stack trace tell why a request could not be served.
BUGS = ("unhandled exception in", "Exception in ASGI", "never retrieved", "was never awaited", "Warning")
# uvicorn's own protocol class logs a request that outlasts the grace of a shutdown as if the application had raised.
CUT_OFF = re.compile(
    r"Exception in ASGI application\nTraceback \(most recent call last\):\n(?: .*\n)*"
    r"asyncio\.exceptions\.CancelledError: Task cancelled, timeout graceful shutdown exceeded\n"
)
LEASE = 2.0  # seconds, the `--lock-ttl` of tests that let a lease end
RECOVERY = LEASE + 6.0  # seconds within which everything goes on once the last fault is over

Hosts = list[ServerProcess]


@contextlib.contextmanager
def several_hosts(folder: Path, redis: str | Sequence[str], count: int = 3, **options: Any) -> Iterator[Hosts]:
    """Run servers that start at the same time and must log no bug; each may have its own URL for the one Redis."""
    uploads = folder / "uploads"
    urls = [redis] * count if isinstance(redis, str) else redis
    options = {"lock_ttl": f"{LEASE}s"} | options
    with ExitStack() as stack:
        with ThreadPoolExecutor(len(urls)) as executor:
            starts = [executor.submit(ServerProcess(uploads, redis_url=url, **options).start) for url in urls]
        for start in starts:
            if start.exception() is None:
                stack.push(start.result().__exit__)
        servers = [start.result() for start in starts]
        try:
            yield servers
        except BaseException:
            print(*bugs_of(servers), sep="\n")  # a bug may be the cause of the failure
            raise
    assert_no_bugs(servers)


def assert_no_bugs(servers: Hosts) -> None:
    """Fail with the log lines of bugs, if there are any."""
    bugs = bugs_of(servers)
    assert not bugs, "\n".join(bugs)


def bugs_of(servers: Hosts) -> list[str]:
    """Return the log lines of bugs, with those around them."""
    found = []
    for server in servers:
        log = CUT_OFF.sub("", "".join(server.log))
        found += [log[max(0, log.index(text) - 1000) :][:5000] for text in BUGS if text in log]
    return found


@contextlib.contextmanager
def stopped(server: ServerProcess) -> Iterator[None]:
    """Stop the process with SIGSTOP for the context, so that it does not notice the time between."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def is_ready(server: ServerProcess) -> bool:
    return request(server.port, "GET", "/readyz").status == 200


def wait_for_first_sweep(server: ServerProcess) -> None:
    """Wait until the sweep at the start of a server has ended; no other one comes in the default interval."""
    wait_until(lambda: counted([server], "tusd_job_duration_seconds_count") > 0, "the first sweep ends")


def wait_until_ready(hosts: Hosts) -> None:
    """Return once every host has found Redis again."""
    wait_until(lambda: all(is_ready(server) for server in hosts), "every host finds Redis again", RECOVERY)


def wait_until_locked(redis: RedisServer, path: str) -> None:
    """Return once a request has the lock of an upload."""
    keys = f"*{{{path.rpartition('/')[2]}}}*lock"
    wait_until(lambda: bool(redis.command("KEYS", keys)), "the upload is locked")


def counted(servers: Hosts, metric: str) -> float:
    """Return the value of a counter, summed over all hosts and labels."""
    total = 0.0
    for server in servers:
        for line in request(server.port, "GET", "/metrics").body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name.partition("{")[0] == metric:
                total += float(value)
    return total


def traces_of(server: ServerProcess, path: str) -> list[Path]:
    """Return every file that belongs to an upload."""
    return sorted(server.upload_dir.rglob(path.rpartition("/")[2] + "*"))


def files_of(server: ServerProcess, path: str) -> list[Path]:
    """Return the files that hold bytes of an upload."""
    return [file for file in traces_of(server, path) if ".tusd-py" not in file.parts]


def taken_over(server: ServerProcess, path: str, offset: int, body: bytes) -> Answer:
    """Repeat a PATCH until the lease of an earlier one has ended; return the answer."""
    deadline = time.monotonic() + RECOVERY
    while True:
        answer = patch(server.port, path, offset, body)
        if answer.status not in (423, 503):
            return answer
        assert "retry-after" in answer.headers, answer
        assert time.monotonic() < deadline, "the lease does not end"
        time.sleep(0.05)


def assert_ended(answer: Answer | None) -> None:
    """Assert the answer of a PATCH that was taken over, or lost its lease."""
    assert answer is None or answer.status in (409, 423, 503), answer


def proxied_url(network: FaultyNetwork) -> str:
    """Return the URL of a Redis behind a network that may fail."""
    return f"redis://127.0.0.1:{network.port}/0"


def seeded_random() -> random.Random:
    seed = os.environ.get("FAILURE_SEED") or str(random.randrange(1 << 32))
    print(f"FAILURE_SEED={seed}")
    return random.Random(seed)
