"""Copies of records from each kind of state store to each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.parts import STATE_STORES, Instances
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
