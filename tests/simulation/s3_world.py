"""The world whose bytes are in S3 and whose records are in SQLite: servers with `S3Storage` over a model of S3."""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import botocore.endpoint  # type: ignore[import-untyped]
from botocore.retries import quota, standard  # type: ignore[import-untyped]

import tusd_py.backends.s3.client
import tusd_py.backends.s3.storage
from tests.simulation.application import CHOSEN
from tests.simulation.faults import Fault
from tests.simulation.oracle import Expected, Unreadable
from tests.simulation.patches import Modules
from tests.simulation.profiles import S3_PROFILES, Profile, draw_profile
from tests.simulation.s3_bucket import MIN_PART, BucketModel
from tests.simulation.s3_network import FATES, Network, Session
from tests.simulation.sqlite import _on_behalf_of
from tests.simulation.world import World
from tests.support.s3_models import share_models
from tusd_py.backends.s3 import (
    body,
    bucket,
    config,
    copy,
    copy_plan,
    memory_limiter,
    open_part,
    part_buffer,
    part_sizes,
)
from tusd_py.backends.s3.config import CAPABILITIES, S3Config
from tusd_py.backends.s3.layout import Layout, checksum_of, contiguous, parse
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.core.upload import UploadPart
from tusd_py.uploads.sweeping import OrphanCleaner

KINDS = {
    "kill": 5,
    "pause": 2,
    "shutdown": 2,
    "stall": 1,
    "clock": 1,
    "s3 trouble": 8,
    "s3 away": 2,
    "s3 slow": 2,
    "multiparts expire": 1,
    "clean": 1,
}
DIALECTS = ("aws", "aws", "minio", "r2", "scaleway", "ceph", "plain")
PREFIX = "p/"
SCALE = 1024  # sizes are a thousandth of the real ones
CHUNK = 1024  # bytes of a buffer of the pool
SETTLE = 5.0  # seconds in which whoever has just had an answer makes the next request

_session: Session | None = None
_quotas: list[Any] = []


class _Quota(quota.RetryQuota):  # type: ignore[misc]
    """A quota of retries that a new world fills again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _quotas.append(self)


class _OneBucket:
    """The endpoints of operations: each is found once, since all are about one bucket."""

    def __init__(self, find: Callable[..., Any]) -> None:
        self._find = find
        self._found: dict[str, Any] = {}

    def __call__(self, operation_model: Any, call_args: Any, request_context: Any) -> Any:
        name = operation_model.name
        if name not in self._found:
            self._found[name] = self._find(operation_model, call_args, request_context)
        return self._found[name]


def prepare(modules: Modules) -> Session:
    """Make sizes small, and put simulated time and network under botocore; once in a process."""
    global _session
    if _session is not None:
        return _session
    os.environ.update(AWS_ACCESS_KEY_ID="simulated", AWS_SECRET_ACCESS_KEY="simulated", AWS_CONFIG_FILE="/dev/null")
    os.environ.update(AWS_SHARED_CREDENTIALS_FILE="/dev/null", AWS_EC2_METADATA_DISABLED="true")
    _make_sizes_small()
    share_models()
    botocore.endpoint.time = modules.time
    quota.RetryQuota = _Quota
    backoff = standard.ExponentialBackoff.__init__
    backoff.__defaults__ = tuple(
        (lambda: modules.random.random()) if value is random.random else value for value in backoff.__defaults__
    )
    client = tusd_py.backends.s3.client._build(_config("aws"))
    agent = client._user_agent_creator.to_string()
    # Each takes a tenth of the time of a request.
    client._user_agent_creator.to_string = lambda: agent
    client._request_signer.sign = lambda *_, **__: None
    client._ruleset_resolver.construct_endpoint = _OneBucket(client._ruleset_resolver.construct_endpoint)
    vars(tusd_py.backends.s3.storage)["size_limits"] = functools.cache(part_sizes.size_limits)
    _session = Session()
    client._endpoint.http_session = _session
    vars(tusd_py.backends.s3.client)["_build"] = lambda config: client
    return _session


def _make_sizes_small() -> None:
    small = {"MIN_PART": MIN_PART, "MIB": SCALE, "CHUNK_SIZE": CHUNK, "MIN_EXPECT_BODY": CHUNK, "READ_SIZE": 4096}
    small |= {"MAX_READ_SIZE": CHUNK, "MAX_COPY_SIZE": 2 * CHUNK, "ALWAYS_ADMITTED": CHUNK}
    small |= {"MAX_SINGLE_COPY": 16 * SCALE, "COPY_SIZE": 8 * SCALE}
    modules = (body, bucket, config, copy, copy_plan, memory_limiter, open_part, part_buffer, part_sizes)
    for module in (*modules, tusd_py.backends.s3.storage):
        for name, value in small.items():
            if name in vars(module):
                vars(module)[name] = value


def _config(dialect: str, **changes: Any) -> S3Config:
    defaults = S3Config(bucket="bucket", endpoint="http://s3.example", addressing="path", prefix=PREFIX)
    small = {"dialect": dialect, "part_size": MIN_PART, "buffer_size": 16 * SCALE}
    return defaults.model_copy(update=small | changes)


class S3World(World):
    """One run with S3."""

    kinds: Mapping[str, int] = KINDS
    profiles: Sequence[Profile] = S3_PROFILES
    applications = 0.35
    operators = 0.25
    has_files = False
    sizes = (40, 3000, 9000, 20_000, 40_000, 60_000)
    most_faults = 8
    period = 18.0

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = (), profile: str = "") -> None:
        session = prepare(modules)
        plan = Random(f"{seed} s3")
        self._end_of_names = Random(f"{seed} names of objects").choice(("", "", "-clip", ".mp4"))
        self.config = self._draw_config(plan)
        if draw_profile(Random(f"{seed} profile"), self.profiles, self.most_faults, profile).is_short_of_memory:
            self.config = self.config.model_copy(update={"buffer_size": 8 * SCALE})
        self.bucket = BucketModel(Random(f"{seed} bucket"), CAPABILITIES[self.config.dialect])
        super().__init__(seed, modules, without, profile)
        self.network = session.network = Network(
            self.loop, self.scheduler, Random(f"{seed} network"), self.bucket, self.moments, self.log, self.count
        )
        for each in _quotas:
            each._available_capacity = each._max_capacity
        self.oracle.was_taken = lambda upload_id: self._key(upload_id) in self.bucket.aborted
        self.network.usual = plan.choice((0.0, 0.0, 0.02, 0.08))
        self.log(f"S3: {self.config.dialect}, parts of {self.config.part_size}, memory {self.config.buffer_size}")

    def _draw_config(self, plan: Random) -> S3Config:
        return _config(
            plan.choice(DIALECTS),
            part_size=plan.choice((MIN_PART, MIN_PART, 6000)),
            buffer_size=plan.choice((8, 16, 64)) * SCALE,
            parts_in_flight=plan.choice((1, 2, 4)),
            key_template="{prefix}{id}" + self._end_of_names,
        )

    def components(self) -> dict[str, Any]:
        return {"storage": S3Storage(self.config)}

    @property
    def storage_is_sick(self) -> bool:
        fates = (f"s3 {fate}" for fate in (*FATES, "error inside 200"))
        return super().storage_is_sick or any(
            self.counts.get(kind) for kind in (*fates, "s3 slow", "multiparts expire")
        )

    # Faults.

    def _apply(self, fault: Fault) -> None:
        network, now = self.network, self.loop.now
        host = self.hosts[fault.target % len(self.hosts)]
        if fault.kind == "s3 trouble":
            network.troubled_until = max(network.troubled_until, now + fault.seconds * 4)
            network.intensity = 0.05 + fault.amount * 0.6
        elif fault.kind == "s3 away":
            network.away_until = max(network.away_until, now + fault.seconds)
        elif fault.kind == "s3 slow":
            network.slow_until = max(network.slow_until, now + fault.seconds)
        elif fault.kind == "multiparts expire":
            self.bucket.expire_all()
            for upload in self.oracle.uploads:
                if self.oracle.was_taken(upload.id):
                    upload.may_be_gone = upload.is_ending = True
        elif fault.kind == "clean":
            self._clean_now(host)
        else:
            super()._apply(fault)

    async def _calm_down(self) -> None:
        self.network.calm_down()
        await super()._calm_down()

    # The stored bytes.

    def _key(self, upload_id: str) -> str:
        return f"{PREFIX}{upload_id}{self._end_of_names}"

    def _tail_key(self, upload_id: str, name: str) -> str:
        return f"{self.config.tails}{upload_id}.{name}"

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the committed records. Raises `Unreadable` if no process has them open."""
        database = next(iter(self.machine.databases.values()), None)
        if database is None:
            raise Unreadable
        with _on_behalf_of(self.machine):
            return list(database.connection.execute(statement, values))

    def _committed(self, upload_id: str) -> tuple[int, str] | None:
        """Return the offset and the layout in a record; None if there is no record."""
        rows = self._rows("SELECT offset, layout FROM uploads WHERE id = ?", upload_id)
        return rows[0] if rows else None

    def _parts(self, upload_id: str) -> list[UploadPart]:
        """Return the parts in a record."""
        rows = self._rows("SELECT number, end, etag, checksum FROM parts WHERE upload_id = ?", upload_id)
        return [UploadPart(*row) for row in rows]

    def _layouts(self) -> list[tuple[str, str]]:
        """Return the ids and layouts of all records."""
        return self._rows("SELECT id, layout FROM uploads")

    def _stored(self, upload_id: str) -> bytes | None:
        """Return what the parts and tails of the record, or the object, hold up to the offset of the record."""
        committed = self._committed(upload_id)
        if committed is None:
            return None
        offset, text = committed
        layout = parse(text)
        content = b"" if layout.is_assembled else self._pieces(upload_id, layout, offset)
        found = self.bucket.objects.get(self._key(upload_id))
        if len(content) < offset and found is not None and len(found.content) >= offset:
            content = found.content
        return content[:offset]

    def _pieces(self, upload_id: str, layout: Layout, offset: int) -> bytes:
        pending = self.bucket.pending.get(layout.multipart)
        content = b""
        for part in contiguous(self._parts(upload_id), offset) if pending else ():
            stored = pending.parts.get(part.number) if pending else None
            if stored is None or (stored.etag != part.etag and stored.crc != checksum_of(part)):
                return content
            content += stored.content
        for tail in layout.tails_from(len(content), offset):
            found = self.bucket.objects.get(self._tail_key(upload_id, tail.name))
            if found is None:
                return content
            content += found.content[len(content) - tail.start : tail.end - tail.start]
        return content

    def removed(self, upload: Expected) -> None:
        """Check that nothing is left of an upload that was removed, unless a fault may have left an orphan."""
        if self.network.usual or any(self.counts.get(kind) for kind in self.kinds):
            return
        key, tails = self._key(upload.id), self._tail_key(upload.id, "")
        left = [name for name in self.bucket.objects if name == key or name.startswith(tails)]
        left += [number for number, pending in self.bucket.pending.items() if pending.key == key]
        if left:
            self.complain(f"upload {upload.number} was removed, and {left[0]} is left over")

    # The end.

    async def _clean(self) -> None:
        """Remove orphans of any age, once no request is under way."""
        await asyncio.sleep(SETTLE)
        while self.network.under_way:  # noqa: ASYNC110 - a late request
            await asyncio.sleep(1.0)
        for _ in range(2):
            await self._on_first_host(lambda service: OrphanCleaner(service).clean(older_than=0))

        self._named = {self.config.identity}  # keys, and ids of multipart uploads
        rows = self._layouts()
        self._has_records = bool(rows)  # without any the cleaner removes nothing
        for upload_id, text in rows:
            layout = parse(text)
            self._named |= {self._key(upload_id), layout.multipart}
            self._named |= {self._tail_key(upload_id, name) for name in layout.tail_names}

    def _look_for_remains(self, records: set[str]) -> None:
        for upload in self.oracle.uploads:
            self.oracle.note_expiry(upload)
            self._check_object(upload)
        if not self._has_records:
            return
        for key in sorted(self.bucket.objects.keys() - self._named):
            is_lost = self.orphans_possible and not key.startswith(self.config.tails)  # its record, by Redis
            if key not in self.network.late_keys and not is_lost:
                self.complain(f"the object {key} is left over")
        for multipart_id, pending in self.bucket.pending.items():
            if multipart_id not in self._named and CHOSEN not in pending.key:  # any program may have made such a key
                self.complain(f"the multipart upload {multipart_id} of {pending.key} is left over")

    def _check_object(self, upload: Expected) -> None:
        found = self.bucket.objects.get(self._key(upload.id))
        if upload.complete and not upload.may_be_gone and (found is None or found.content != bytes(upload.known)):
            self.complain(f"upload {upload.number} is complete, and its object is not what was sent")
