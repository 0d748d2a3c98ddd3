"""Removal of objects and multipart uploads in S3 that no record names."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.s3_storage import (  # noqa: F401 (fixtures)
    DATA,
    PART,
    Opener,
    calls,
    opened,
    send,
    send_all,
    server,
    storage,
)
from tests.support.s3_server import (
    S3Server,
)
from tests.support.upload_records import FixedRecords
from tusd_py.backends.s3.layout import parse
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.storage import SupportsOrphanCleanup
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import (
    UPLOAD,
    content,
    finish,
)


async def test_the_janitor_removes_what_no_record_names(storage: S3Storage, server: S3Server) -> None:
    has_janitor: object = storage
    assert isinstance(has_janitor, SupportsOrphanCleanup)
    kept = await send(storage, replace(UPLOAD, id="kept"), DATA[: PART + 1])
    forgotten = "f" * 32
    await send(storage, replace(UPLOAD, id=forgotten), DATA[: PART + 1])
    finished = await send_all(storage, replace(UPLOAD, id="finished"), b"finished")
    prefix = storage.config.prefix
    records = FixedRecords(kept, finished)
    assert await storage.clean(records, older_than=3600) == []
    before = server.keys(prefix), server.multiparts(prefix)
    found = await storage.clean(records, older_than=-60, dry_run=True)
    assert sorted((finding.kind, finding.upload_id) for finding in found) == [
        ("multipart upload", forgotten),
        ("tail", forgotten),
    ]
    assert (server.keys(prefix), server.multiparts(prefix)) == before
    assert await storage.clean(records, older_than=-60) == found
    assert await storage.clean(records, older_than=-60) == []
    assert await storage.stored_size(kept) == kept.offset
    assert server.multiparts(prefix) == [parse(kept.storage_state).multipart]
    assert await content(storage, await finish(storage, kept)) == DATA[: PART + 1]
    assert await content(storage, finished) == b"finished"


NAMED = "{prefix}{id}-{metadata.filename}"
HOLIDAY = "filename aG9saWRheS12aWRlby0yMDI2Lm1wNA=="  # holiday-video-2026.mp4


@pytest.mark.parametrize("key", [NAMED, "{prefix}{metadata.filename}-{id}", "{prefix}{id}{metadata.filename}"])
async def test_clean_with_metadata_beside_the_id_keeps_the_living_multipart(
    opened: Opener, server: S3Server, key: str
) -> None:
    storage = await opened(server, key_template=key)
    upload = await send(storage, replace(UPLOAD, id="a" * 32, metadata=HOLIDAY), DATA[: PART + 1])
    assert await storage.clean(FixedRecords(upload), older_than=-60) == []
    assert await content(storage, await finish(storage, upload)) == DATA[: PART + 1]


@pytest.mark.parametrize("key", [NAMED, "{prefix}{metadata.filename}-{id}"])
async def test_clean_finds_a_multipart_that_the_record_of_its_key_does_not_name(
    opened: Opener, server: S3Server, key: str
) -> None:
    storage = await opened(server, key_template=key)
    created = replace(UPLOAD, id="a" * 32, metadata=HOLIDAY)
    await send(storage, created, DATA[:PART])  # and the server dies before it commits that
    records = FixedRecords(created, replace(UPLOAD, id="b" * 32))
    records.in_use.add(created.id)
    assert await storage.clean(records, older_than=-60) == []
    records.in_use.clear()
    (orphan,) = await storage.clean(records, older_than=-60)
    assert (orphan.kind, orphan.upload_id) == ("multipart upload", created.id)
    assert server.multiparts(storage.config.prefix) == []


class CommittedMeanwhile(FixedRecords):
    """The writer commits between the first look and the second one."""

    def __init__(self, before: Upload, after: Upload) -> None:
        super().__init__(before)
        self.after = after

    @contextlib.asynccontextmanager
    async def locked(self, upload_id: str) -> AsyncIterator[Upload | None]:
        yield self.after


async def test_clean_keeps_what_is_committed_after_the_first_look(storage: S3Storage) -> None:
    upload = await send(storage, UPLOAD, DATA[: PART + 1])
    assert await storage.clean(CommittedMeanwhile(UPLOAD, upload), older_than=-60) == []
    assert await content(storage, await finish(storage, upload)) == DATA[: PART + 1]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("{prefix}{metadata.filename}-{id}", "uploads-"),  # a prefix that begins as ours does, or a name of a file
        ("{prefix}{id}", "uploads/"),
        ("{prefix}{id}/{metadata.filename}", "uploads/"),
        ("{prefix}{id}{metadata.filename}", "backup-"),
    ],
)
async def test_clean_leaves_multiparts_of_others_alone(opened: Opener, server: S3Server, key: str, other: str) -> None:
    storage = await opened(server, key_template=key)
    name = f"{storage.config.prefix}{other}{'c' * 32}"
    with contextlib.closing(server.client()) as client:
        client.create_multipart_upload(Bucket=server.bucket, Key=name)
    records = FixedRecords(replace(UPLOAD, id="a" * 32))
    assert await storage.clean(records, older_than=-60) == []
    assert len(server.multiparts(storage.config.prefix)) == 1


async def test_clean_with_a_key_without_the_prefix_leaves_multiparts_of_others_alone(
    opened: Opener, server: S3Server, tmp_path: Path
) -> None:
    """The prefixes keep the tails of two servers apart, but not the objects."""
    key = f"{tmp_path.name}-{{id}}"
    one, two = [await opened(server, key_template=key, prefix=f"{tmp_path.name}/{name}/") for name in ("one", "two")]
    upload = await send(one, replace(UPLOAD, id="a" * 32), DATA[: PART + 1])
    assert await two.clean(FixedRecords(replace(UPLOAD, id="b" * 32)), older_than=-60) == []
    assert await content(one, await finish(one, upload)) == DATA[: PART + 1]


async def test_clean_leaves_an_upload_of_tusd_alone(storage: S3Storage, server: S3Server) -> None:
    name = f"{storage.config.prefix}{'c' * 32}"
    with contextlib.closing(server.client()) as client:
        client.create_multipart_upload(Bucket=server.bucket, Key=name)
        client.put_object(Bucket=server.bucket, Key=f"{name}.info", Body=b"{}")
    assert await storage.clean(FixedRecords(UPLOAD), older_than=-60) == []
    assert len(server.multiparts(storage.config.prefix)) == 1


async def test_clean_judges_ages_by_the_clock_of_s3(
    storage: S3Storage, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(storage, replace(UPLOAD, id="a" * 32), DATA[: PART + 1])
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 2 * 86400)
    assert await storage.clean(FixedRecords(UPLOAD), older_than=86400) == []
