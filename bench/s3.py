"""Cost of uploads to S3 (`python -m bench.s3`): our server, its peers and boto3 alone, all on one S3 server.

With `--memory`: the memory that large and small PATCHes take, and the requests to S3 that a PATCH makes.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from bench import machine
from bench.__main__ import count, size
from bench.client import BenchError, Connection, build_patch, create
from bench.measure import Meter, Usage
from bench.payload import BLOCK_BYTES, CHECKED_UPLOADS, Payload, Upload, payload_file
from bench.recipes import BENCH, WORK, Recipe, Unavailable, error_summary, needed, ours, run, tusd, tusd_binary
from bench.report import CPU_EACH, CPU_PER_GIB, GIB, MIB, PEAK, RATE, SPEED, Metric, table
from bench.runner import Sample, report_progress, sample, touch_memory
from bench.servers import Target, running
from bench.workloads import PARALLEL, SMALL_BYTES, SMALL_CONNECTIONS, Plan, Work, Workload, catalogue, human
from tests.support.s3_server import BUCKET, CREDENTIALS, S3Server, free_ports, start_seaweedfs
from tusd_py.backends.s3.bucket import RESERVED_REQUEST_SLOTS
from tusd_py.backends.s3.config import S3Config

ROUNDS = 3
SMALL_UPLOADS = 1000
WORKLOADS = ("patch", "chunks", "parallel", "small")
LARGE = 5 << 30
MANY_PATCHES, SMALL_PATCH = 2048, 100 << 10
MEMORY_LIMIT = 150_000_000
SERVED = re.compile(r'^SeaweedFS_s3_request_total\{bucket="\w+",code="\d+",type="(\w+)"\} (\S+)', re.MULTILINE)
CALLED = re.compile(r'^tusd_s3_call_duration_seconds_count\{operation="(\w+)",.*\} (\S+)', re.MULTILINE)


def counters(port: int, pattern: re.Pattern[str]) -> Counter[str]:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found: Counter[str] = Counter()
        for name, value in pattern.findall(answer.read().decode()):
            found[name] += round(float(value))
        return found


@dataclass(frozen=True, slots=True)
class Storage:
    """A running S3 server."""

    server: S3Server
    client: Any
    metrics_port: int

    def requests(self) -> Counter[str]:
        """Return the number of requests so far, by HTTP method."""
        return counters(self.metrics_port, SERVED)

    def digest(self, key: str, length: int) -> str:
        digest = hashlib.sha256()
        try:
            answer = self.client.get_object(Bucket=self.server.bucket, Key=key)
        except ClientError as error:
            raise BenchError(f"{key} cannot be read: {error}") from error
        if answer["ContentLength"] != length:
            raise BenchError(f"{key} has {answer['ContentLength']} bytes instead of {length}")
        for piece in answer["Body"].iter_chunks(MIB):
            digest.update(piece)
        return digest.hexdigest()


@contextlib.contextmanager
def storage(directory: Path) -> Iterator[Storage]:
    """Run an empty seaweedfs for the context; its bytes are removed with it."""
    directory.mkdir(parents=True)
    (metrics_port,) = free_ports(1)
    process, server = start_seaweedfs(directory, f"-metricsPort={metrics_port}")
    try:
        process.wait_for_bucket(server)
        with contextlib.closing(server.client()) as client:
            # Its first volumes are made with the first bytes, and nobody's upload should wait for them.
            client.put_object(Bucket=BUCKET, Key="warm", Body=bytes(BLOCK_BYTES))
            yield Storage(server, client, metrics_port)
    finally:
        process.stop()


# The servers.


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement: a workload on an S3 server."""

    workload: Workload
    plan: Plan
    payload: Payload
    file: Path
    home: Path
    storage: Storage


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    version: str
    measure: Callable[[Job], tuple[Work, Usage]]
    workloads: Sequence[str] = WORKLOADS


def our_recipe(server: S3Server, *arguments: str) -> Recipe:
    place = ("--s3-bucket", server.bucket, "--s3-endpoint", server.endpoint, "--s3-addressing", "path")
    return ours("ours", *place, *arguments)


def node_recipe(server: S3Server) -> Recipe:
    home = WORK / "node-s3"
    command = [needed("node"), str(home / "server.mjs")]
    return Recipe("tus-node", "", lambda port, _: [*command, str(port), server.endpoint, server.bucket], "/files")


def node_version() -> str:
    """Return the version of tus-node-server, and install it unless that was done before."""
    npm, home, names = needed("npm"), WORK / "node-s3", ("@tus/server", "@tus/s3-store")
    packages = [home / "node_modules" / name / "package.json" for name in names]
    if not all(package.exists() for package in packages):
        home.mkdir(parents=True, exist_ok=True)
        run([npm, "install", "--prefix", home, "--no-audit", "--no-fund", "--loglevel=error", *names])
    # Node looks for packages beside the script, so the script has to be beside them.
    shutil.copy(BENCH / "s3_peer.mjs", home / "server.mjs")
    versions = [json.loads(package.read_text())["version"] for package in packages]
    found = (f"{name} {version}" for name, version in zip(names, versions, strict=True))
    return f"{', '.join(found)}, node {run([needed('node'), '--version']).strip()}"


def tusd_recipe(binary: Path, server: S3Server) -> Recipe:
    def command(port: int, _: Path) -> list[str]:
        place = ["-host", "127.0.0.1", "-port", str(port), "-base-path", "/files/"]
        store = ["-s3-bucket", server.bucket, "-s3-endpoint", server.endpoint, "-s3-part-size", str(8 << 20)]
        return [str(binary), *place, *store, "-verbose=false", "-show-greeting=false"]

    return Recipe("tusd", "", command)


def through_server(make: Callable[[S3Server], Recipe], job: Job) -> tuple[Work, Usage]:
    with running(make(job.storage.server), job.home) as target:
        meter = Meter(target.process)
        work = job.workload.run(target, job.plan, job.payload, meter)
    assert meter.usage is not None
    return work, meter.usage


def floor(job: Job, *, threads: int = 0) -> tuple[Work, Usage]:
    """Upload with boto3 alone, with as many concurrent requests as our server makes for the same workload."""
    config = S3Config(bucket=BUCKET)
    uploads, length, usual_threads = {
        "parallel": (PARALLEL, job.plan.size // PARALLEL, config.concurrency - RESERVED_REQUEST_SLOTS),
        "small": (job.plan.small_uploads, SMALL_BYTES, SMALL_CONNECTIONS),
    }.get(job.workload.name, (1, job.plan.size, config.parts_in_flight))
    server = job.storage.server
    place = [server.endpoint, server.bucket, str(job.file)]
    with subprocess.Popen(
        [sys.executable, BENCH / "s3_floor.py", *place, str(uploads), str(length), str(threads or usual_threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            expect_line(process.stdout.readline(), "ready")
            meter = Meter(process.pid)
            with meter:
                print(file=process.stdin, flush=True)
                expect_line(process.stdout.readline(), "done")
        finally:
            process.kill()
    assert meter.usage is not None
    stored = [Upload(f"/floor-{number}", number * length, length) for number in range(uploads)]
    return Work(uploads * length, uploads, uploads=stored), meter.usage


def expect_line(line: str, expected: str) -> None:
    if line.strip() != expected:
        raise BenchError(f"it ended before it was {expected}")


def all_contestants(binary: Path | None) -> Iterator[Contestant]:
    ours_ = our_recipe(S3Server(""))
    yield Contestant("ours", f"tusd-py {ours_.version}", partial(through_server, our_recipe))
    try:
        yield Contestant("tus-node", node_version(), partial(through_server, node_recipe))
    except Unavailable as error:
        report_progress(f"  tus-node is absent: {error}")
    if binary:
        version = tusd(binary).version
        yield Contestant("tusd", version, partial(through_server, partial(tusd_recipe, tusd_binary(binary))))
    boto3 = f"boto3 {run([sys.executable, '-c', 'import boto3; print(boto3.__version__)']).strip()}"
    yield Contestant("floor", f"{boto3} with our settings", floor)
    # A client that waits for the response to every PATCH has at most one part in flight.
    yield Contestant(
        "floor-1", f"{boto3} with our settings, one part at a time", partial(floor, threads=1), ("chunks",)
    )


# Rounds.


@dataclass(slots=True)
class Result:
    """All rounds of one workload, by contestant."""

    workload: Workload
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    requests: dict[str, Counter[str]] = field(default_factory=dict)  # of the last round
    failures: dict[str, str] = field(default_factory=dict)


def check(job: Job, uploads: Sequence[Upload]) -> None:
    """Assert that the stored bytes are those sent, for up to 20 of the uploads."""
    with memoryview(job.payload.bytes) as view:
        for upload in uploads[:: max(1, len(uploads) // CHECKED_UPLOADS)]:
            # tusd's ids hold that of the multipart upload after a plus sign.
            key = unquote(upload.path.rpartition("/")[2]).partition("+")[0]
            sent = view[upload.start : upload.start + upload.length]
            if job.storage.digest(key, upload.length) != hashlib.sha256(sent).hexdigest():
                raise BenchError(f"the object {key} is not what was sent")


def measure(contestant: Contestant, job: Job, number: int, result: Result) -> None:
    # The kernel must not write earlier bytes back in the middle of a measurement.
    os.sync()
    touch_memory(job.file.parent / ".scratch", job.plan.size)
    before = job.storage.requests()
    try:
        work, usage = contestant.measure(job)
        requests = job.storage.requests() - before
        if number == 0:
            check(job, work.uploads)
    except (BenchError, OSError, KeyError, ValueError) as error:
        told = error_summary("\n".join(log.read_text(errors="replace") for log in job.home.glob("*.log")))
        result.failures[contestant.name] = f"failed in round {number + 1}: {error or type(error).__name__} ({told})"
        result.samples.pop(contestant.name, None)
        report_progress(f"  {contestant.name} {result.failures[contestant.name]}")
        return
    result.samples.setdefault(contestant.name, []).append(sample(work, usage))
    result.requests[contestant.name] = requests
    numbers = f"{usage.seconds:7.2f} s  {usage.cpu_seconds:6.2f} s CPU  peak {usage.peak_bytes >> 20} MiB"
    report_progress(f"  round {number + 1} {contestant.name:10} {numbers}")


def run_workload(
    workload: Workload, contestants: Sequence[Contestant], rounds: int, plan: Plan, payload: Payload, home: Path
) -> Result:
    report_progress(workload.title)
    contestants = [contestant for contestant in contestants if workload.name in contestant.workloads]
    result = Result(workload)
    for number in range(rounds):
        place = home / f"{workload.name}-{number}"
        # Deleted objects keep their room for a while, so every round has a store of its own.
        with storage(place / "store") as store:
            shift = number % len(contestants)
            for contestant in [*contestants[shift:], *contestants[:shift]]:
                if contestant.name not in result.failures:
                    job = Job(workload, plan, payload, home / "payload", place / contestant.name, store)
                    measure(contestant, job, number, result)
        shutil.rmtree(place, ignore_errors=True)
    return result


# The report.


def quotient(above: float, below: float) -> str:
    return f"{above / below:.2f}" if below else "–"


def section(result: Result) -> list[str]:
    small = result.workload.kind == "small"
    metrics: tuple[Metric, ...] = (RATE, CPU_EACH, PEAK) if small else (SPEED, CPU_PER_GIB, PEAK)
    titles = [title for metric in metrics for title in (metric.title, "min .. max")]
    rows = [["", *titles[:-1], "S3 requests per upload"]]
    mine = result.samples.get("ours")
    for name, samples in result.samples.items():
        cells = [cell for metric in metrics for cell in (metric.format(metric.best(samples)), metric.spread(samples))]
        uploads = PARALLEL if result.workload.name == "parallel" else SMALL_UPLOADS if small else 1
        rows.append([name, *cells[:-1], per(result.requests[name], uploads)])
    for name, samples in result.samples.items():
        if mine and name != "ours":
            cells = [cell for metric in metrics for cell in (quotient(metric.best(mine), metric.best(samples)), "")]
            total, other = result.requests["ours"].total(), result.requests[name].total()
            rows.append([f"ours / {name}", *cells[:-1], quotient(total, other)])
    missing = [f"{name} {reason}" for name, reason in result.failures.items()]
    return [f"### {result.workload.title}", "", *table(rows), "", *(f"Not in the table: {text}." for text in missing)]


def per(calls: Mapping[str, int], operations: int) -> str:
    each = ", ".join(f"{count / operations:.4g} {name}" for name, count in sorted(calls.items()) if count)
    return f"{sum(calls.values()) / operations:.4g} ({each})"


def compare(options: argparse.Namespace) -> None:
    plan = Plan(size=options.size or GIB, small_uploads=SMALL_UPLOADS)
    known = catalogue(plan)
    rounds: int = options.rounds
    contestants = list(all_contestants(options.tusd))
    room(options.directory, (len(contestants) + 1) * plan.size)
    with tempfile.TemporaryDirectory(prefix="s3-", dir=options.directory) as name:
        home = Path(name)
        with payload_file(home / "payload", plan.size) as payload:
            results = [
                run_workload(known[name], contestants, rounds, plan, payload, home)
                for name in options.only or WORKLOADS
            ]
    print("\n".join(f"- {title}: {text}" for title, text in machine.description(options.directory)))
    print("\n".join(f"- `{contestant.name}`: {contestant.version}" for contestant in contestants))
    print(f"- Command: `{shlex.join(['python', '-m', 'bench.s3', *sys.argv[1:]])}`, {rounds} rounds\n")
    print("S3 requests are those that the S3 server counted, HEAD as GET; LIST is mostly the check at start.\n")
    for result in results:
        print("\n".join(section(result)))


# Memory.


def large_patch(target: Target, length: int) -> tuple[str, str]:
    """Send one PATCH of bytes that are generated while it is sent; return its path and digest."""
    digest = hashlib.sha256()
    with Connection(target.port) as connection:
        path = create(connection, target.creation_path, length)
        connection.socket.sendall(build_patch(path, 0, length=length).data)
        for start in range(0, length, BLOCK_BYTES):
            block = os.urandom(min(BLOCK_BYTES, length - start))
            connection.socket.sendall(block)
            digest.update(block)
        connection.response("PATCH").expect(204, "a PATCH")
    return path, digest.hexdigest()


def small_patches(target: Target, number: int) -> tuple[str, str]:
    digest = hashlib.sha256()
    with Connection(target.port) as connection:
        path = create(connection, target.creation_path, number * SMALL_PATCH)
        for start in range(0, number * SMALL_PATCH, SMALL_PATCH):
            block = os.urandom(SMALL_PATCH)
            connection.exchange(build_patch(path, start, block)).expect(204, "a PATCH")
            digest.update(block)
    return path, digest.hexdigest()


def memory(options: argparse.Namespace) -> None:
    length = options.size or LARGE
    room(options.directory, length)
    cases = (
        (f"One PATCH of {human(length)}", partial(large_patch, length=length), length, 1),
        (
            f"{human(MANY_PATCHES * SMALL_PATCH)} in PATCHes of 100 KiB",
            partial(small_patches, number=MANY_PATCHES),
            MANY_PATCHES * SMALL_PATCH,
            MANY_PATCHES,
        ),
    )
    rows = [["", "peak RSS, MB", "MB/s", "S3 calls per PATCH"]]
    peaks = []
    with tempfile.TemporaryDirectory(prefix="s3-", dir=options.directory) as name:
        for number, (title, send, total, patches) in enumerate(cases):
            home = Path(name) / str(number)
            with storage(home / "store") as store, running(our_recipe(store.server), home) as target:
                before = counters(target.port, CALLED)
                meter = Meter(target.process)
                try:
                    with meter:
                        path, digest = send(target)
                except (BenchError, OSError) as error:
                    log = home / "ours.log"
                    sys.exit(f"{title}: {error} ({error_summary(log.read_text(errors='replace'))})")
                assert meter.usage is not None
                calls = counters(target.port, CALLED) - before
                if store.digest(path.rpartition("/")[2], total) != digest:
                    raise BenchError("the object is not what was sent")
            peaks.append(meter.usage.peak_bytes)
            speed = total / meter.usage.seconds / 1e6
            rows.append([title, f"{peaks[-1] / 1e6:.1f}", f"{speed:.0f}", per(calls, patches)])
            shutil.rmtree(home, ignore_errors=True)
    print("\n".join(table(rows)))
    if max(peaks) >= MEMORY_LIMIT:
        sys.exit(f"more than {MEMORY_LIMIT // 1_000_000} MB")


def room(directory: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(directory).free < 2 * needed_bytes:
        sys.exit(f"{directory} has less than {2 * needed_bytes >> 30} GiB free")


def workload_names(text: str) -> list[str]:
    names = [word.strip() for word in text.split(",")]
    if not set(names) <= set(WORKLOADS):
        raise argparse.ArgumentTypeError(f"there are {', '.join(WORKLOADS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.s3", description="Measure uploads to S3.")
    parser.add_argument("--size", type=size, help="bytes of a bulk workload (default 1GiB; with --memory 5GiB)")
    parser.add_argument("--rounds", type=count, default=ROUNDS, help=f"rounds of each workload (default {ROUNDS})")
    parser.add_argument("--only", type=workload_names, metavar="NAME,...", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--memory", action="store_true", help="peak memory of our server, and its calls to S3")
    parser.add_argument("--tusd", type=Path, metavar="BINARY", help="a tusd binary to compare with, too")
    parser.add_argument("--directory", type=Path, default=WORK, help="where bytes are stored (default bench/.work)")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    # SIGTERM unwinds like Ctrl-C, so that every server is ended and every file removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    os.environ.update(CREDENTIALS)
    (memory if options.memory else compare)(options)


if __name__ == "__main__":
    main()
