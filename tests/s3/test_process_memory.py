"""The memory of a server process with its bytes in S3, which does not grow with the size of uploads."""

from __future__ import annotations

import hashlib
import os
import select
import time
from contextlib import ExitStack

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_uploads import PART, Place, peak_memory
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, patch_headers, payload
from tests.support.wire.requests import create, request, start_patch

MAX_MEMORY = 150 * 10**6  # bytes resident, however large an upload is
MEMORY_MIB = int(os.environ.get("S3_MEMORY_MIB", "512"))  # of the upload in one PATCH
MEMORY_PATCHES_MIB = int(os.environ.get("S3_MEMORY_PATCHES_MIB", "100"))  # of the upload in 250 KiB PATCHes
MAX_GROWTH = 30 * 10**6  # bytes, from the first quarter of the upload in many PATCHes to its end: the rest is 75 MiB


@pytest.mark.long
@pytest.mark.timeout(60 + MEMORY_MIB)
@pytest.mark.fresh_interpreter
def test_one_patch_of_any_size_needs_little_memory(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    block = payload(MEBI)
    length = MEMORY_MIB * MEBI
    path = create(server.port, length)
    with start_patch(server.port, path, 0, length) as connection:
        for number in range(MEMORY_MIB):
            connection.send(number.to_bytes(8))
            connection.send(block[8:])
        answer = connection.answer(60)
    assert (answer.status, answer.offset) == (204, length)
    print(f"{MEMORY_MIB} MiB in one PATCH: {peak_memory(server) / 1e6:.0f} MB")
    assert peak_memory(server) < MAX_MEMORY
    assert place.digest(place.key_of(path)) == streamed(block, MEMORY_MIB)
    assert request(server.port, "DELETE", path).status == 204


@pytest.mark.long
@pytest.mark.timeout(60 + MEMORY_PATCHES_MIB)
@pytest.mark.fresh_interpreter
def test_many_patches_need_little_memory(own: tuple[ServerProcess, Place]) -> None:
    server, place = own
    size = 250 * KIBI
    count = MEMORY_PATCHES_MIB * MEBI // size
    block = payload(size)
    first_quarter = 0
    path = create(server.port, size * count)
    with Connection(server.port) as connection:
        for number in range(count):
            body = number.to_bytes(8) + block[8:]
            headers = patch_headers(number * size) | {"Content-Length": str(size)}
            connection.start("PATCH", path, headers)
            connection.send(body)
            answer = connection.answer()
            assert (answer.status, answer.offset) == (204, (number + 1) * size), answer
            if number == count // 4:
                first_quarter = peak_memory(server)
    print(f"{MEMORY_PATCHES_MIB} MiB in {count} PATCHes: {first_quarter / 1e6:.0f}, {peak_memory(server) / 1e6:.0f} MB")
    assert peak_memory(server) < MAX_MEMORY
    assert peak_memory(server) - first_quarter < MAX_GROWTH
    assert place.digest(place.key_of(path)) == streamed(block, count)
    assert place.keys == [place.key_of(path)]


def streamed(block: bytes, count: int) -> tuple[int, str]:
    """Return size and SHA-256 of `count` blocks, each with its number at the front."""
    digest = hashlib.sha256()
    for number in range(count):
        digest.update(number.to_bytes(8))
        digest.update(memoryview(block)[8:])
    return len(block) * count, digest.hexdigest()


@pytest.mark.long
@pytest.mark.fresh_interpreter
def test_many_uploads_at_once_need_little_memory(own: tuple[ServerProcess, Place]) -> None:
    """More parts are begun than there is room for; slow ones among them do not stop the others."""
    server, place = own
    data = payload(PART + 700 * KIBI)
    with ExitStack() as stack:
        paths = [create(server.port, len(data)) for _ in range(30)]
        connections = [stack.enter_context(start_patch(server.port, path, 0, len(data))) for path in paths]
        for connection in connections:
            connection.socket.settimeout(60)
        for connection in connections:
            connection.socket.setblocking(False)
        left = {connection.socket: memoryview(data) for connection in connections}
        deadline = time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline, [len(rest) for rest in left.values()]
            for ready in select.select([], [*left], [], 1)[1]:
                left[ready] = left[ready][ready.send(left[ready][: 64 * KIBI]) :]
                if not left[ready]:
                    del left[ready]
        for connection in connections:
            connection.socket.setblocking(True)
            assert connection.answer(60).offset == len(data)
    print(f"{len(paths)} uploads at once: {peak_memory(server) / 1e6:.0f} MB")
    assert peak_memory(server) < MAX_MEMORY + 50 * 10**6  # both budgets in full
    for path in paths:
        place.assert_alone(path, data)
    assert sorted(place.keys) == sorted(place.key_of(path) for path in paths)
