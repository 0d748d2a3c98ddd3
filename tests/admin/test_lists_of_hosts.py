"""Lists of uploads on several hosts with one Redis: every host lists those of all, and takes the cursors of all."""

from __future__ import annotations

import itertools
import secrets
from pathlib import Path

import pytest

from tests.admin.calls import get, ids_of, token_file
from tests.support.hosts import several_hosts
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.requests import create, request, stalled_patch


@pytest.mark.parametrize("order", ["-created_at", "created_at", "id", "-length", "offset"])
def test_pages_from_alternating_hosts_hold_every_upload_once_while_others_come_and_go(
    tmp_path: Path, order: str
) -> None:
    options = {"admin_token_file": token_file(tmp_path), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with several_hosts(tmp_path, shared_redis_url(), 2, **options) as hosts:
        ports = [host.port for host in hosts]
        for port in ports:  # the list of each host holds the uploads of the other before its own
            get(port, "uploads")
        paths = [create(ports[number % 2], 10 + number % 3) for number in range(12)]
        for number in (3, 4):
            assert request(ports[number % 2], "DELETE", paths[number], {"Tus-Resumable": "1.0.0"}).status == 204
        staying = {ids_of(path) for number, path in enumerate(paths) if number not in (3, 4, 7, 8)}
        found, cursor, others = list[str](), None, iter((7, 8))
        for port in itertools.cycle(ports):
            page = get(port, "uploads", order=order, limit=3, **({} if cursor is None else {"after": cursor}))
            found += [one["id"] for one in page["uploads"]]
            cursor = page["next"]
            if cursor is None:
                break
            create(port, 5)
            for number in itertools.islice(others, 1):
                assert request(port, "DELETE", paths[number], {"Tus-Resumable": "1.0.0"}).status == 204
        assert len(found) == len(set(found))
        assert staying <= set(found)
        assert not {ids_of(paths[number]) for number in (3, 4)} & set(found)
        counts = [get(port, "stats")["total"]["count"] for port in ports]
        assert counts[0] == counts[1]


def test_upload_that_one_host_receives_is_locked_in_the_list_of_the_other(tmp_path: Path) -> None:
    options = {"admin_token_file": token_file(tmp_path), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with several_hosts(tmp_path, shared_redis_url(), 2, **options) as hosts:
        path = create(hosts[0].port, 100)
        with stalled_patch(hosts[0].port, path, b"x" * 100, 50):
            assert [one["locked"] for one in get(hosts[1].port, "uploads")["uploads"]] == [True]
        wait_until(lambda: [one["locked"] for one in get(hosts[1].port, "uploads")["uploads"]] == [False])
