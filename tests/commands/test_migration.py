"""`tusd-py migrate`: records from one state store to another."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.parts import STATE_STORES, Instances
from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import serving
from tests.support.redis_server import shared_redis_url
from tests.support.services import running_service
from tests.support.wire.messages import identity, payload
from tests.support.wire.promised import content_of, create, head, offset_of, patch
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import StorageBehind
from tusd_py.core.upload import Status, Upload, UploadKind, UploadPart
from tusd_py.migration.report import Summary
from tusd_py.migration.state_copy import migrate_records
from tusd_py.testing.state_suite import RECORDS

TOKEN = 1_700_000_000_123_456_789  # nanoseconds: the locker beside SQLite counts so
UPLOADS = [replace(upload, id=f"upload-{number}", token=TOKEN) for number, upload in enumerate(RECORDS.values())]
SPLIT = Upload(id="split", created_at=5.0, length=100, offset=30, storage_state="10:7 20:9", token=TOKEN)
PARTS = [UploadPart(1, 10, "a"), UploadPart(3, 20, "b", "c"), UploadPart(10_000, 30, 'd"\\ é')]
ENDED = (Status.TERMINATED, Status.EXPIRED)


@pytest.fixture(params=[(a, b) for a in STATE_STORES for b in STATE_STORES], ids="-".join)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[StateStore, StateStore]]:
    """Two different kinds of state store, both empty."""
    opened = []
    for place, name in zip(("from", "to"), request.param, strict=True):
        (tmp_path / place).mkdir()
        opened.append(Instances(STATE_STORES[name], tmp_path / place))
    yield await opened[0].open(), await opened[1].open()
    for instances in opened:
        await instances.close_all()


@pytest.fixture
def source(stores: tuple[StateStore, StateStore]) -> StateStore:
    return stores[0]


@pytest.fixture
def target(stores: tuple[StateStore, StateStore]) -> StateStore:
    return stores[1]


async def fill(store: StateStore, uploads: Sequence[Upload], parts: Sequence[UploadPart] = ()) -> None:
    for upload in uploads:
        await store.create(replace(upload, token=0))
        await store.update(replace(upload, token=0), upload, upload.token, parts=parts)


async def all_records(store: StateStore) -> dict[str, tuple[Upload, list[UploadPart]]]:
    return {upload.id: (upload, list(await store.parts(upload.id))) async for upload in store.all()}


async def test_migration_copies_every_kind_of_record(source: StateStore, target: StateStore) -> None:
    await fill(source, UPLOADS)
    before = await all_records(source)
    assert await migrate_records(source, target) == Summary(copied=len(UPLOADS))
    assert await all_records(target) == {upload.id: (replace(upload, token=0), []) for upload in UPLOADS}
    assert await all_records(source) == before


async def test_migrated_record_accepts_tokens_from_one(source: StateStore, target: StateStore) -> None:
    await fill(source, [replace(SPLIT, storage_state="")])
    await migrate_records(source, target)
    record = await target.get(SPLIT.id)
    assert record is not None
    assert (await target.update(record, record.at(50), 1)).offset == 50


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.FINISHING, *ENDED])
async def test_migration_copies_the_part_list(source: StateStore, target: StateStore, status: Status) -> None:
    await fill(source, [replace(SPLIT, status=status)], PARTS)
    assert await migrate_records(source, target) == Summary(copied=1)
    assert await all_records(target) == {SPLIT.id: (replace(SPLIT, status=status, token=0), PARTS)}
    assert await migrate_records(source, target) == Summary(skipped=1)


async def test_migration_copies_more_records_than_a_page(source: StateStore, target: StateStore) -> None:
    records = [replace(SPLIT, id=f"u{number}") for number in range(1234)]
    for start in range(0, len(records), 100):  # all at once may take longer than a call of the store may
        await asyncio.gather(*map(source.create, records[start : start + 100]))
    assert await migrate_records(source, target) == Summary(copied=1234)
    assert len(await all_records(target)) == 1234


async def test_migration_of_no_records(source: StateStore, target: StateStore) -> None:
    assert await migrate_records(source, target) == Summary()


async def test_migration_back_skips_every_record(source: StateStore, target: StateStore) -> None:
    await fill(source, UPLOADS)
    await migrate_records(source, target)
    before = await all_records(source)
    assert await migrate_records(target, source) == Summary(skipped=len(UPLOADS))
    assert await all_records(source) == before


# Again, after an interruption, and only to see.


class Interrupted(Exception):
    pass


class BreakingStore:
    """A store that breaks at the n-th change."""

    def __init__(self, store: StateStore, changes: int) -> None:
        self._store = store
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        if name in ("create", "update"):
            if not self._changes:
                raise Interrupted
            self._changes -= 1
        return getattr(self._store, name)


async def test_interrupted_migration_completes_when_repeated(source: StateStore, target: StateStore) -> None:
    uploads = [replace(SPLIT, id=f"u{number}") for number in range(4)]
    await fill(source, uploads, PARTS)
    wanted = {upload.id: (replace(upload, token=0), PARTS) for upload in uploads}
    for changes in (0, 1, 2, 1, 3):
        breaking: Any = BreakingStore(target, changes)
        with pytest.raises(Interrupted):
            await migrate_records(source, breaking)
    assert await all_records(target) != wanted
    await migrate_records(source, target)
    assert await all_records(target) == wanted
    assert await migrate_records(source, target) == Summary(skipped=4)


async def test_repeated_migration_skips_records_with_new_tokens(source: StateStore, target: StateStore) -> None:
    await fill(source, UPLOADS)
    await migrate_records(source, target)
    record = await target.get(UPLOADS[0].id)
    assert record is not None
    await target.update(record, record, 5)
    assert await migrate_records(source, target) == Summary(skipped=len(UPLOADS))


@pytest.mark.parametrize(
    "other",
    [
        replace(SPLIT, offset=31),
        replace(SPLIT, status=Status.COMPLETE),
        replace(SPLIT, metadata="a"),
        replace(SPLIT, storage_state="10:8 20:9"),
        replace(SPLIT, created_at=5.5),
    ],
    ids=["offset", "status", "metadata", "layout", "time"],
)
async def test_migration_refuses_record_that_differs_at_the_target(
    source: StateStore, target: StateStore, other: Upload
) -> None:
    neighbours = [replace(SPLIT, id="after"), replace(SPLIT, id="zzz")]
    await fill(source, [SPLIT, *neighbours], PARTS)
    await fill(target, [other])
    before = await all_records(target)
    errors: list[str] = []
    assert await migrate_records(source, target, report_error=errors.append) == Summary(copied=2, refused=1)
    assert errors == ["upload split is there already, and differs"]
    after = await all_records(target)
    assert after["split"] == before["split"]
    assert len(after) == 3


@pytest.mark.parametrize(
    "other", [PARTS[:2], [*PARTS, UploadPart(4, 40, "x")], [replace(PARTS[0], etag="x"), *PARTS[1:]]]
)
async def test_migration_refuses_part_list_that_differs_at_the_target(
    source: StateStore, target: StateStore, other: Sequence[UploadPart]
) -> None:
    await fill(source, [SPLIT], PARTS)
    await fill(target, [SPLIT], other)
    before = await all_records(target)
    assert await migrate_records(source, target) == Summary(refused=1)
    assert await all_records(target) == before


async def test_migration_dry_run_changes_nothing(source: StateStore, target: StateStore) -> None:
    uploads = [replace(SPLIT, id=name) for name in ("a", "b", "c", "d")]
    await fill(source, uploads, PARTS)
    await fill(target, [uploads[1]], PARTS)
    await fill(target, [uploads[2].at(50)])
    await fill(target, [uploads[3]])  # its part list is missing
    before = await all_records(target)
    lines: list[str] = []
    summary = await migrate_records(source, target, dry_run=True, report=lines.append)
    assert summary == Summary(copied=2, skipped=1, refused=1)
    assert sorted(lines) == ["a active 30 bytes", "d active 30 bytes"]
    assert await all_records(target) == before


# Bytes in several files, for a server that reads only one.


class MergingStorage(DiskStorage):
    """A storage that records the uploads whose bytes it is asked to merge."""

    def __init__(self, directory: Path, error: StorageBehind | None = None) -> None:
        super().__init__(directory)
        self.merged: list[tuple[Upload, list[UploadPart]]] = []
        self._error = error

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        assert sync
        self.merged.append((upload, list(parts)))
        if self._error is not None:
            raise self._error
        return ""


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.FINISHING])
async def test_migration_merges_bytes_in_several_files(
    source: StateStore, target: StateStore, tmp_path: Path, status: Status
) -> None:
    upload = replace(SPLIT, status=status)
    await fill(source, [upload, replace(SPLIT, id="one", storage_state="")], PARTS)
    storage = MergingStorage(tmp_path)
    assert await migrate_records(source, target, merge_storage=storage, dry_run=True) == Summary(copied=2)
    assert storage.merged == []
    assert await migrate_records(source, target, merge_storage=storage) == Summary(copied=2)
    assert storage.merged == [(replace(upload, token=0), PARTS)]
    assert (await all_records(target))["split"] == (replace(upload, storage_state="", token=0), [])
    assert await migrate_records(source, target, merge_storage=storage) == Summary(skipped=2)
    assert len(storage.merged) == 1  # else bytes uploaded since would be cut off


@pytest.mark.parametrize("status", [Status.COMPLETE, *ENDED])
async def test_migration_merges_no_bytes_of_complete_or_ended_uploads(
    source: StateStore, target: StateStore, tmp_path: Path, status: Status
) -> None:
    await fill(source, [replace(SPLIT, status=status)])
    storage = MergingStorage(tmp_path)
    assert await migrate_records(source, target, merge_storage=storage) == Summary(copied=1)
    assert storage.merged == []


async def test_migration_refuses_upload_whose_bytes_are_missing(
    source: StateStore, target: StateStore, tmp_path: Path
) -> None:
    await fill(source, [SPLIT])
    errors: list[str] = []
    storage: Storage = MergingStorage(tmp_path, StorageBehind(20))
    assert await migrate_records(source, target, merge_storage=storage, report_error=errors.append) == Summary(
        refused=1
    )
    assert errors == ["upload split is at 30 bytes, but the storage holds 20 bytes"]
    assert await all_records(target) == {}


async def test_migration_saves_completion_record_before_the_record(source: StateStore, target: StateStore) -> None:
    class CompletionRecords:
        def __init__(self) -> None:
            self.uploads: list[str] = []

        async def save_completion_record(self, upload: Upload) -> None:
            assert await target.get(upload.id) is None
            self.uploads.append(upload.id)

        async def load_completion_record(self, upload_id: str) -> Upload | None:
            raise AssertionError

    whole = replace(SPLIT, storage_state="", status=Status.COMPLETE)
    partial = replace(whole, id="partial", concatenation=UploadKind.PARTIAL)
    await fill(source, [whole, partial, replace(SPLIT, id="active")])
    kept = CompletionRecords()
    for dry_run in (True, False, False):
        await migrate_records(source, target, completion_records=kept, dry_run=dry_run)
        assert kept.uploads == ([] if dry_run else ["split"])


# The command.

CONTENT = payload(200_000)
MIDDLE, LATER = 70_001, 150_000
FINISHED_METADATA = "filename d29ybGQ=,is_confidential"


@dataclass(frozen=True)
class Site:
    """An upload directory in a folder, and a prefix in Redis."""

    folder: Path

    @property
    def redis(self) -> dict[str, str]:
        return {"redis_url": shared_redis_url(), "redis_prefix": f"{self.folder.name}:"}

    def migrate(self, source: str, target: str, *more: str) -> subprocess.CompletedProcess[str]:
        redis = [f"--{name.replace('_', '-')}={value}" for name, value in self.redis.items()]
        return execute(
            "migrate", "--from", source, "--to", target, "--upload-dir", str(self.folder / "uploads"), *redis, *more
        )

    def assert_migrated(self, source: str, target: str, new: int, old: int = 0) -> None:
        result = self.migrate(source, target)
        assert (result.returncode, result.stderr) == (0, "")
        how = "with the same" if target == "redis" else "without"
        assert result.stdout == f"{new} copied, {old} there already\nnow start the server {how} --redis-url\n"

    def forget(self) -> None:
        for path in (self.folder / "uploads" / ".tusd-py").glob("uploads.sqlite3*"):
            path.unlink()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_uploads_continue_after_migration_to_redis_and_back(site: Site) -> None:
    with serving(site.folder) as server:
        whole = identity(create(server.url, len(CONTENT), {"Upload-Metadata": FINISHED_METADATA}, CONTENT))
        half = identity(create(server.url, len(CONTENT), body=CONTENT[:MIDDLE]))
        new = identity(create(server.url, None))
    site.assert_migrated("sqlite", "redis", 3)
    with serving(site.folder, **site.redis) as server:
        assert content_of(f"{server.url}/{whole}") == CONTENT
        assert head(f"{server.url}/{whole}")["Upload-Metadata"] == FINISHED_METADATA
        assert offset_of(f"{server.url}/{half}") == MIDDLE
        assert patch(f"{server.url}/{half}", MIDDLE, CONTENT[MIDDLE:LATER]).offset == LATER
        assert head(f"{server.url}/{new}")["Upload-Defer-Length"] == "1"
    result = site.migrate("redis", "sqlite")
    assert result.returncode == 1
    assert result.stdout == "0 copied, 2 there already\n"
    assert result.stderr == f"tusd-py: upload {half} is there already, and differs\ntusd-py: 1 not copied\n"
    site.forget()
    site.assert_migrated("redis", "sqlite", 3)
    site.assert_migrated("redis", "sqlite", 0, 3)
    with serving(site.folder) as server:
        assert content_of(f"{server.url}/{whole}") == CONTENT
        assert offset_of(f"{server.url}/{half}") == LATER
        assert patch(f"{server.url}/{half}", LATER, CONTENT[LATER:]).offset == len(CONTENT)
        assert content_of(f"{server.url}/{half}") == CONTENT
        assert patch(f"{server.url}/{new}", 0, b"abc", {"Upload-Length": "3"}).offset == 3


def test_migration_to_sqlite_merges_segments_into_one_file(site: Site) -> None:
    async def make() -> Upload:
        """Two writers: the second one does not trust the first to have ended."""
        async with running_service({"upload_dir": site.folder / "uploads", **site.redis}) as service:
            upload = Upload(id="split", created_at=time.time(), length=len(CONTENT))
            await service.state.create(upload)
            for token, end, unreleased_predecessors in ((7, MIDDLE, False), (9, LATER, True)):
                writer = service.storage.writer(upload, token, unreleased_predecessors=unreleased_predecessors)
                await writer.flush([CONTENT[upload.offset : end]], sync=True)
                after = replace(upload.at(end), storage_state=writer.snapshot().storage_state)
                upload = await service.state.update(upload, after, token)
                await writer.close()
            return upload

    upload = asyncio.run(make())
    assert upload.storage_state
    assert len(list((site.folder / "uploads").glob("split*"))) == 2
    site.assert_migrated("redis", "sqlite", 1)
    assert len(list((site.folder / "uploads").glob("split*"))) == 2  # a server that stays with Redis needs both
    site.assert_migrated("redis", "sqlite", 0, 1)
    with serving(site.folder) as server:
        assert offset_of(f"{server.url}/split") == LATER
        assert patch(f"{server.url}/split", LATER, CONTENT[LATER:]).offset == len(CONTENT)
        assert content_of(f"{server.url}/split") == CONTENT


def test_migrated_complete_uploads_are_served_after_loss_of_redis(site: Site) -> None:
    with serving(site.folder) as server:
        whole = identity(create(server.url, 3, body=b"abc"))
    site.assert_migrated("sqlite", "redis", 1)
    with serving(site.folder, redis_url=shared_redis_url(), redis_prefix=f"{site.folder.name}-empty:") as server:
        assert content_of(f"{server.url}/{whole}") == b"abc"


@pytest.mark.parametrize(("source", "target"), [("sqlite", "redis"), ("redis", "sqlite")])
def test_migrate_dry_run_prints_uploads_and_changes_nothing(site: Site, source: str, target: str) -> None:
    uploads = site.folder / "uploads"
    with serving(site.folder, **({} if source == "sqlite" else site.redis)) as server:
        half = identity(create(server.url, 9, body=b"abc"))
    before = {path: path.read_bytes() for path in uploads.rglob("*") if path.is_file()}
    for _ in range(2):
        result = site.migrate(source, target, "--dry-run")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{half} active 3 bytes\n1 to copy, 0 there already\n"
    after = {path: path.read_bytes() for path in uploads.rglob("*") if path.is_file()}
    assert {path.name for path in after} - {path.name for path in before} <= {
        "uploads.sqlite3-wal",
        "uploads.sqlite3-shm",
    }
    site.assert_migrated(source, target, 1)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_migrate_from_and_to_the_same_store_is_refused(tmp_path: Path, kind: str) -> None:
    result = execute("migrate", "--from", kind, "--to", kind, "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(result, 2, "--from", "--to", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("source", "target"), [("sqlite", "redis"), ("redis", "sqlite")])
def test_migrate_without_redis_url_is_refused(tmp_path: Path, source: str, target: str) -> None:
    result = execute("migrate", "--from", source, "--to", target, "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(result, 2, "--redis-url is missing")
    assert not list(tmp_path.iterdir())


def test_migrate_to_an_unreachable_redis_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    url = "redis://user:secret@127.0.0.1:1/0"
    uploads = str(tmp_path / "uploads")
    result = execute("migrate", "--from", "sqlite", "--to", "redis", "--upload-dir", uploads, "--redis-url", url)
    assert_refused_in_one_line(result, 1, "Redis at redis://user:***@127.0.0.1:1/0 cannot be used")
    assert "secret" not in result.stderr


def test_migrate_from_a_directory_without_records_is_refused(site: Site) -> None:
    assert_refused_in_one_line(site.migrate("sqlite", "redis"), 1, "there are no records in", "uploads.sqlite3")
    assert not (site.folder / "uploads").exists()


def test_migrate_with_an_unusable_upload_directory_is_refused(site: Site) -> None:
    (site.folder / "uploads").touch()
    assert_refused_in_one_line(site.migrate("redis", "sqlite"), 1, str(site.folder / "uploads"), "File exists")


def test_migrate_with_a_broken_records_file_is_refused(site: Site) -> None:
    private = site.folder / "uploads" / ".tusd-py"
    private.mkdir(parents=True)
    (private / "uploads.sqlite3").write_text("something else " * 1000)
    for source, target in (("sqlite", "redis"), ("redis", "sqlite")):
        assert_refused_in_one_line(site.migrate(source, target), 1, str(site.folder / "uploads"), "not a database")
