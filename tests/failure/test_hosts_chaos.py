"""Hosts and Redis that die, freeze and lose each other at random: no acknowledged byte is lost."""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.chaos import Uploader, upload_during
from tests.support.hosts import (
    LEASE,
    RECOVERY,
    Hosts,
    proxied_url,
    seeded_random,
    several_hosts,
    stopped,
)
from tests.support.proxies import FaultyNetwork
from tests.support.redis_server import RedisServer
from tests.support.wire.messages import sha256
from tests.support.wire.requests import (
    content,
)

CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "40"))


class Chaos:
    """A source of faults, one at a time at each place."""

    def __init__(
        self, hosts: Hosts, redis: RedisServer, networks: Sequence[FaultyNetwork], chance: random.Random
    ) -> None:
        self.hosts = hosts
        self.redis = redis
        self.networks = networks
        self.chance = random.Random(chance.random())
        self.count: dict[str, int] = defaultdict(int)
        self.longest = 1.6 * LEASE

    def wreak(self, seconds: float) -> None:
        """Make faults at two places at the same time for a while; then everything runs again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            number = self.chance.randrange(len(self.hosts))
            at_host = [self.kill_host, self.freeze_host, self.cut_host_off]
            at_redis = [self.freeze_redis, self.restart_redis, self.disconnect_redis]
            with ThreadPoolExecutor(2) as executor:
                first = executor.submit(self.chance.choice(at_host), number, self.chance.uniform(0, self.longest))
                time.sleep(self.chance.uniform(0, 1))
                if self.chance.random() < 0.5:
                    self.chance.choice(at_redis)(self.chance.uniform(0, self.longest))
                first.result()
            time.sleep(self.chance.uniform(0, 0.5))

    def kill_host(self, number: int, seconds: float) -> None:
        self.count["hosts killed"] += 1
        server = self.hosts[number]
        server.kill()
        time.sleep(seconds / 4)
        server.start_again()  # more than once while Redis is away too

    def freeze_host(self, number: int, seconds: float) -> None:
        self.count["hosts frozen"] += 1
        with stopped(self.hosts[number]):
            time.sleep(seconds)

    def cut_host_off(self, number: int, seconds: float) -> None:
        self.count["hosts cut off from Redis"] += 1
        network = self.networks[number]
        self.chance.choice([network.stall, network.refuse, network.cut])()
        time.sleep(seconds)
        network.resume()

    def freeze_redis(self, seconds: float) -> None:
        self.count["Redis frozen"] += 1
        self.redis.pause()
        time.sleep(seconds)
        self.redis.resume()

    def restart_redis(self, seconds: float) -> None:
        self.count["Redis killed"] += 1
        self.redis.kill()
        time.sleep(seconds / 2)
        self.redis.start()

    def disconnect_redis(self, seconds: float) -> None:
        self.count["connections to Redis cut"] += 1
        self.redis.disconnect_clients()


@pytest.mark.long
@pytest.mark.timeout(CHAOS_SECONDS + 120)
def test_uploads_survive_whatever_happens_to_hosts_and_redis(tmp_path: Path, redis: RedisServer) -> None:
    chance = seeded_random()
    with ExitStack() as stack:
        networks = [stack.enter_context(FaultyNetwork(redis.port)) for _ in range(3)]
        hosts = stack.enter_context(several_hosts(tmp_path, [proxied_url(network) for network in networks]))
        chaos = Chaos(hosts, redis, networks, chance)
        uploaders = [Uploader([server.port for server in hosts], chance) for _ in range(6)]
        finished = upload_during(chaos.wreak, CHAOS_SECONDS, uploaders, recovery=RECOVERY)
        print(dict(chaos.count))
        time.sleep(LEASE)  # whoever woke up late has done its worst by now
        for number, (path, digest) in enumerate(finished):
            assert sha256(content(hosts[number % 3].port, path)) == digest
        assert sum(chaos.count.values()) >= 4
