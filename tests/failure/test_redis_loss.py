"""A Redis that forgets everything or goes back in time: no finished upload is lost, and no byte of it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.support.hosts import (
    RECOVERY,
    assert_ended,
    files_of,
    several_hosts,
    taken_over,
    wait_until_ready,
)
from tests.support.redis_server import RedisServer
from tests.support.timing import wait_until
from tests.support.wire.messages import KIBI, MEBI, path_of, payload
from tests.support.wire.requests import (
    assert_content,
    complete,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)

# Two clients that send different bytes show in the file who wrote what.
OLD, NEW = payload(6 * MEBI, 1), payload(6 * MEBI, 2)


@contextlib.contextmanager
def forgetful_redis() -> Iterator[RedisServer]:
    """Run a Redis that stores nothing by itself."""
    with RedisServer() as server:
        yield server


def test_finished_uploads_outlive_the_loss_of_everything_in_redis(tmp_path: Path) -> None:
    data = payload(2 * MEBI)
    metadata = {"Upload-Metadata": "filename YS50eHQ=,flag"}
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url) as hosts:
        finished = create(hosts[0].port, len(data), metadata)
        assert patch(hosts[1].port, finished, 0, data[:MEBI]).status == 204
        assert patch(hosts[2].port, finished, MEBI, data[MEBI:]).status == 204
        at_once = create(hosts[0].port, len(data), body=data)
        partials = [create(server.port, MEBI, {"Upload-Concat": "partial"}, data[:MEBI]) for server in hosts]
        final = path_of(request(hosts[0].port, "POST", "/files", {"Upload-Concat": "final;" + " ".join(partials)}))
        deleted = create(hosts[1].port, len(data), body=data)
        assert request(hosts[2].port, "DELETE", deleted).status == 204
        etag = request(hosts[0].port, "GET", finished, {"Range": "bytes=0-0"}).headers["etag"]

        redis.restart(kill=True, keep=False)
        wait_until_ready(hosts)
        for server in hosts:
            assert_content(server.port, at_once, data)
            assert_content(server.port, finished, data)
            assert_content(server.port, final, data[:MEBI] * 3)
            answer = head(server.port, finished)
            assert (answer.status, answer.offset, answer.headers["upload-length"]) == (200, len(data), str(len(data)))
            assert answer.headers["upload-metadata"] == metadata["Upload-Metadata"]
            assert request(server.port, "GET", finished, {"Range": "bytes=0-0"}).headers["etag"] == etag
            assert head(server.port, deleted).status == 404
            assert request(server.port, "GET", deleted).status == 404
        for server in hosts:
            assert patch(server.port, finished, 0, bytes(len(data))).status in (403, 404, 409)
            assert_content(server.port, finished, data)
        assert request(hosts[1].port, "DELETE", finished).status == 204
        redis.restart(kill=True, keep=False)
        wait_until_ready(hosts)
        for server in hosts:
            assert head(server.port, finished).status == 404


def test_a_finished_upload_is_never_written_to_after_its_record_was_lost(tmp_path: Path) -> None:
    """The first request after the loss is a HEAD, a PATCH, or a DELETE and a creation of other bytes."""
    data = payload(MEBI)
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(data), body=data)
        (file,) = files_of(first, path)
        before = file.stat()
        redis.restart(kill=True, keep=False)
        wait_until_ready([first, second])
        for offset in (0, 1000):
            answer = patch(second.port, path, offset, bytes(len(data) - offset))
            assert answer.status in (404, 409), answer
        assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
        assert_content(second.port, path, data)


def test_an_unfinished_upload_is_unknown_after_the_loss_of_everything_in_redis(tmp_path: Path) -> None:
    data = payload(2 * MEBI)
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(data), body=data[:MEBI])
        running = create(first.port, len(data))
        with stalled_patch(first.port, running, data, MEBI) as connection:
            assert offset_of(second.port, running) == MEBI
            redis.restart(kill=True, keep=False)
            wait_until_ready([first, second])
            for server in (first, second):
                for lost in (path, running):
                    answer = head(server.port, lost)
                    assert answer.status == 404 or (answer.status == 200 and answer.offset <= MEBI), answer
            with suppress(OSError):
                connection.send(data[MEBI:])
            ended = connection.answer_or_closed()
            assert ended is None or ended.status in (404, 409, 423, 503), ended
        if head(first.port, running).status == 200:  # it had everything, and said so in its note
            assert_content(second.port, running, data)
        else:
            assert request(second.port, "GET", running).status == 404
        complete(second.port, create(first.port, len(data)), data)


def test_redis_that_went_back_in_time_takes_no_byte_away(tmp_path: Path) -> None:
    """Redis is restarted with an older copy of its data, as after a failover to a replica that lagged behind."""
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url) as hosts:
        first, second, third = hosts
        growing = create(first.port, len(OLD), body=OLD[:MEBI])
        taken = create(first.port, len(OLD), body=OLD[:MEBI])
        finished = create(second.port, len(OLD), body=OLD[:MEBI])
        at_the_end = create(second.port, MEBI)
        terminated = create(third.port, len(OLD), body=OLD[:MEBI])
        redis.save_snapshot(redis.folder / "earlier")

        assert patch(second.port, growing, MEBI, OLD[MEBI : 2 * MEBI]).status == 204
        assert patch(third.port, taken, MEBI, OLD[MEBI : 2 * MEBI]).status == 204
        assert patch(third.port, finished, MEBI, OLD[MEBI:]).offset == len(OLD)
        assert patch(third.port, at_the_end, 0, OLD[:MEBI]).offset == MEBI
        assert request(first.port, "DELETE", terminated).status == 204
        unknown = create(first.port, len(OLD), body=OLD[:MEBI])
        finished_later = create(first.port, MEBI, body=OLD[:MEBI])

        redis.restore_snapshot(redis.folder / "earlier")
        wait_until_ready(hosts)
        offset = offset_of(third.port, growing)
        assert MEBI <= offset <= 2 * MEBI
        complete(third.port, growing, OLD)
        # The client goes on with other bytes from where it is told to, which is what the file has to hold.
        offset = offset_of(third.port, taken)
        assert MEBI <= offset <= 2 * MEBI
        complete(third.port, taken, OLD[:offset] + NEW[offset:])
        refused = patch(second.port, finished, MEBI, NEW[MEBI:])
        assert (refused.status, refused.offset) == (409, len(OLD))
        for server in hosts:
            assert_content(server.port, finished, OLD)
            assert_content(server.port, at_the_end, OLD[:MEBI])
            assert_content(server.port, finished_later, OLD[:MEBI])
            assert offset_of(server.port, finished) == len(OLD)
            assert head(server.port, unknown).status == 404
            assert_content(server.port, taken, OLD[:offset] + NEW[offset:])
        answer = head(first.port, terminated)
        assert answer.status == 404 or (answer.status == 200 and answer.offset <= MEBI)
        assert request(first.port, "GET", terminated).status == 404


def test_a_patch_under_way_when_redis_goes_back_in_time_ends_or_is_right(tmp_path: Path) -> None:
    with forgetful_redis() as redis, several_hosts(tmp_path, redis.url, 2) as (first, second):
        path = create(first.port, len(OLD), body=OLD[: 100 * KIBI])
        redis.save_snapshot(redis.folder / "earlier")
        with start_patch(first.port, path, 100 * KIBI, len(OLD) - 100 * KIBI) as connection:
            connection.send(OLD[100 * KIBI : 2 * MEBI])
            connection.wait_until_read()
            assert offset_of(second.port, path) == 2 * MEBI
            redis.restore_snapshot(redis.folder / "earlier")
            wait_until_ready([first, second])
            answer = head(second.port, path)
            assert answer.status == 423 or 100 * KIBI <= answer.offset <= 2 * MEBI
            with suppress(OSError):
                connection.send(OLD[2 * MEBI :])
            ended = connection.answer_or_closed()
            if ended is not None and ended.status == 204:
                assert ended.offset == len(OLD)
                assert_content(second.port, path, OLD)
                return
            assert_ended(ended)
        wait_until(lambda: head(second.port, path).status == 200, "HEAD answers an offset", RECOVERY)
        offset = offset_of(second.port, path)
        answer = taken_over(second, path, offset, NEW[offset:])
        assert (answer.status, answer.offset) == (204, len(OLD))
        for server in (first, second):
            assert_content(server.port, path, OLD[:offset] + NEW[offset:])
