"""The cost of a request, of a start and of an empty sweep with few and with very many open uploads in SQLite."""

import asyncio
import contextlib
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import METADATA, run_scripts
from bench.load import Load, generator
from bench.measure import Meter
from bench.payload import Payload, delete, payload_file
from bench.recipes import ours
from bench.report import table
from bench.runner import report_progress
from bench.servers import Target, running
from bench.workloads import HEAD_CONNECTIONS, SMALL_BYTES, Plan, head_script, small
from tusd_py.backends.disk.locations import TOP
from tusd_py.composition import build_service
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import opened
from tusd_py.settings import Settings
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper

NAME = "growth"
COUNTS = (1, 100, 10_000, 100_000)
BATCH = 500  # records that are inserted at a time
SWEEPS = 20
ROUNDS, QUICK_ROUNDS = 25, 2  # many short ones: a short round may run undisturbed on a busy machine
PLAN = Plan(size=1 << 20, small_uploads=100, heads=400)
PAYLOAD_BYTES = 1 << 20
LIFETIME = 86400.0  # seconds until the uploads expire, as by default


@dataclass(slots=True)
class Crowd:
    """A server with so many open uploads, and its measurements: seconds."""

    count: int
    name: str
    paths: list[str] = field(default_factory=list)
    sweeps: list[float] = field(default_factory=list)
    start: float = 0.0
    heads: list[float] = field(default_factory=list)  # CPU time of each, by round
    pairs: list[float] = field(default_factory=list)


async def fill(service: UploadService, count: int) -> list[str]:
    """Insert records of open uploads without bytes, which have no files; return their ids."""
    ids = [secrets.token_hex(16) for _ in range(count)]
    created = time.time()
    for start in range(0, count, BATCH):
        uploads = (
            Upload(
                id=upload_id,
                created_at=created,
                length=SMALL_BYTES,
                metadata=METADATA,
                expires_at=created + LIFETIME,
                location=TOP,
            )
            for upload_id in ids[start : start + BATCH]
        )
        await asyncio.gather(*map(service.state.create, uploads))
    return ids


async def sweeps(service: UploadService) -> list[float]:
    """Return the seconds of sweeps that find nothing."""
    sweeper, seconds = Sweeper(service), []
    for _ in range(SWEEPS):
        started = time.perf_counter()
        summary = await sweeper.sweep()
        seconds.append(time.perf_counter() - started)
        assert summary.total == 0
    return seconds


async def prepare(crowd: Crowd, directory: Path) -> None:
    settings = Settings(upload_dir=directory)
    async with opened(build_service(settings, EventBus()), settings) as service:
        ids = await fill(service, crowd.count)
        crowd.sweeps = await sweeps(service)
    crowd.paths = [f"/files/{upload_id}" for upload_id in ids]


def cpu_seconds(target: Target) -> float:
    """Return the CPU time of a server of one process, in seconds, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime((~target.process << 3) | 2)


def measure_heads(target: Target, crowd: Crowd, count: int) -> None:
    """Ask for `count` of the open uploads."""
    paths = random.sample(crowd.paths, min(count, crowd.count))
    program, before = generator().program, cpu_seconds(target)
    with Meter(target.process):
        if program is not None:
            Load(program, target.port, HEAD_CONNECTIONS, 0).heads(paths, count)
        else:
            scripts = (head_script(paths[number % len(paths)]) for number in range(count))
            run_scripts(target.port, scripts, HEAD_CONNECTIONS)
    crowd.heads.append((cpu_seconds(target) - before) / count)


def measure_pairs(target: Target, crowd: Crowd, plan: Plan, payload: Payload) -> None:
    before = cpu_seconds(target)
    work = small(target, plan, payload, Meter(target.process))
    crowd.pairs.append((cpu_seconds(target) - before) / plan.small_uploads)
    delete(target.port, target.directory, work.uploads)


def rounds(crowds: Sequence[Crowd], home: Path, plan: Plan, count: int, extra: Sequence[str]) -> None:
    """Start a server for each crowd; in every round each server has its turn."""
    with contextlib.ExitStack() as stack:
        payload = stack.enter_context(payload_file(home / "payload", PAYLOAD_BYTES))
        targets = []
        for crowd in crowds:
            started = time.perf_counter()
            recipe = ours(crowd.name, "--durability", "never", *extra)
            targets.append(stack.enter_context(running(recipe, home)))
            crowd.start = time.perf_counter() - started
        for number in range(count):
            report_progress(f"  round {number + 1}")
            for target, crowd in random.sample(list(zip(targets, crowds, strict=True)), len(targets)):
                measure_heads(target, crowd, plan.heads)
                measure_pairs(target, crowd, plan, payload)


def row(crowd: Crowd, base: Crowd) -> list[str]:
    head, pair = min(crowd.heads), min(crowd.pairs)
    return [
        f"{crowd.count:,}".replace(",", " "),
        f"{head * 1e3:.3f}",
        f"{head / min(base.heads):.2f}",
        f"{pair * 1e3:.3f}",
        f"{pair / min(base.pairs):.2f}",
        f"{crowd.start:.2f}",
        f"{statistics.median(crowd.sweeps) * 1e3:.1f}",
        f"{max(crowd.sweeps) * 1e3:.1f}",
    ]


HEAD_ROW = [
    "open uploads",
    "HEAD, CPU ms",
    "of that at 100",
    "POST + PATCH, CPU ms",
    "of that at 100",
    "start, s",
    "empty sweep, ms",
    "slowest of 20",
]


def run(directory: Path, plan: Plan, count: int, extra: Sequence[str] = ()) -> str:
    """Measure every number of open uploads in `count` rounds; return the report."""
    with tempfile.TemporaryDirectory(prefix="growth-", dir=directory) as name:
        home = Path(name)
        crowds = [Crowd(number, f"open-{number}") for number in COUNTS]
        for crowd in crowds:
            report_progress(f"{crowd.count} open uploads")
            asyncio.run(prepare(crowd, home / crowd.name))
        rounds(crowds, home, plan, count, extra)
    base = crowds[1]
    return "\n".join(["### With many open uploads", "", *table([HEAD_ROW, *(row(crowd, base) for crowd in crowds)])])


def main(directory: Path, *, quick: bool, extra: Sequence[str]) -> None:
    """Print the report; a quick run has two rounds."""
    directory.mkdir(parents=True, exist_ok=True)
    report = run(directory, PLAN, QUICK_ROUNDS if quick else ROUNDS, extra)
    sys.stdout.write(f"{report}\n\nLoad generator: {generator().description}\n")
