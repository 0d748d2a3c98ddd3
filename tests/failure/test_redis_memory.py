"""Redis without memory: what makes room must work, everything else is refused cleanly, and the room is used again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess
from tests.support.hosts import assert_no_bugs, files_of
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tests.support.wire.messages import Answer, creation_headers
from tests.support.wire.requests import create, head, offset_of, patch, request, stalled_patch

METADATA = "filename " + "YWFh" * 4000  # about the longest that is taken
DATA = b"0123456789" * 100


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_policy="noeviction") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path, redis: RedisServer) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "uploads", redis_url=redis.url, sweep_interval="1s", lock_ttl="2s") as server:
        yield server
    assert_no_bugs([server])


def used(redis: RedisServer) -> int:
    return int(redis.command("INFO", "memory")["used_memory"])


def limit(redis: RedisServer, size: int) -> None:
    redis.command("CONFIG", "SET", "maxmemory", size)


def fill(redis: RedisServer) -> None:
    """Use far more memory than is allowed, so that the bytes that a few uploads free make no room."""
    limit(redis, 1 << 20)


def post(server: ServerProcess, length: int = 1000, metadata: str = METADATA) -> Answer:
    return request(server.port, "POST", "/files", creation_headers(length) | {"Upload-Metadata": metadata})


def assert_refused(answer: Answer) -> None:
    assert answer.status == 507, answer
    assert answer.headers["retry-after"]
    assert answer.headers["tus-resumable"] == "1.0.0"


def test_delete_with_redis_full_removes_the_upload_and_its_files(server: ServerProcess, redis: RedisServer) -> None:
    path = create(server.port, len(DATA), body=DATA[:500])
    fill(redis)
    assert request(server.port, "DELETE", path).status == 204
    assert files_of(server, path) == []
    limit(redis, 0)
    assert request(server.port, "HEAD", path).status == 404


def test_delete_with_redis_full_ends_a_running_patch(server: ServerProcess, redis: RedisServer) -> None:
    path = create(server.port, len(DATA))
    with stalled_patch(server.port, path, DATA, 500):
        fill(redis)
        assert request(server.port, "DELETE", path).status == 204
    assert files_of(server, path) == []


def test_post_and_patch_with_redis_full_are_refused_and_the_offset_stays(
    server: ServerProcess, redis: RedisServer
) -> None:
    path = create(server.port, len(DATA), body=DATA[:500])
    fill(redis)
    assert_refused(post(server))
    assert_refused(patch(server.port, path, 500, DATA[500:]))
    answer = head(server.port, path)
    assert (answer.status, answer.offset) == (200, 500)
    limit(redis, 0)
    assert patch(server.port, path, 500, DATA[500:]).offset == len(DATA)


def test_head_with_redis_full_beside_a_running_patch_tells_the_offset(
    server: ServerProcess, redis: RedisServer
) -> None:
    path = create(server.port, len(DATA), body=DATA[:100])
    with stalled_patch(server.port, path, DATA[100:], 500):
        fill(redis)
        assert head(server.port, path).status in (200, 423)
    limit(redis, 0)
    offset = offset_of(server.port, path)
    assert offset >= 100
    assert patch(server.port, path, offset, DATA[offset:]).offset == len(DATA)


def test_expiry_with_redis_full_removes_uploads(tmp_path: Path, redis: RedisServer) -> None:
    options: dict[str, Any] = {"redis_url": redis.url, "sweep_interval": "1s", "expires_after": "3s"}
    with ServerProcess(tmp_path / "uploads", **options) as server:
        path = create(server.port, len(DATA), body=DATA[:500])
        fill(redis)
        assert files_of(server, path)
        wait_until(lambda: files_of(server, path) == [], "the sweeper removes the expired upload")
        wait_until(lambda: redis.command("KEYS", "tus:{*") == [], "nothing of it is left in Redis")


def test_room_that_uploads_give_back_is_used_again(server: ServerProcess, redis: RedisServer) -> None:
    post(server)
    limit(redis, used(redis) + (1 << 20))
    created: list[str] = []
    while (answer := post(server)).status == 201:
        created.append(answer.headers["location"].removeprefix(server.origin))
    assert_refused(answer)
    assert len(created) > 10
    for path in created:
        assert request(server.port, "DELETE", path).status == 204
    assert post(server).status == 201


def test_sweep_after_the_index_was_lost_removes_what_has_expired(tmp_path: Path, redis: RedisServer) -> None:
    options: dict[str, Any] = {"redis_url": redis.url, "sweep_interval": "1s", "expires_after": "3s"}
    with ServerProcess(tmp_path / "uploads", **options) as server:
        path = create(server.port, len(DATA), body=DATA[:500])
        redis.command("DEL", "tus:due")
        wait_until(lambda: files_of(server, path) == [], "the sweeper removes the expired upload")


def test_sweep_after_the_index_was_lost_with_redis_full_removes_what_has_expired(
    tmp_path: Path, redis: RedisServer
) -> None:
    options: dict[str, Any] = {"redis_url": redis.url, "sweep_interval": "1s", "expires_after": "3s"}
    with ServerProcess(tmp_path / "uploads", **options) as server:
        path = create(server.port, len(DATA), body=DATA[:500])
        fill(redis)
        redis.command("DEL", "tus:due", "tus:ids")
        wait_until(lambda: files_of(server, path) == [], "the sweeper removes the expired upload")


def test_a_server_whose_redis_evicts_records_says_so_and_ends(tmp_path: Path) -> None:
    with (
        RedisServer(maxmemory="64mb", maxmemory_policy="allkeys-lru") as redis,
        pytest.raises(RuntimeError, match="noeviction") as caught,
    ):
        ServerProcess(tmp_path / "uploads", redis_url=redis.url).start()
    assert "Traceback" not in str(caught.value)
