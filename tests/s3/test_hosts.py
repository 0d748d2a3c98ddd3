"""Two hosts with one Redis and one bucket."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import LEASE, Hosts
from tests.support.redis_server import shared_redis_url
from tests.support.s3_uploads import PART, Place, create_partial, serving
from tests.support.timing import promptly, wait_until
from tests.support.wire.messages import MEBI, checksum, path_of, payload
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, stalled_patch


@contextmanager
def two_hosts(folder: Path, place: Place, **options: Any) -> Iterator[Hosts]:
    """Two hosts that share only S3 and Redis."""
    options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(6)}:", "lock_ttl": f"{LEASE}s"}
    with (
        serving(folder / "first", place, **options) as first,
        serving(folder / "second", place, **options) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def hosts(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts"), place) as hosts:
        yield hosts


@pytest.mark.parametrize("size", [1000, 900_001, PART + 1])
def test_every_patch_at_another_host(hosts: Hosts, place: Place, size: int) -> None:
    data = payload(9 * size if size < MEBI else 3 * PART + 7)
    path = create(hosts[0].port, len(data))
    for number, offset in enumerate(range(0, len(data), size)):
        end = min(len(data), offset + size)
        assert patch(hosts[number % 2].port, path, offset, data[offset:end]).offset == end
        assert [offset_of(server.port, path) for server in hosts] == [end, end]
    place.assert_alone(path, data)
    for server in hosts:
        assert_content(server.port, path, data)


def test_a_stalled_patch_is_taken_over_by_another_host(hosts: Hosts, place: Place) -> None:
    data = payload(3 * PART)
    path = create(hosts[0].port, len(data))
    with stalled_patch(hosts[0].port, path, data, PART + 333_333):
        with promptly("HEAD"):
            assert offset_of(hosts[1].port, path) == PART + 333_333
        answer = patch(hosts[1].port, path, PART + 333_333, data[PART + 333_333 :])
        assert (answer.status, answer.offset) == (204, len(data))
    place.assert_alone(path, data)
    assert_content(hosts[0].port, path, data)


def test_a_wrong_checksum_at_one_host_keeps_nothing_at_another(hosts: Hosts, place: Place) -> None:
    data = payload(3 * PART)
    path = create(hosts[0].port, len(data), body=data[: PART + 10])
    assert patch(hosts[1].port, path, PART + 10, data[PART + 10 :], checksum(b"other")).status == 460
    for server in hosts:
        assert offset_of(server.port, path) == PART + 10
    assert patch(hosts[0].port, path, PART + 10, data[PART + 10 :]).offset == len(data)
    place.assert_alone(path, data)


def test_partials_of_two_hosts_are_put_together(hosts: Hosts, place: Place) -> None:
    parts = [payload(size, size) for size in (PART + 1, 100, PART)]
    paths = [create_partial(hosts[number % 2], data) for number, data in enumerate(parts)]
    answers = [
        request(server.port, "POST", "/files", {"Upload-Concat": "final;" + " ".join(paths)}) for server in hosts
    ]
    assert [answer.status for answer in answers] == [201, 201]
    assert len({path_of(answer) for answer in answers}) == 1
    place.assert_alone(path_of(answers[0]), b"".join(parts))


def test_a_termination_at_another_host_leaves_nothing(hosts: Hosts, place: Place) -> None:
    data = payload(2 * PART)
    path = create(hosts[0].port, len(data))
    with stalled_patch(hosts[0].port, path, data, PART + 1000):
        assert offset_of(hosts[1].port, path) == PART + 1000
        assert request(hosts[1].port, "DELETE", path).status == 204
        for server in hosts:
            assert head(server.port, path).status == 404
    wait_until(lambda: not place.traces_of(path), "everything is removed", 5)
