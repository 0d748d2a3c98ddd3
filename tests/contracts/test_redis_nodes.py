"""Redis on several nodes, of which some hang, die or come back; and the rights that a user needs."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from tests.contracts.parts import TIMEOUT
from tests.support.harness import ROOT
from tests.support.redis_hosts import (
    LONG,
    UPLOAD,
    Holder,
    Host,
    ask_for_commit,
    ask_for_release,
    exercise,
    subscribers,
)
from tests.support.redis_server import RedisNodes, RedisSentinels, RedisServer, free_port
from tests.support.timing import wait_until
from tusd_py.core.errors import LockTimeout, StateUnavailable

pytestmark = pytest.mark.long
IDS = [f"upload-{number}" for number in range(30)]  # in slots of all nodes
MANY = 8  # calls for each of them, more at once than there are connections
BEFORE_RENEWAL = LONG / 4  # seconds in which a wish is heard of by a message only
NODE_TIMEOUT = 1000  # milliseconds after which a replica takes the place of a node


async def goes_on(host: Host, *upload_ids: str) -> None:
    """Assert that records can be read and locks acquired, at once or soon."""
    for upload_id in upload_ids:
        async with asyncio.timeout(TIMEOUT):
            while True:
                with contextlib.suppress(StateUnavailable, LockTimeout):
                    await host.state.get(upload_id)
                    lock = await host.locker.acquire(upload_id, Holder(), 5)
                    await lock.release()
                    break
                await asyncio.sleep(0.1)


async def create_all(host: Host) -> None:
    for upload_id in IDS:
        await host.state.create(replace(UPLOAD, id=upload_id))


async def replica_takes_over(group: RedisSentinels | NodesWithReplica) -> None:
    def is_master() -> bool:
        with contextlib.suppress(RedisError):  # at that moment its connections are cut
            return bool(group.replica.command("ROLE")[0] == "master")
        return False

    await asyncio.to_thread(group.wait_until, is_master, "the replica is a master")


# Sentinels.


async def test_a_sentinel_that_hangs_is_passed_over(tmp_path: Path, prefix: str) -> None:
    """By who starts, and by who looks for the new master: the host of both may have lost its power."""
    with RedisSentinels(tmp_path / "sentinels") as group:
        async with Host(group.url, prefix) as earlier:
            await earlier.state.create(UPLOAD)
            group.first.command("WAIT", 1, 5000)
            group.sentinels[0].pause()
            async with Host(group.url, prefix) as later:
                await goes_on(later, UPLOAD.id)
                group.first.pause()
                await replica_takes_over(group)
                for host in (earlier, later):
                    await goes_on(host, UPLOAD.id)


async def test_messages_come_from_the_new_master_after_the_old_one_hung(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tusd_py.backends.redis.lock_channel.LISTEN_TIMEOUT", 1.0)
    with RedisSentinels(tmp_path / "sentinels") as group:
        async with Host(group.url, prefix, LONG) as one, Host(group.url, prefix, LONG) as other:
            await one.state.create(UPLOAD)
            group.first.command("WAIT", 1, 5000)
            group.first.pause()
            await replica_takes_over(group)
            for host in (one, other):
                await goes_on(host, UPLOAD.id)
            await asyncio.to_thread(wait_until, lambda: subscribers(group.replica, prefix) == 2, "both listen again")
            await ask_for_release(one, other)
            await ask_for_commit(one, other)


# Clusters.


@pytest.mark.parametrize(
    ("leave", "come_back"),
    [(RedisServer.pause, RedisServer.resume), (RedisServer.kill, RedisServer.start)],
    ids=["hanging", "restarted"],
)
async def test_nodes_that_were_away_are_used_again(
    tmp_path: Path, prefix: str, leave: Callable[[RedisServer], None], come_back: Callable[[RedisServer], object]
) -> None:
    with RedisNodes(tmp_path / "nodes") as nodes:
        async with Host(nodes.url, prefix, LONG) as host, Host(nodes.url, prefix, LONG) as other:
            await create_all(host)
            for server in nodes.servers:
                leave(server)
                await asyncio.gather(*(host.state.get(name) for name in IDS * MANY), return_exceptions=True)
                await asyncio.to_thread(come_back, server)
                await asyncio.to_thread(nodes.wait_until, nodes.is_whole, "every node knows the whole cluster")
                await goes_on(host, *IDS)
            await goes_on(other, *IDS)
            async with asyncio.timeout(BEFORE_RENEWAL):
                await ask_for_release(host, other)


class NodesWithReplica(RedisNodes):
    """A cluster whose first node has a replica."""

    def start_servers(self) -> None:
        super().start_servers()
        for server in self.servers:
            server.command("CONFIG", "SET", "cluster-node-timeout", NODE_TIMEOUT)
        self.first, masters = self.servers[0], list(self.servers)
        self.replica = self.add(
            "replica",
            cluster_enabled="yes",
            cluster_port=free_port(),
            cluster_config_file="nodes.conf",
            cluster_node_timeout=NODE_TIMEOUT,
            cluster_replica_validity_factor=0,
        )
        self.replica.command("CLUSTER", "MEET", "127.0.0.1", self.first.port, self.first.directives["cluster_port"])
        self.wait_until(self._replicates, "the replica knows whose it is")
        self.wait_until(lambda: self.replica.command("ROLE")[3] == "connected", "the replica has all of it")
        self.wait_until(lambda: all(map(self._knows_replica, masters)), "every node knows the replica")

    def _replicates(self) -> bool:
        with contextlib.suppress(ResponseError):  # it does not know the node yet
            return bool(self.replica.command("CLUSTER", "REPLICATE", self.first.command("CLUSTER", "MYID")))
        return False

    def _knows_replica(self, server: RedisServer) -> bool:
        return f"127.0.0.1:{self.replica.port}" in str(server.command("CLUSTER", "NODES"))


@pytest.mark.parametrize("fail", [RedisServer.kill, RedisServer.pause], ids=["killed", "hanging"])
async def test_the_replica_of_a_node_is_used_after_its_failure(
    tmp_path: Path, prefix: str, fail: Callable[[RedisServer], None]
) -> None:
    """By who used the node, and by who starts with the URL of a node that is not there any more."""
    with NodesWithReplica(tmp_path / "nodes") as nodes:
        url = nodes.url
        async with Host(url, prefix) as earlier:
            await create_all(earlier)
            nodes.first.command("WAIT", 1, 5000)
            fail(nodes.first)
            await replica_takes_over(nodes)
            await goes_on(earlier, *IDS)
            async with Host(url, prefix) as later:
                await goes_on(later, *IDS)


# The rights of a user as docs/redis.md tells them.


def documented_rights() -> tuple[str, str]:
    """Return the rights that docs/redis.md names, for one server or a cluster."""
    text = (ROOT / "docs" / "redis.md").read_text()
    ((one, more),) = re.findall(r"`(~tus:\*[^`]*)`.*?`(\+cluster[^`]*)`", text, re.DOTALL)
    return one, more


class NodesWithUser(RedisNodes):
    """A cluster that knows a user with these rights."""

    def __init__(self, folder: Path, rights: str) -> None:
        super().__init__(folder)
        self._user = f"uploads on >secret -@all {rights}"

    def add(self, name: str, **options: Any) -> RedisServer:
        return super().add(name, users=[self._user], **options)

    @property
    def url(self) -> str:
        return super().url.replace("://", "://uploads:secret@")


async def test_the_documented_rights_suffice_for_one_server() -> None:
    one, _ = documented_rights()
    with RedisServer(users=[f"uploads on >secret -@all {one}"]) as server:
        async with Host(server.url_for("uploads", "secret"), "tus:") as host:
            await exercise(host)


async def test_the_documented_rights_suffice_for_a_cluster(tmp_path: Path) -> None:
    with NodesWithUser(tmp_path / "nodes", " ".join(documented_rights())) as nodes:
        async with Host(nodes.url, "tus:") as host:
            await exercise(host)
