"""The list of locks: those of all processes of a host and of all hosts, by whichever of them answers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.admin.calls import get, ids_of, token_file
from tests.support.harness import serving
from tests.support.hosts import several_hosts, stopped
from tests.support.redis_server import shared_redis_url
from tests.support.timing import promptly, wait_until
from tests.support.wire.requests import create, stalled_patch

UPLOADS = 12


def held_ids(answer: dict[str, Any]) -> set[str]:
    return {lock["upload_id"] for lock in answer["locks"]}


def stalled_uploads(stack: ExitStack, ports: Sequence[int], count: int) -> set[str]:
    """Begin uploads that hold their locks until the end of the stack; return their ids."""
    paths = [create(ports[number % len(ports)], 100) for number in range(count)]
    for number, path in enumerate(paths):
        stack.enter_context(stalled_patch(ports[number % len(ports)], path, b"x" * 100, 50))
    return set(map(ids_of, paths))


def test_each_worker_tells_of_the_locks_of_all(tmp_path: Path) -> None:
    with serving(tmp_path, workers=2, admin_token_file=token_file(tmp_path)) as server, ExitStack() as stack:
        ids = stalled_uploads(stack, [server.port], UPLOADS)
        answers = [get(server.port, "locks") for _ in range(UPLOADS)]
        for answer in answers:
            assert held_ids(answer) == ids
            assert (answer["processes"], answer["silent"]) == (2, 0)
            assert len({lock["pid"] for lock in answer["locks"]}) == 2
            since = [lock["since"] for lock in answer["locks"]]
            assert since == sorted(since)
        stack.close()
        wait_until(lambda: get(server.port, "locks")["locks"] == [])


def test_each_host_tells_of_the_locks_of_all(tmp_path: Path) -> None:
    shared = {"redis_prefix": f"{secrets.token_hex(8)}:", "admin_token_file": token_file(tmp_path)}
    with several_hosts(tmp_path, shared_redis_url(), 2, **shared) as hosts, ExitStack() as stack:
        ids = stalled_uploads(stack, [host.port for host in hosts], 4)
        for host in hosts:
            answer = get(host.port, "locks")
            assert held_ids(answer) == ids
            assert (answer["processes"], answer["silent"]) == (2, 0)
            assert {lock["pid"] for lock in answer["locks"]} == {host.pid for host in hosts}


def test_host_that_hangs_is_counted_and_holds_no_answer_up(tmp_path: Path) -> None:
    shared = {"redis_prefix": f"{secrets.token_hex(8)}:", "admin_token_file": token_file(tmp_path), "lock_ttl": "60s"}
    with several_hosts(tmp_path, shared_redis_url(), 2, **shared) as (one, other), ExitStack() as stack:
        ids = stalled_uploads(stack, [one.port], 1)
        with stopped(other), promptly("the answer of the other host"):
            answer = get(one.port, "locks")
        assert held_ids(answer) == ids
        assert (answer["processes"], answer["silent"]) == (1, 1)
