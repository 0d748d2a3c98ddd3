"""The world whose bytes are in S3 and whose records are in Redis: several hosts that share nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from tests.simulation.faults import Fault
from tests.simulation.hosts_oracle import HostsOracle
from tests.simulation.hosts_profiles import S3_HOSTS_PROFILES
from tests.simulation.hosts_world import SETTLE, HostsWorld
from tests.simulation.moments import REQUEST
from tests.simulation.oracle import Expected
from tests.simulation.profiles import Profile
from tests.simulation.s3_world import S3World
from tusd_py.core.upload import UploadPart

KINDS = {
    "kill": 5,
    "pause": 5,
    "shutdown": 3,
    "clock": 1,
    "s3 trouble": 6,
    "s3 away": 1,
    "s3 slow": 3,
    "multiparts expire": 1,
    "clean": 1,
    "redis trouble": 5,
    "redis away": 2,
    "redis silent": 1,
    "redis stall": 2,
    "redis restart": 2,
    "redis failover": 3,
    "redis full": 1,
    "redis clock": 1,
    "partition": 4,
    "redis evicts": 3,
    "redis loses indexes": 1,
}


class S3HostsWorld(S3World, HostsWorld):
    """One run with several hosts, S3 and Redis."""

    kinds: Mapping[str, int] = KINDS
    profiles: Sequence[Profile] = S3_HOSTS_PROFILES

    def _make_oracle(self) -> HostsOracle:
        """Return an oracle that knows that S3 keeps no completion records."""
        oracle = super()._make_oracle()
        oracle.keeps_completion_records = False
        return oracle

    def _moved_into_a_write(self, fault: Fault, rng: Random) -> Fault:
        return replace(fault, moment=REQUEST)

    # The stored bytes.

    def _committed(self, upload_id: str) -> tuple[int, str] | None:
        record = self._record(upload_id)
        return None if record is None else (record.offset, record.storage_state)

    def _parts(self, upload_id: str) -> list[UploadPart]:
        entry = self.redis.store.entries.get(self.keys.parts(upload_id).encode())
        parts = {} if entry is None else entry.value
        return [UploadPart(int(number), *json.loads(parts[number])) for number in sorted(parts, key=int)]

    def _layouts(self) -> list[tuple[str, str]]:
        found = []
        for key in list(self.redis.store.entries):
            if key.endswith(b":record") and (record := self._record(self.keys.upload_id(key.decode()))) is not None:
                found.append((record.id, record.storage_state))
        return found

    def removed(self, upload: Expected) -> None:
        if not self.redis.usual:
            super().removed(upload)

    # The end.

    async def _clean(self) -> None:
        """Remove orphans of any age, once no dead process has a lease and no request is under way."""
        await asyncio.sleep(SETTLE)
        await S3World._clean(self)
        await self._repair_index()
        self._check_indexes()

    def _look_for_remains(self, records: set[str]) -> None:
        S3World._look_for_remains(self, records)
        self._check_leases()
