"""Crowds of silent clients, and the server beside them: its memory and CPU time, and its answers to another client."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import BenchError, Connection, build, build_creation, build_patch, create, location_path
from bench.measure import cpu_seconds, memory_bytes, process_tree
from bench.recipes import Recipe, ours
from bench.report import MIB, table
from bench.runner import percentile, report_progress
from bench.servers import Target, kill, running

NAME = "hostile"
IDLE, OPEN, DOWNLOADS, S3_UPLOADS = 10_000, 2_000, 300, 100
RESERVE = 500  # descriptors for everything but the crowd
SETTLE_SECONDS = 2.5  # for work of the server that the arrival of a crowd has caused
IDLE_SECONDS = 5.0
HEADS, SMALL_UPLOADS, SMALL_BYTES = 300, 100, 1024
OPEN_LENGTH, OPEN_SENT = 1 << 20, 1000
DOWNLOAD_BYTES = 16 << 20
RECEIVE_BUFFER = 16 << 10  # bytes, so that little of a download waits in the kernel
S3_LENGTH, S3_SENT = 64 << 20, 3 << 20
PACE = 0.02  # seconds between two looks of the honest client while the crowd comes
MAX_SECONDS = 240  # for one crowd; then its server is ended

Crowd = Callable[[Target, int], list[socket.socket]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A number of silent clients of one kind."""

    title: str
    count: int
    crowd: Crowd
    descriptors: int = 1  # of the server, for each
    s3: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """Measurements of one crowd; bytes and seconds."""

    memory_before: int
    memory: int
    idle_cpu: float  # of one core
    heads: Sequence[float]
    uploads: Sequence[float]
    worst_while_coming: float
    still_there: int


def connect(target: Target, data: bytes, receive_buffer: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(MAX_SECONDS)
    connection.connect(("127.0.0.1", target.port))
    connection.sendall(data)
    return connection


def no_clients(target: Target, count: int) -> list[socket.socket]:
    return []


def idle(target: Target, count: int) -> list[socket.socket]:
    """Open connections without a request."""
    return [connect(target, b"") for _ in range(count)]


def uploads_of(target: Target, count: int, length: int) -> list[str]:
    with Connection(target.port) as connection:
        return [create(connection, target.creation_path, length) for _ in range(count)]


def open_patches(target: Target, count: int) -> list[socket.socket]:
    """Open PATCHes that send a few bytes and then nothing."""
    paths = uploads_of(target, count, OPEN_LENGTH)
    return [connect(target, build_patch(path, 0, bytes(OPEN_SENT), OPEN_LENGTH).data) for path in paths]


def downloads(target: Target, count: int) -> list[socket.socket]:
    """Start downloads whose clients do not read."""
    with Connection(target.port) as connection:
        path = create(connection, target.creation_path, DOWNLOAD_BYTES)
        connection.exchange(build_patch(path, 0, bytes(DOWNLOAD_BYTES))).expect(204, "the upload to download")
    return [connect(target, build("GET", path).data, RECEIVE_BUFFER) for _ in range(count)]


def s3_uploads(target: Target, count: int) -> list[socket.socket]:
    """Open PATCHes that send more than half of a part and then nothing."""
    connections = [
        connect(target, build_patch(path, 0, length=S3_LENGTH).data) for path in uploads_of(target, count, S3_LENGTH)
    ]
    block = bytes(1 << 16)
    rest = dict.fromkeys(connections, S3_SENT)
    deadline = time.monotonic() + MAX_SECONDS / 4
    for connection in connections:
        connection.setblocking(False)
    while any(rest.values()) and time.monotonic() < deadline:  # the server may not read all of the bytes
        before = sum(rest.values())
        for connection, size in rest.items():
            with contextlib.suppress(BlockingIOError, ConnectionError):
                rest[connection] -= connection.send(block[:size]) if size else 0
        if sum(rest.values()) == before:
            time.sleep(PACE)
    return connections


def everything(target: Target, count: int) -> list[socket.socket]:
    """Open idle connections, PATCHes and downloads, in the proportion of the single scenes."""
    whole = IDLE + OPEN + DOWNLOADS
    return [
        *downloads(target, count * DOWNLOADS // whole),
        *open_patches(target, count * OPEN // whole),
        *idle(target, count * IDLE // whole),
    ]


def scenes(share: float) -> list[Scene]:
    def few(count: int) -> int:
        return max(1, int(count * share))

    return [
        Scene("nobody", 0, no_clients),
        Scene("idle connections", few(IDLE), idle),
        Scene("open PATCHes", few(OPEN), open_patches, descriptors=2),
        Scene("stalled downloads", few(DOWNLOADS), downloads, descriptors=2),
        Scene("all of these", few(IDLE + OPEN + DOWNLOADS), everything, descriptors=2),
        Scene("nobody, S3", 0, no_clients, s3=True),
        Scene("stalled S3 uploads", few(S3_UPLOADS), s3_uploads, s3=True),
    ]


def raise_limit() -> int:
    """Raise the limit of descriptors, here and in the server, to that of the machine; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def missing_descriptors(scene: Scene, limit: int) -> str:
    """Return why the machine has too few descriptors for a scene; empty if it has enough."""
    # In the mixed scene only uploads and downloads have a file beside their connection.
    files = (scene.descriptors - 1) * min(scene.count, OPEN + DOWNLOADS)
    needed = scene.count + files + RESERVE
    if needed <= limit:
        return ""
    return f"it needs {needed} descriptors and the machine allows {limit} (`ulimit -Hn`)"


# The honest client.


def timed(request: Callable[[], object]) -> float:
    started = time.perf_counter()
    request()
    return time.perf_counter() - started


def small_upload(connection: Connection, target: Target) -> None:
    created = connection.exchange(build_creation(target.creation_path, SMALL_BYTES))
    path = location_path(created.expect(201, "the honest creation"))
    connection.exchange(build_patch(path, 0, bytes(SMALL_BYTES))).expect(204, "the honest PATCH")


class HonestClient:
    """A client in a thread that repeats a HEAD for one upload while the crowd comes."""

    def __init__(self, target: Target, path: str) -> None:
        self.worst = 0.0
        self._target = target
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(PACE):
            with contextlib.suppress(BenchError, OSError):
                self.worst = max(self.worst, timed(self._look))

    def _look(self) -> None:
        with Connection(self._target.port) as connection:
            connection.exchange(build("HEAD", self._path)).expect(200, "the honest HEAD")

    def __enter__(self) -> HonestClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(MAX_SECONDS)


def is_open(connection: socket.socket) -> bool:
    """Return whether the server has neither refused the request nor closed the connection."""
    connection.setblocking(False)
    try:
        data = connection.recv(1 << 16)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return bool(data) and not data.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


def measure_scene(scene: Scene, target: Target) -> Figures:
    tree = process_tree(target.process)
    (path,) = uploads_of(target, 1, OPEN_LENGTH)
    memory_before = memory_bytes(tree, "VmRSS")
    crowd: list[socket.socket] = []
    try:
        with HonestClient(target, path) as honest:
            crowd += scene.crowd(target, scene.count)
            time.sleep(SETTLE_SECONDS)
        before, started = cpu_seconds(tree), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle_cpu = (cpu_seconds(tree) - before) / (time.monotonic() - started)
        memory = memory_bytes(tree, "VmRSS")
        with Connection(target.port) as connection:
            look = build("HEAD", path)
            heads = [timed(lambda: connection.exchange(look).expect(200, "a HEAD")) for _ in range(HEADS)]
            uploads = [timed(lambda: small_upload(connection, target)) for _ in range(SMALL_UPLOADS)]
        still_there = sum(map(is_open, crowd))
    finally:
        for one in crowd:
            one.close()
    return Figures(memory_before, memory, idle_cpu, heads, uploads, honest.worst, still_there)


# Runs and the report.


@contextlib.contextmanager
def s3_arguments(home: Path) -> Iterator[tuple[str, ...]]:
    """The arguments for our server on an S3 server of its own."""
    from tests.support.s3_server import CREDENTIALS, start_seaweedfs  # boto3 is an extra

    os.environ.update(CREDENTIALS)
    home.mkdir()
    process, server = start_seaweedfs(home)
    try:
        process.wait_for_bucket(server)
        yield ("--s3-bucket", server.bucket, "--s3-endpoint", server.endpoint, "--s3-addressing", "path")
    finally:
        process.stop()


@contextlib.contextmanager
def recipe_for(scene: Scene, home: Path, extra: Sequence[str]) -> Iterator[Recipe]:
    if not scene.s3:
        yield ours("ours", *extra)
        return
    with s3_arguments(home / "s3") as arguments:
        yield ours("ours", *arguments, *extra)


def measure(scene: Scene, home: Path, extra: Sequence[str]) -> Figures:
    with recipe_for(scene, home, extra) as recipe, running(recipe, home) as target:
        watchdog = threading.Timer(MAX_SECONDS, kill, [target.process])
        watchdog.daemon = True
        watchdog.start()
        try:
            return measure_scene(scene, target)
        finally:
            watchdog.cancel()


def milliseconds(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.5) * 1e3:.1f} / {percentile(values, 0.99) * 1e3:.1f}"


def row(scene: Scene, figures: Figures) -> list[str]:
    grown = figures.memory - figures.memory_before
    each = f"{grown / scene.count / 1024:.1f}" if scene.count else ""
    return [
        f"{scene.count:,} {scene.title}".replace(",", " ") if scene.count else scene.title,
        f"{figures.memory / MIB:.0f}",
        each,
        f"{figures.idle_cpu * 100:.1f}",
        milliseconds(figures.heads),
        milliseconds(figures.uploads),
        f"{figures.worst_while_coming * 1e3:.0f}",
        f"{figures.still_there}" if scene.count else "",
    ]


HEAD_ROW = [
    "crowd",
    "RSS, MiB",
    "KiB each",
    "idle CPU, %",
    "HEAD p50 / p99, ms",
    "POST + PATCH p50 / p99, ms",
    "worst HEAD while they come, ms",
    "still open",
]


def run(directory: Path, share: float, extra: Sequence[str] = ()) -> str:
    """Run every scene once, each against a server of its own; return the report.

    `share`, from 0 to 1, is the share of the clients that take part; `extra` are more arguments for the server.
    """
    limit = raise_limit()
    rows, absent = [HEAD_ROW], []
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=directory) as name:
        for number, scene in enumerate(scenes(share)):
            report_progress(f"{scene.count} {scene.title}" if scene.count else scene.title)
            reason = missing_descriptors(scene, limit)
            if not reason:
                home = Path(name) / str(number)
                home.mkdir()
                try:
                    rows.append(row(scene, measure(scene, home, extra)))
                except (BenchError, OSError, ImportError, RuntimeError) as error:
                    reason = f"failed: {error or type(error).__name__}"
            if reason:
                absent.append(f"Not in the table: {scene.count} {scene.title}, {reason}.")
                report_progress(f"  {reason}")
    return "\n".join(["### Beside crowds that do nothing", "", *table(rows), "", *absent])


def main(directory: Path, *, quick: bool, extra: Sequence[str]) -> None:
    """Print the report; a tenth of the clients takes part in a quick run."""
    directory.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(run(directory, 0.1 if quick else 1.0, extra) + "\n")
