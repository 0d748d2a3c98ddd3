"""The world of several hosts: machines with clocks of their own, one shared directory, and one Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from tests.simulation.faults import MAX_CHANGES, Fault
from tests.simulation.hosts_oracle import HostsOracle
from tests.simulation.hosts_profiles import HOSTS_PROFILES
from tests.simulation.machine import EPOCH
from tests.simulation.patches import Modules
from tests.simulation.profiles import Profile
from tests.simulation.redis_server import RedisServer
from tests.simulation.redis_store import Entry
from tests.simulation.world import TOP, World
from tusd_py.backends.disk.segment_map import segments
from tusd_py.backends.redis.schema import Keys
from tusd_py.core.upload import Status, Upload
from tusd_py.core.upload_codec import decode_upload
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import OrphanCleaner

KINDS = {
    "kill": 5,
    "power cut": 1,
    "pause": 5,
    "shutdown": 3,
    "stall": 2,
    "hang": 4,
    "sync fails": 1,
    "write fails": 1,
    "full": 1,
    "away": 1,
    "clock": 1,
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
    "clean": 1,
}
URL = "redis://redis.example:6379/0"
SKEWS = (0.0, 0.0, 3.0, -3.0, 4000.0, -4000.0, 100_000.0, -100_000.0)  # seconds that clocks are wrong
SETTLE = 20.0  # seconds after which the leases of dead processes have ended, unless the clock was set back


class HostsWorld(World):
    """One run with several hosts."""

    kinds: Mapping[str, int] = KINDS
    most_faults = 8
    profiles: Sequence[Profile] = HOSTS_PROFILES
    applications = 0.35
    operators = 0.25
    has_files = False  # whose places an application may choose: the directory is shared
    machine_names = ("host-a", "host-b", "host-c")
    process_counts = (2, 2, 3, 4)
    redis_was_set_back = False  # a lease of a dead process ends late, unless somebody wants it

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = (), profile: str = "") -> None:
        self._plan = plan = Random(f"{seed} hosts")
        super().__init__(seed, modules, without, profile)
        self.patience = plan.choice((4.0, 8.0, 25.0))
        self.faults = [self._in_a_write(fault, plan) for fault in self.faults]
        self.keys = Keys("tus:")
        self.redis = RedisServer(self.loop, Random(f"{seed} redis"), self.log, self.count)
        self.redis.store.epoch = EPOCH + plan.choice(SKEWS)
        self.machine.files.sizes_first = False
        self.redis.usual = plan.choice((0.0, 0.0, 0.005, 0.02))
        self.loop.connect = self.redis.connect
        for machine in self.machines:
            machine.clock_error = plan.choice(SKEWS)

    def _own_settings(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "redis_url": URL,
            "lock_ttl": plan.choice((1.5, 3.0)),
            "expires_after": plan.choice((0, 600, 600)),
        }

    def _make_oracle(self) -> HostsOracle:
        self.hosts_oracle = HostsOracle(self.settings["durability"], self._stored, self.complain)
        return self.hosts_oracle

    @property
    def keeps_every_record(self) -> bool:
        """Whether no record or entry of an index was lost; a finished upload outlives its record."""
        return not (self.hosts_oracle.last_redis_loss or self.counts.get("redis loses indexes"))

    # Faults.

    def _in_a_write(self, fault: Fault, rng: Random) -> Fault:
        """Have a fault that cuts a holder off from its lease happen in a write, most times."""
        if fault.kind not in ("pause", "partition", "redis failover") or fault.waits or rng.random() < 0.3:
            return fault
        return self._moved_into_a_write(fault, rng)

    def _moved_into_a_write(self, fault: Fault, rng: Random) -> Fault:
        return replace(fault, changes=rng.randrange(1, MAX_CHANGES + 1))

    def _apply(self, fault: Fault) -> None:
        host = self.hosts[fault.target % len(self.hosts)]
        if fault.kind == "partition":
            self.redis.partitioned_until[host.machine.name] = self.loop.now + fault.seconds
        elif fault.kind == "clean":
            self._clean_now(host)
        elif fault.kind.startswith("redis "):
            self._apply_to_redis(fault, self.redis)
        else:
            super()._apply(fault)

    def _apply_to_redis(self, fault: Fault, redis: RedisServer) -> None:
        end = self.loop.now + fault.seconds
        match fault.kind.removeprefix("redis "):
            case "trouble":
                redis.troubled_until = max(redis.troubled_until, end + fault.seconds * 3)
                redis.intensity = 0.02 + fault.amount * 0.3
            case "away":
                redis.restart(fault.seconds, 0.0)
            case "silent":
                redis.silent_until = max(redis.silent_until, end)
            case "stall":
                redis.stalled_until = max(redis.stalled_until, end)
            case "restart":
                self._restart_redis(redis, fault.seconds, min(1.0, fault.amount * 1.5))
            case "failover":
                self._set_clock(redis, (fault.amount - 0.5) * 10 ** (fault.seconds % 4))
                self._restart_redis(redis, fault.seconds / 4, fault.amount * 3)
            case "full":
                redis.commands.is_full = True
                self.loop.call_later(fault.seconds, setattr, redis.commands, "is_full", False)
            case "clock":
                self._set_clock(redis, (fault.amount - 0.5) * 10 ** (1 + fault.seconds % 6))
            case "evicts":
                self.log(f"Redis evicts {redis.evict()!r}")
            case "loses indexes":
                sinks = () if self.application is None else self.application.sinks
                of_events = [self.keys.of_sink(sink).by_time for sink in sinks]
                for key in (*of_events, self.keys.due, self.keys.ids)[: 1 + int(fault.amount * 4)]:
                    redis.store.put(key.encode(), None)

    def _set_clock(self, redis: RedisServer, seconds: float) -> None:
        redis.store.epoch += seconds
        self.redis_was_set_back = self.redis_was_set_back or seconds < 0

    def _restart_redis(self, redis: RedisServer, seconds: float, lost: float) -> None:
        """Restart Redis without the changes of the last seconds, and tell the oracle that it has gone back in time."""
        before = dict(redis.store.entries)
        changes = redis.restart(seconds, lost)
        self.log(f"Redis loses {changes} changes")
        if not changes:
            return
        after = redis.store.entries
        changed = {key for key in (*before, *after) if before.get(key) is not after.get(key)}
        ids = {self.keys.upload_id(key.decode()) for key in changed if key.endswith((b":record", b":events"))}
        self.ledger.lost(ids)
        self.orphans_possible = True
        self.hosts_oracle.lost_changes(self._record, self._went_back(before, ids))

    def _went_back(self, before: Mapping[bytes, Entry], ids: Iterable[str]) -> set[str]:
        """Return the uploads whose stored bytes their records describe as they were earlier."""
        return {
            upload_id
            for upload_id in ids
            if _state_of(_decode(before.get(self._record_key(upload_id)))) != _state_of(self._record(upload_id))
        }

    async def _calm_down(self) -> None:
        self.redis.calm_down()
        await super()._calm_down()

    # The stored bytes.

    def _record(self, upload_id: str) -> Upload | None:
        """Return the record of an upload in Redis, whatever its state."""
        return _decode(self.redis.store.entries.get(self._record_key(upload_id)))

    def _record_key(self, upload_id: str) -> bytes:
        return self.keys.record(upload_id).encode()

    def _stored(self, upload_id: str) -> bytes | None:
        """Return what the files that the record names hold, up to the offset of the record."""
        files = self.machine.files
        record = self._record(upload_id)
        if record is None or not record.storage_state:
            primary = super()._stored(upload_id)
            return primary if record is None or primary is None else primary[: record.offset]
        path = f"{TOP}/{record.location}/{upload_id}".replace("/./", "/")
        content = b""
        for segment in segments(record.storage_state, record.offset):
            held = files.read(f"{path}.{segment.token}" if segment.token else path)
            content += (held or b"")[segment.start : segment.end]
            if len(content) < segment.end:
                break
        return content

    # The end.

    async def _clean(self) -> None:
        """Remove orphans of any age, once no dead process has a lease."""
        await asyncio.sleep(SETTLE)
        await self._on_first_host(lambda service: OrphanCleaner(service).clean(older_than=0))
        await self._repair_index()
        self._check_indexes()

    async def _repair_index(self) -> None:
        """Have the index of due uploads restored, as a server does only after hours."""

        async def repair(service: UploadService) -> None:
            state: Any = service.state
            await state.repair_index(0)

        if self.counts.get("redis loses indexes"):
            await self._on_first_host(repair)

    async def _events_wait(self) -> bool:
        """Look at the events themselves: a lost index is restored later."""
        entries = self.redis.store.entries
        return any(key.endswith(b":events") and entries[key].value for key in entries)

    def _check_indexes(self) -> None:
        """Check that the sweeper and lists find every record."""
        store = self.redis.store
        ids, due = (store.value(key.encode(), {}) for key in (self.keys.ids, self.keys.due))
        for key in list(store.entries):
            if not key.endswith(b":record"):
                continue
            upload_id = self.keys.upload_id(key.decode())
            record = self._record(upload_id)
            if record is None:
                continue
            if upload_id.encode() not in ids:
                self.complain(f"the record {upload_id[:8]} is not in the index of all ids")
            if record.expires_at is not None and due.get(upload_id.encode(), record.expires_at + 1) > record.expires_at:
                self.complain(f"the record {upload_id[:8]} is not in the index of due uploads")

    def _look_for_remains(self, records: set[str]) -> None:
        named = set(records)
        for record in filter(None, map(self._record, records)):
            files = {f"{record.id}.{word.partition(':')[2]}" for word in record.storage_state.split()}
            is_unfinished = record.status in (Status.ACTIVE, Status.FINISHING)
            marked = files | {record.id} if is_unfinished else files  # that a later writer may look at
            named |= files | {f".{name}.sync" for name in marked}
        super()._look_for_remains(named)
        self._check_leases()

    def _check_leases(self) -> None:
        """Check that no lease is left that does not end soon."""
        if self.redis_was_set_back:
            return
        soon = self.redis.store.milliseconds() + SETTLE * 1000
        for key, entry in sorted(self.redis.store.entries.items()):
            if key.endswith(b":lock") and self.redis.store.entry(key) is not None and (entry.expires_at or 0) < soon:
                self.complain(f"the lease {key.decode()} = {entry.value!r} is left over")


def _decode(record: Entry | None) -> Upload | None:
    values = {} if record is None else record.value
    return decode_upload({name.decode(): value.decode() for name, value in values.items()})


def _state_of(record: Upload | None) -> tuple[object, ...]:
    return () if record is None else (record.offset, record.status, record.storage_state)
