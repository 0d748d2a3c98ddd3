"""kill -9 at any instant: what was acknowledged is there afterwards, and every upload ends with the bytes sent."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, path_of, payload, sha256
from tests.support.wire.requests import (
    assert_content,
    complete,
    content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)

KILLING_TIME = 18.0  # seconds of random kills
MAX_LIFE = 1.2  # seconds a server lives between two kills


def seeded_random() -> random.Random:
    seed = os.environ.get("FAILURE_SEED") or str(random.randrange(1 << 32))
    print(f"FAILURE_SEED={seed}")
    return random.Random(seed)


class Uploader:
    """A client in a thread, that survives every death of the server and trusts nothing it was told."""

    def __init__(self, port: int, number: int, chance: random.Random) -> None:
        self.port = port
        self.chance = random.Random(chance.random())
        self.number = number
        self.stop = threading.Event()
        self.finished = 0
        self.interrupted = 0

    def run(self) -> None:
        kinds = [self.upload, self.upload_with_creation, self.upload_deferred, self.concatenate]
        while not self.stop.is_set():
            kind = self.chance.choice(kinds)
            path, data = kind()
            self.check(path, data)
            self.finished += 1

    def check(self, path: str, data: bytes) -> None:
        answer = self.again(lambda: request(self.port, "GET", path))
        assert answer.status == 200, answer
        assert sha256(answer.body) == sha256(data)

    # Kinds of uploads. Each returns the path of the finished upload and what it has to hold.

    def upload(self, headers: dict[str, str] | None = None) -> tuple[str, bytes]:
        data = self.data()
        made = self.again(lambda: request(self.port, "POST", "/files", creation_headers(len(data)) | (headers or {})))
        assert (made.status, made.offset) == (201, 0), made
        path = path_of(made)
        self.send(path, data, 0)
        return path, data

    def upload_with_creation(self) -> tuple[str, bytes]:
        data = self.data()
        first = data[: self.chance.randrange(1, max(2, len(data)))]
        headers = creation_headers(len(data), first)
        made = self.again(lambda: request(self.port, "POST", "/files", headers, first))
        assert (made.status, made.offset) == (201, len(first)), made
        path = path_of(made)
        self.send(path, data, len(first))
        return path, data

    def upload_deferred(self) -> tuple[str, bytes]:
        data = self.data()
        made = self.again(lambda: request(self.port, "POST", "/files", creation_headers(None)))
        assert made.status == 201, made
        path = path_of(made)
        self.send(path, data, 0, deferred=True)
        return path, data

    def concatenate(self) -> tuple[str, bytes]:
        parts = [self.upload({"Upload-Concat": "partial"}) for _ in range(self.chance.randrange(1, 4))]
        headers = {"Upload-Concat": "final;" + " ".join(path for path, _ in parts)}
        made = self.again(lambda: request(self.port, "POST", "/files", headers))
        assert made.status == 201, made
        repeated = self.again(lambda: request(self.port, "POST", "/files", headers))
        assert path_of(repeated) == path_of(made)
        return path_of(made), b"".join(data for _, data in parts)

    def data(self) -> bytes:
        size = self.chance.choice([3_000, 200 * KIBI, 2 * MEBI, 9 * MEBI])
        return self.chance.randbytes(self.chance.randrange(1, size))

    def send(self, path: str, data: bytes, acknowledged: int, *, deferred: bool = False) -> None:
        """Send PATCHes until the end; after each broken connection HEAD returns the offset to continue at."""
        size = self.chance.choice([7_777, 100 * KIBI, 1_500_000, len(data)])
        while acknowledged < len(data):
            part = data[acknowledged : acknowledged + size]
            end = acknowledged + len(part)
            verified = self.chance.random() < 0.3
            headers = checksum(part) if verified else {}
            if deferred and end == len(data):
                headers["Upload-Length"] = str(len(data))
            try:
                answer = patch(self.port, path, acknowledged, part, headers)
                assert (answer.status, answer.offset) == (204, end), answer
                acknowledged = end
            except OSError:
                self.interrupted += 1
                offset = self.again(lambda: head(self.port, path)).offset
                assert acknowledged <= offset <= end, "HEAD lost acknowledged bytes, or invented some"
                assert not verified or offset in (acknowledged, end), "bytes were kept without their checksum"
                acknowledged = offset

    def again(self, action: Callable[[], Answer]) -> Answer:
        """Return the answer to a request that may be repeated, as soon as there is a server to give it."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                answer = action()
                if answer.status != 423:
                    return answer
            except OSError:
                pass
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.02)


@pytest.mark.long
def test_random_kills_during_parallel_uploads(tmp_path: Path) -> None:
    chance = seeded_random()
    kills = 0
    with ServerProcess(tmp_path / "uploads", log_level="warning") as server, ThreadPoolExecutor(6) as executor:
        uploaders = [Uploader(server.port, number, chance) for number in range(6)]
        running = [executor.submit(uploader.run) for uploader in uploaders]
        try:
            deadline = time.monotonic() + KILLING_TIME
            while (time.monotonic() < deadline or kills < 3) and not any(one.done() for one in running):
                time.sleep(chance.uniform(0.01, MAX_LIFE))
                server.restart()
                kills += 1
        finally:
            for uploader in uploaders:
                uploader.stop.set()
        for one in running:
            one.result()
        log = "".join(server.log)
    finished = sum(uploader.finished for uploader in uploaders)
    interrupted = sum(uploader.interrupted for uploader in uploaders)
    print(f"{kills} kills, {finished} uploads, {interrupted} interrupted PATCHes")
    assert kills >= 3
    assert interrupted >= 1
    assert "Traceback" not in log, log


def test_a_kill_between_patches_loses_nothing(tmp_path: Path) -> None:
    data = payload(3 * MEBI)
    with ServerProcess(tmp_path / "uploads") as server:
        plain, deferred, untouched = (create(server.port, length) for length in (len(data), None, len(data)))
        metadata = {"Upload-Metadata": "filename aGVsbG8udHh0,flag"}
        with_metadata = create(server.port, len(data), metadata, data[:100])
        assert patch(server.port, plain, 0, data[:MEBI]).status == 204
        assert patch(server.port, deferred, 0, data[:5000]).status == 204
        server.restart()
        assert offset_of(server.port, plain) == MEBI
        assert offset_of(server.port, untouched) == 0
        assert head(server.port, deferred).headers["upload-defer-length"] == "1"
        assert head(server.port, with_metadata).headers["upload-metadata"] == metadata["Upload-Metadata"]
        answer = patch(server.port, deferred, 5000, data[5000:6000], {"Upload-Length": str(len(data))})
        assert (answer.status, answer.offset) == (204, 6000)
        server.restart()
        assert head(server.port, deferred).headers["upload-length"] == str(len(data))
        for path in (plain, deferred, untouched, with_metadata):
            complete(server.port, path, data)


def test_a_kill_right_after_the_last_answer_leaves_the_upload_complete(tmp_path: Path) -> None:
    data = payload(3 * MEBI)
    with ServerProcess(tmp_path / "uploads") as server:
        for _ in range(4):
            path = create(server.port, len(data))
            assert patch(server.port, path, 0, data).offset == len(data)
            server.restart()
            answer = head(server.port, path)
            assert (answer.status, answer.offset, answer.headers["upload-length"]) == (200, len(data), str(len(data)))
            assert_content(server.port, path, data)


def test_a_terminated_upload_does_not_come_back(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        path = create(server.port, 1000, body=bytes(500))
        assert request(server.port, "DELETE", path).status == 204
        server.restart()
        assert head(server.port, path).status == 404
        assert patch(server.port, path, 500, bytes(500)).status == 404


def test_unacknowledged_bytes_are_stored_as_a_prefix_after_a_kill(tmp_path: Path) -> None:
    """HEAD answers an offset that the resumed upload fits to, whatever the disk holds after the kill."""
    data = payload(8 * MEBI)
    with ServerProcess(tmp_path / "uploads") as server, ExitStack() as stack:
        paths = [create(server.port, len(data)) for _ in range(4)]
        acknowledged = {}
        for number, path in enumerate(paths):
            connection = stack.enter_context(stalled_patch(server.port, path, data, (2 * number + 1) * MEBI))
            acknowledged[path] = offset_of(server.port, path)
            connection.send(data[(2 * number + 1) * MEBI :][: 500 * KIBI])
        server.restart()
        for number, path in enumerate(paths):
            assert acknowledged[path] == (2 * number + 1) * MEBI
            assert acknowledged[path] <= offset_of(server.port, path) <= acknowledged[path] + 500 * KIBI
            complete(server.port, path, data)


def test_kills_around_the_completion_of_an_upload(tmp_path: Path) -> None:
    chance = seeded_random()
    data = payload(5 * MEBI)
    with ServerProcess(tmp_path / "uploads", durability="always") as server:
        for _ in range(5):
            path = create(server.port, len(data))
            with start_patch(server.port, path, 0, len(data)) as connection:
                connection.send(data)
                time.sleep(chance.uniform(0, 0.06))
                server.restart()
            offset = offset_of(server.port, path)
            if offset < len(data):
                complete(server.port, path, data)
            else:
                assert_content(server.port, path, data)


def test_a_concatenation_that_was_killed_half_way_is_driven_on(tmp_path: Path) -> None:
    """The client is not there any more: the server ends what it began, by itself."""
    part = payload(48 * MEBI)
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads, sweep_interval="0.2s") as server:
        partials = [create(server.port, len(part), {"Upload-Concat": "partial"}, part) for _ in range(2)]
        order = partials * 3
        total = len(part) * len(order)
        for attempt in range(8):
            metadata = f"attempt {'abcdefgh'[attempt] * 4}"
            headers = {"Upload-Concat": "final;" + " ".join(order), "Upload-Metadata": metadata}
            final = killed_half_way(server, headers)
            if final is not None:
                break
        else:
            pytest.fail("no concatenation was caught half-way")
        wait_until(lambda: request(server.port, "GET", final, {"Range": "bytes=0-0"}).status == 206, "it is finished")
        answer = head(server.port, final)
        assert (answer.status, answer.offset) == (200, total)
        assert answer.headers["upload-concat"] == headers["Upload-Concat"]
        assert sha256(content(server.port, final)) == sha256(part * len(order))
        repeated = request(server.port, "POST", "/files", headers)
        assert (repeated.status, path_of(repeated)) == (201, final)


def killed_half_way(server: ServerProcess, headers: dict[str, str]) -> str | None:
    """Start a concatenation, kill the server as soon as its copy begins; None if it was done before."""
    with Connection(server.port) as connection:
        connection.start("POST", "/files", headers | {"Content-Length": "0"})
        copies: list[str] = []
        deadline = time.monotonic() + TIMEOUT
        while not copies:
            assert time.monotonic() < deadline, "no copy began"
            copies = [name for name in os.listdir(server.upload_dir) if name.endswith(".concatenation")]
        server.kill()
    upload_id = copies[0].removeprefix(".").removesuffix(".concatenation")
    is_done = (server.upload_dir / upload_id).exists()
    server.restart()
    return None if is_done else f"/files/{upload_id}"
