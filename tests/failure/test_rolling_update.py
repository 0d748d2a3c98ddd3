"""Servers of an earlier version and of this one, on one upload directory and the same records, at the same time.

The earlier one (revision `EARLIER`) knows neither owners nor quotas nor conditions, and lets everybody in. The tests
take it from the history of this repository, and are skipped where there is none.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.auth.site import ADMIN, OTHER, OWNER, bearer, jwt_of, token_files
from tests.support.event_receiver import EventReceiver
from tests.support.forking import ForkedProcess
from tests.support.harness import ROOT, ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import (
    KIBI,
    TUS,
    Answer,
    checksum,
    creation_headers,
    identity as id_of,
    patch_headers,
    path_of,
    payload,
)
from tests.support.wire.requests import request

EARLIER = "c32d15b925171013d756ff13b30fece3ac8508e1"  # the last one before there was authentication
DATA = payload(200 * KIBI)
QUOTA = 50 << 20  # bytes of each owner


class EarlierServer(ServerProcess):
    """A server of the earlier version, in an interpreter of its own."""

    def __init__(self, tree: Path, upload_dir: Path, **options: Any) -> None:
        super().__init__(upload_dir, **options)
        self.tree = tree

    def _new_process(self, environment: dict[str, str]) -> subprocess.Popen[str] | ForkedProcess:
        return subprocess.Popen(
            [sys.executable, "-m", "tusd_py", *self.arguments()],
            cwd=self.tree,
            env=environment | {"PYTHONPATH": str(self.tree)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of the earlier version."""
    archive = subprocess.run(["git", "archive", EARLIER, "tusd_py"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip("this copy of the repository has no history")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@dataclass(frozen=True)
class Two:
    """The two servers, their Redis if there is one, and the receiver of their events."""

    earlier: ServerProcess
    today: ServerProcess
    redis: RedisServer | None
    receiver: EventReceiver

    def in_order(self, order: str) -> tuple[ServerProcess, ServerProcess]:
        return (self.earlier, self.today) if order == "earlier first" else (self.today, self.earlier)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def two(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer()) if request.param == "redis" else None
        receiver = stack.enter_context(EventReceiver(folder))
        options: dict[str, Any] = {"events_to": receiver.url, "concatenation_unfinished": True}
        if redis is not None:
            options |= {"redis_url": redis.url, "lock_ttl": "2s"}
        uploads = folder / "uploads"
        earlier = stack.enter_context(EarlierServer(tree, uploads, **options))
        today = stack.enter_context(ServerProcess(uploads, **options, **token_files(folder), quota_bytes=QUOTA))
        yield Two(earlier, today, redis, receiver)
    for server in (earlier, today):
        assert "Traceback" not in "".join(server.log), "".join(server.log)


def send(
    server: ServerProcess, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", token: str = ADMIN
) -> Answer:
    """Make a request with a token, for which the earlier server does not look."""
    return request(server.port, method, path, {**TUS, **bearer(token), **headers}, body)


def create(server: ServerProcess, length: int | None, body: bytes = b"", token: str = ADMIN, **headers: str) -> str:
    given = creation_headers(length, body) | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = send(server, "POST", "/files", given, body, token)
    assert answer.status == 201, answer
    return path_of(answer)


def append(server: ServerProcess, path: str, offset: int, body: bytes, token: str = ADMIN, **headers: str) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return send(server, "PATCH", path, patch_headers(offset, given), body, token)


def offset_of(server: ServerProcess, path: str) -> int:
    answer = send(server, "HEAD", path, {})
    assert answer.status == 200, answer
    return answer.offset


def assert_content(two: Two, path: str, expected: bytes) -> None:
    for server in (two.earlier, two.today):
        answer = send(server, "GET", path, {})
        assert (answer.status, answer.body) == (200, expected)


orders = pytest.mark.parametrize("order", ["earlier first", "today first"])


@orders
@pytest.mark.parametrize("kind", ["known", "deferred", "checksum", "small"])
def test_upload_goes_on_at_the_other_version(two: Two, order: str, kind: str) -> None:
    first, second = two.in_order(order)
    data = DATA[:100] if kind == "small" else DATA
    half = len(data) // 2
    path = create(first, None if kind == "deferred" else len(data), data[:10])
    middle = checksum(data[10:half])["Upload-Checksum"] if kind == "checksum" else None
    answer = append(second, path, 10, data[10:half], **({"Upload_Checksum": middle} if middle else {}))
    assert (answer.status, answer.offset) == (204, half)
    assert offset_of(first, path) == offset_of(second, path) == half
    assert append(first, path, 0, b"again").status == 409
    length = {"Upload_Length": str(len(data))} if kind == "deferred" else {}
    assert append(first, path, half, data[half:], **length).offset == len(data)
    assert_content(two, path, data)


@orders
def test_final_upload_is_made_of_parts_of_both(two: Two, order: str) -> None:
    first, second = two.in_order(order)
    parts = [create(server, 10, DATA[:4], Upload_Concat="partial") for server in (first, second)]
    final = {"Upload-Concat": f"final;{' '.join(parts)}"}
    waiting = path_of(send(first, "POST", "/files", final))
    for server, part in zip((second, first), parts, strict=True):
        assert append(server, part, 4, DATA[4:10]).status == 204
    wait_until(lambda: send(second, "HEAD", waiting, {}).headers.get("upload-offset") == "20", "it is made")
    assert_content(two, waiting, DATA[:10] * 2)
    assert path_of(send(second, "POST", "/files", final)) == waiting


@orders
def test_upload_is_removed_at_the_other_version(two: Two, order: str) -> None:
    first, second = two.in_order(order)
    path = create(first, 10, DATA[:4])
    assert send(second, "DELETE", path, {}).status == 204
    for server in (first, second):
        assert send(server, "HEAD", path, {}).status == 404
        assert append(server, path, 4, DATA[4:10]).status == 404
    assert not (two.today.upload_dir / id_of(path)).exists()


@orders
def test_running_request_hands_its_bytes_over_to_the_other_version(two: Two, order: str) -> None:
    first, second = two.in_order(order)
    path, sent = create(first, len(DATA)), len(DATA) // 3
    with Connection(first.port) as connection:
        headers = TUS | bearer(ADMIN) | patch_headers(0) | {"Content-Length": str(len(DATA))}
        connection.send_head("PATCH", path, headers)
        connection.send(DATA[:sent])
        connection.wait_until_read()
        wait_until(lambda: offset_of(second, path) == sent, "the running request commits its bytes")
        answer = append(second, path, sent, DATA[sent:])
        assert (answer.status, answer.offset) == (204, len(DATA))
        interrupted = connection.answer_or_closed()
        assert interrupted is None or interrupted.status >= 400
    assert_content(two, path, DATA)


@orders
def test_upload_goes_on_after_the_other_version_was_killed(two: Two, order: str) -> None:
    first, second = two.in_order(order)
    path = create(first, len(DATA), DATA[:1000])
    with Connection(first.port) as connection:
        headers = TUS | bearer(ADMIN) | patch_headers(1000) | {"Content-Length": str(len(DATA) - 1000)}
        connection.send_head("PATCH", path, headers)
        connection.send(DATA[1000:50_000])
        connection.wait_until_read()
        first.kill()
    try:
        wait_until(lambda: send(second, "HEAD", path, {}).status == 200, "the lock of the dead server ends")
        offset = offset_of(second, path)
        assert 1000 <= offset <= 50_000
        wait_until(
            lambda: append(second, path, offset_of(second, path), DATA[offset_of(second, path) :]).status == 204,
            "the upload goes on",
        )
    finally:
        first.start_again()
    assert_content(two, path, DATA)


# Owners, conditions, quotas and events, of which the earlier version knows little or nothing.


def test_earlier_version_changes_neither_owner_nor_conditions(two: Two) -> None:
    good, evil = DATA[:100], DATA[:99] + b"!"
    digest = checksum(good, "sha256")["Upload-Checksum"].partition(" ")[2]
    for data, status in ((good, 204), (evil, 460)):
        path = create(two.today, 100, data[:10], OWNER, Repr_Digest=f"sha-256=:{digest}:")
        assert append(two.earlier, path, 10, data[10:50]).status == 204
        assert send(two.today, "HEAD", path, {}, token=OTHER).status == 404
        assert append(two.today, path, 50, data[50:], OTHER).status == 404
        assert append(two.today, path, 50, data[50:], OWNER).status == status
    assert send(two.today, "HEAD", path, {}, token=OWNER).status == 404


def test_uploads_of_the_earlier_version_are_for_administrators(two: Two) -> None:
    path = create(two.earlier, 10, DATA[:4])
    for method in ("HEAD", "GET", "DELETE"):
        assert send(two.today, method, path, {}, token=OWNER).status == 404
    assert append(two.today, path, 4, DATA[4:10], OWNER).status == 404
    assert append(two.today, path, 4, DATA[4:10]).status == 204


def test_usage_is_exact_while_both_versions_change_uploads(two: Two) -> None:
    """In Redis it is so once the usage has been counted anew, since the earlier version does not count there."""
    token = jwt_of("owner of these alone")
    kept = create(two.today, 1000, token=token)
    growing = create(two.today, None, DATA[:10], token)
    removed = create(two.today, 5000, token=token)
    assert append(two.earlier, growing, 10, DATA[10:500]).status == 204
    assert send(two.earlier, "DELETE", removed, {}).status == 204
    if two.redis is not None:
        two.redis.command("DEL", "tus:usage")
    used = 1500
    answer = send(two.today, "POST", "/files", creation_headers(QUOTA - used + 1), token=token)
    assert answer.status == 413, answer
    whole = create(two.today, QUOTA - used, token=token)
    for path in (kept, growing, whole):
        assert send(two.today, "DELETE", path, {}, token=token).status == 204
    create(two.today, QUOTA, token=token)


def test_events_of_both_versions_arrive(two: Two) -> None:
    """With SQLite the earlier version does not deliver those of this one, which arrive once it has ended."""
    paths = []
    for creator, finisher in ((two.earlier, two.today), (two.today, two.earlier)):
        path = create(creator, 100, DATA[:10])
        assert append(finisher, path, 10, DATA[10:100]).status == 204
        assert send(creator, "DELETE", path, {}).status == 204
        paths.append(path)

    def told_of(path: str) -> dict[int, str]:
        events = [event for event in two.receiver.received() if event["subject"] == id_of(path)]
        return {int(event["sequence"]): event["type"].rpartition(".")[2] for event in events}

    two.earlier.terminate()
    try:
        expected = {1: "created", 2: "finished", 3: "terminated"}
        wait_until(lambda: all(told_of(path) == expected for path in paths), "all events arrive", 60)
    finally:
        two.earlier.start_again()
