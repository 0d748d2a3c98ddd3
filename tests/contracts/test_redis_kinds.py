"""Every kind of Redis: one server, cluster, sentinels, encrypted, with few rights."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import TIMEOUT
from tests.support.redis_hosts import LONG, UPLOAD, Host, ask_for_commit, ask_for_release, exercise
from tests.support.redis_server import RedisNodes, RedisSentinels, RedisServer, is_system_wanted
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.history import HistoryEntry
from tusd_py.core.listing import UploadFilter
from tusd_py.core.queries import UploadQuery
from tusd_py.core.upload import Status


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_one_server(redis: RedisServer, prefix: str, scheme: str) -> None:
    async with Host(redis.url.replace("redis://", f"{scheme}://"), prefix) as host:
        await exercise(host)


async def test_a_database_other_than_the_first(redis: RedisServer, prefix: str) -> None:
    async with Host(redis.url_for("", "", database=3), prefix) as host:
        await exercise(host)
        await host.state.create(UPLOAD)
    assert "db3" in redis.command("INFO", "keyspace")
    assert "db0" not in redis.command("INFO", "keyspace")


async def test_a_unix_socket(tmp_path_factory: pytest.TempPathFactory, prefix: str) -> None:
    socket = tmp_path_factory.mktemp("s") / "redis"  # such a path must be short
    with RedisServer(unixsocket=socket):
        async with Host(f"unix://{socket}", prefix) as host:
            await exercise(host)


MINIMAL = "+@read +@write +@scripting +@pubsub +@connection +time"


@pytest.mark.parametrize("rights", [f"{MINIMAL} +info", MINIMAL], ids=["with info", "without info"])
async def test_a_user_with_the_fewest_rights(rights: str) -> None:
    user = f"uploads on >secret ~tus:* &tus:* -@all {rights}"
    with RedisServer(password="another", users=[user]) as redis:
        async with Host(redis.url_for("uploads", "secret"), "tus:") as host:
            await exercise(host)


async def test_an_encrypted_connection(prefix: str) -> None:
    if not is_system_wanted():
        pytest.skip("the packaged server has no TLS; it takes TEST_REDIS=system")
    with RedisServer(tls=True) as redis:
        async with Host(redis.url, prefix) as host:
            await exercise(host)


async def test_a_cluster(tmp_path: Path, prefix: str) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with Host(nodes.url, prefix) as host:
            await exercise(host)
            await host.state.create(replace(UPLOAD, status=Status.FINISHING))
        assert sum(server.command("DBSIZE") > 0 for server in nodes.servers) >= 1


async def ask_as_administrator(host: Host) -> None:
    """Ask about records of every age: from before the indexes, from after, changed, removed."""
    earlier, later, gone = (replace(UPLOAD, id=name, owner="ann") for name in ("earlier", "later", "gone"))
    await host.state.create(earlier)
    await host.state.prepare_queries()
    await host.state.create(later)
    await host.state.create(gone)
    await host.state.delete("gone", 1 << 60)
    await host.state.add_history("later", HistoryEntry("interrupted", 1.0))
    stored = await host.state.update(later, replace(later, status=Status.COMPLETE), 1)
    for order in ("created_at", "offset"):
        for condition in (UploadFilter(), UploadFilter(owner="ann")):
            found = (await host.state.find(UploadQuery(condition, order))).uploads
            assert {upload.id for upload in found} == {"earlier", "later"}
        active = await host.state.find(UploadQuery(UploadFilter(status=UPLOAD.status), order))
        assert [upload.id for upload in active.uploads] == ["earlier"]
    assert sum(share.count for share in (await host.state.totals()).by_status.values()) == 2
    assert [entry.event for entry in await host.state.history("later")] == ["interrupted"]
    await host.state.delete("later", stored.token)
    assert await host.state.history("later") == []
    await host.state.repair_index(0)


async def test_administrators_of_a_cluster_are_answered(tmp_path: Path, prefix: str) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with Host(nodes.url, prefix) as host:
            await ask_as_administrator(host)


async def test_administrators_are_answered_with_the_fewest_rights() -> None:
    user = f"uploads on >secret ~tus:* &tus:* -@all {MINIMAL}"
    with RedisServer(password="another", users=[user]) as redis:
        async with Host(redis.url_for("uploads", "secret"), "tus:") as host:
            await ask_as_administrator(host)


async def test_the_other_hosts_of_a_cluster_are_heard(tmp_path: Path, prefix: str) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with Host(nodes.url, prefix, LONG) as one, Host(nodes.url, prefix, LONG) as other:
            await ask_for_release(one, other)
            await ask_for_commit(one, other)


async def test_uploads_go_on_after_a_failover_by_sentinels(tmp_path: Path, prefix: str) -> None:
    with RedisSentinels(tmp_path / "sentinels") as group:
        async with Host(group.url, prefix) as host:
            await exercise(host)
            await host.state.create(UPLOAD)
            group.first.command("WAIT", 1, 5000)
            assert group.replica.command("EXISTS", *group.replica.command("KEYS", "*record"))
            group.first.kill()
            async with asyncio.timeout(TIMEOUT):
                while True:
                    with contextlib.suppress(StateUnavailable):
                        assert await host.state.get(UPLOAD.id) == UPLOAD
                        await host.state.update(UPLOAD, UPLOAD.at(10), 1)
                        break
                    await asyncio.sleep(0.1)
            await ask_for_release(host, host)
