"""The workloads: each moves data to or from one target inside `with meter`, and returns the amounts."""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.client import (
    BenchError,
    Connection,
    Script,
    build,
    build_creation,
    build_patch,
    create,
    location_path,
    run_scripts,
)
from bench.load import Load, generator
from bench.measure import Meter
from bench.payload import Payload, Upload
from bench.servers import Target

CHUNK_BYTES = 8 << 20
SMALL_BYTES = 1 << 10
PARALLEL = 8
MANY = 50
SMALL_CONNECTIONS = 8
HEAD_CONNECTIONS = 16
HEAD_UPLOADS = 100
SLOW_CLIENTS = 100
SLOW_BYTES_PER_SECOND = 1 << 20
SLOW_TICK_SECONDS = 0.05
SINK_BYTES = 4 << 20
LIMIT_SECONDS = 60
DOWNLOADS = 4  # of the same upload in one measurement, so that it lasts


@dataclass(frozen=True, slots=True)
class Plan:
    """Amounts of work; `size` is the number of bytes that the bulk workloads move."""

    size: int = 1 << 30
    small_uploads: int = 2000
    heads: int = 10000
    connections: int = 4000
    slow_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """The amounts that a workload moved: bytes, operations, seconds of each one, and uploads to verify and delete."""

    bytes: int
    operations: int
    latencies: list[float] = field(default_factory=list)
    uploads: Sequence[Upload] = ()


Run = Callable[[Target, Plan, Payload, Meter], Work]


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    title: str
    kind: str
    run: Run
    extension: str = ""
    algorithm: str = ""

    def fits(self, target: Target) -> str:
        """Return why this target cannot take part; empty if it can."""
        if self.extension and self.extension not in target.extensions:
            return f"does not offer {self.extension}"
        if self.algorithm and self.algorithm not in target.algorithms:
            return f"does not offer {self.algorithm}"
        return ""


def send_patch(
    connection: Connection, payload: Payload, upload: Upload, offset: int, length: int, checksum: str = ""
) -> None:
    connection.socket.sendall(build_patch(upload.path, offset, length=length, checksum=checksum).data)
    connection.send_file(payload.descriptor, upload.start + offset, length)
    response = connection.response("PATCH").expect(204, "a PATCH")
    if response.headers.get("upload-offset") != str(offset + length):
        raise BenchError(f"a PATCH up to {offset + length} was answered with another offset")


def one_patch(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    with Connection(target.port) as connection:
        upload = Upload(create(connection, target.creation_path, plan.size), 0, plan.size)
        with meter:
            send_patch(connection, payload, upload, 0, plan.size)
    return Work(plan.size, 1, uploads=[upload])


def chunks(size: int) -> list[tuple[int, int]]:
    return [(offset, min(CHUNK_BYTES, size - offset)) for offset in range(0, size, CHUNK_BYTES)]


def in_chunks(target: Target, size: int, payload: Payload, meter: Meter, checksums: Sequence[str]) -> Work:
    latencies: list[float] = []
    with Connection(target.port) as connection:
        upload = Upload(create(connection, target.creation_path, size), 0, size)
        with meter:
            for (offset, length), checksum in zip(chunks(size), checksums, strict=True):
                started = time.perf_counter()
                send_patch(connection, payload, upload, offset, length, checksum)
                latencies.append(time.perf_counter() - started)
    return Work(size, len(latencies), latencies, [upload])


def chunked(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    return in_chunks(target, plan.size, payload, meter, [""] * len(chunks(plan.size)))


def checksummed(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    pieces = (payload.bytes[offset : offset + length] for offset, length in chunks(plan.size))
    checksums = ["sha256 " + base64.b64encode(hashlib.sha256(piece).digest()).decode() for piece in pieces]
    return in_chunks(target, plan.size, payload, meter, checksums)


def parallel(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    return at_once(PARALLEL, plan.size // PARALLEL, target, payload, meter)


def many(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    return at_once(MANY, plan.size // PARALLEL, target, payload, meter)


def at_once(count: int, size: int, target: Target, payload: Payload, meter: Meter) -> Work:
    """Run `count` uploads of `size` bytes at the same time; they share the bytes of the payload."""

    def send(connection: Connection, upload: Upload) -> None:
        send_patch(connection, payload, upload, 0, size)

    connections = [Connection(target.port) for _ in range(count)]
    try:
        uploads = [
            Upload(create(connection, target.creation_path, size), number * size % (payload.size - size + 1), size)
            for number, connection in enumerate(connections)
        ]
        # The threads are created inside the block, so that they inherit the core that it pins.
        with meter, ThreadPoolExecutor(count) as pool:
            list(pool.map(send, connections, uploads))
    finally:
        for connection in connections:
            connection.socket.close()
    return Work(size * count, count, uploads=uploads)


def small_piece(payload: Payload, number: int) -> tuple[int, bytes]:
    start = number * SMALL_BYTES % (payload.size - SMALL_BYTES)
    return start, payload.bytes[start : start + SMALL_BYTES]


def small_script(target: Target, payload: Payload, number: int, uploads: list[Upload]) -> Script:
    start, body = small_piece(payload, number)
    created = yield build_creation(target.creation_path, SMALL_BYTES)
    path = location_path(created.expect(201, "a small creation"))
    answer = yield build_patch(path, 0, body)
    answer.expect(204, "a small PATCH")
    uploads.append(Upload(path, start, SMALL_BYTES))


def creation_script(target: Target, payload: Payload, number: int, uploads: list[Upload]) -> Script:
    start, body = small_piece(payload, number)
    created = yield build_creation(target.creation_path, SMALL_BYTES, body)
    path = location_path(created.expect(201, "a creation with upload"))
    if created.headers.get("upload-offset") != str(SMALL_BYTES):
        raise BenchError("a creation with upload did not take the body")
    uploads.append(Upload(path, start, SMALL_BYTES))


def many_small(
    make: Callable[[Target, Payload, int, list[Upload]], Script],
    target: Target,
    plan: Plan,
    payload: Payload,
    meter: Meter,
) -> Work:
    uploads: list[Upload] = []
    scripts: Iterator[Script] = (make(target, payload, number, uploads) for number in range(plan.small_uploads))
    with meter:
        latencies = run_scripts(target.port, scripts, SMALL_CONNECTIONS)
    return Work(plan.small_uploads * SMALL_BYTES, plan.small_uploads, latencies, uploads)


def load(target: Target, connections: int) -> Load | None:
    """Return the load generator in C for this target; None where it cannot be built."""
    program = generator().program
    return Load(program, target.port, connections, SMALL_BYTES) if program else None


def small(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    fast = load(target, SMALL_CONNECTIONS)
    if fast is None:
        return many_small(small_script, target, plan, payload, meter)
    with meter:
        latencies, uploads = fast.pairs(target.creation_path, payload, plan.small_uploads)
    return Work(plan.small_uploads * SMALL_BYTES, plan.small_uploads, latencies, uploads)


def creation_with_upload(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    fast = load(target, SMALL_CONNECTIONS)
    if fast is None:
        return many_small(creation_script, target, plan, payload, meter)
    with meter:
        latencies, uploads = fast.creations(target.creation_path, payload, plan.small_uploads)
    return Work(plan.small_uploads * SMALL_BYTES, plan.small_uploads, latencies, uploads)


def head_script(path: str) -> Script:
    answer = yield build("HEAD", path)
    answer.expect(200, "a HEAD")


def heads(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    uploads: list[Upload] = []
    made = (small_script(target, payload, number, uploads) for number in range(HEAD_UPLOADS))
    run_scripts(target.port, made, SMALL_CONNECTIONS)
    paths = [upload.path for upload in uploads]
    scripts = (head_script(paths[number % HEAD_UPLOADS]) for number in range(plan.heads))
    fast = load(target, HEAD_CONNECTIONS)
    with meter:
        latencies = fast.heads(paths, plan.heads) if fast else run_scripts(target.port, scripts, HEAD_CONNECTIONS)
    return Work(0, plan.heads, latencies, uploads)


def connections(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    """Send every HEAD on a new connection, one after the other."""
    uploads: list[Upload] = []
    run_scripts(target.port, iter([small_script(target, payload, 0, uploads)]), 1)
    request = build("HEAD", uploads[0].path)
    latencies: list[float] = []
    with meter:
        for _ in range(plan.connections):
            started = time.perf_counter()
            with Connection(target.port) as connection:
                connection.exchange(request).expect(200, "a HEAD")
            latencies.append(time.perf_counter() - started)
    return Work(0, plan.connections, latencies, uploads)


def download(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    sink = memoryview(bytearray(SINK_BYTES))
    with Connection(target.port) as connection:
        upload = Upload(create(connection, target.creation_path, plan.size), 0, plan.size)
        send_patch(connection, payload, upload, 0, plan.size)
        with meter:
            received = sum(
                len(piece) for _ in range(DOWNLOADS) for piece in connection.download(build("GET", upload.path), sink)
            )
        position = 0
        for piece in connection.download(build("GET", upload.path), sink):
            if payload.bytes[position : position + len(piece)] != piece:
                raise BenchError("the download differs from what was uploaded")
            position += len(piece)
    if received != DOWNLOADS * plan.size or position != plan.size:
        raise BenchError(f"{DOWNLOADS} downloads have {received} bytes, one of {plan.size} has {position}")
    return Work(received, DOWNLOADS, uploads=[upload])


def slow(target: Target, size: int, payload: Payload, meter: Meter) -> Work:
    connections = [Connection(target.port) for _ in range(SLOW_CLIENTS)]
    try:
        uploads: list[Upload] = []
        for number, connection in enumerate(connections):
            start = number * SMALL_BYTES % max(1, payload.size - size)
            upload = Upload(create(connection, target.creation_path, size), start, size)
            connection.socket.sendall(build_patch(upload.path, 0, length=size).data)
            connection.socket.setblocking(False)
            uploads.append(upload)
        with meter:
            trickle(connections, uploads, payload)
            for connection in connections:
                connection.socket.settimeout(LIMIT_SECONDS)
                connection.response("PATCH").expect(204, "a slow PATCH")
    finally:
        for connection in connections:
            connection.socket.close()
    return Work(size * SLOW_CLIENTS, SLOW_CLIENTS, uploads=uploads)


def trickle(connections: Sequence[Connection], uploads: Sequence[Upload], payload: Payload) -> None:
    """Send every body at the same pace; a full socket is tried again at the next tick."""
    sent = [0] * len(uploads)
    started = time.monotonic()
    with memoryview(payload.bytes) as view:
        while any(count < upload.length for count, upload in zip(sent, uploads, strict=True)):
            elapsed = time.monotonic() - started
            if elapsed > LIMIT_SECONDS + uploads[0].length / SLOW_BYTES_PER_SECOND:
                raise BenchError("the slow uploads were not taken in time")
            due = int(elapsed * SLOW_BYTES_PER_SECOND)
            for number, (connection, upload) in enumerate(zip(connections, uploads, strict=True)):
                piece = view[upload.start + sent[number] : upload.start + min(due, upload.length)]
                try:
                    sent[number] += connection.socket.send(piece) if piece else 0
                except BlockingIOError:
                    pass
            time.sleep(SLOW_TICK_SECONDS)


def slow_uploads(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    return slow(target, plan.slow_bytes, payload, meter)


def slow_uploads_ten_times(target: Target, plan: Plan, payload: Payload, meter: Meter) -> Work:
    return slow(target, 10 * plan.slow_bytes, payload, meter)


def human(count: float) -> str:
    return f"{count / (1 << 30):g} GiB" if count >= 1 << 30 else f"{count / (1 << 20):g} MiB"


def catalogue(plan: Plan) -> dict[str, Workload]:
    size, part = human(plan.size), human(plan.size / PARALLEL)
    slow_size, ten = human(plan.slow_bytes), human(10 * plan.slow_bytes)
    pace = f"{SLOW_BYTES_PER_SECOND >> 20} MiB/s each"
    listed = (
        Workload("patch", f"One PATCH of {size}", "bulk", one_patch),
        Workload("chunks", f"{size} in PATCHes of 8 MiB", "chunks", chunked),
        Workload("parallel", f"{PARALLEL} parallel uploads of {part}", "bulk", parallel),
        Workload("many", f"{MANY} parallel uploads of {part}", "bulk", many),
        Workload("checksum", f"{size} in PATCHes of 8 MiB with sha256", "chunks", checksummed, "checksum", "sha256"),
        Workload("download", f"{DOWNLOADS} downloads of {size}", "bulk", download),
        Workload("small", f"{plan.small_uploads} uploads of 1 KiB: POST, PATCH", "small", small),
        Workload(
            "creation",
            f"{plan.small_uploads} uploads of 1 KiB: POST with the data",
            "small",
            creation_with_upload,
            "creation-with-upload",
        ),
        Workload("head", f"{plan.heads} HEADs over {HEAD_CONNECTIONS} connections", "small", heads),
        Workload("connections", f"{plan.connections} connections with one HEAD each", "small", connections),
        Workload("slow", f"{SLOW_CLIENTS} slow uploads of {slow_size}, {pace}", "memory", slow_uploads),
        Workload("slow10", f"{SLOW_CLIENTS} slow uploads of {ten}, {pace}", "memory", slow_uploads_ten_times),
    )
    return {workload.name: workload for workload in listed}
