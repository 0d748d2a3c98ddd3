"""The orphan cleanup of S3 beside real records and locks, on every state store and locker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import TIMEOUT
from tests.support.s3_server import s3_config, s3_server
from tests.support.s3_uploads import PART
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.testing.locker_helpers import Holder
from tusd_py.testing.storage_helpers import UPLOAD
from tusd_py.uploads.sweeping import Records

HOLIDAY = "filename aG9saWRheS12aWRlby0yMDI2Lm1wNA=="  # holiday-video-2026.mp4
NAMED = replace(UPLOAD, id="a" * 32, metadata=HOLIDAY, length=3 * PART)
OTHER = replace(UPLOAD, id="b" * 32)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[S3Storage]:
    storage = S3Storage(s3_config(s3_server(), tmp_path, key_template="{prefix}{id}-{metadata.filename}"))
    await storage.open()
    yield storage
    await storage.close()


async def test_clean_asks_the_records_and_respects_the_locks(
    state: StateStore, locker: Locker, storage: S3Storage
) -> None:
    await state.create(NAMED)
    await state.create(OTHER)
    records = Records(state, locker)
    lock = await locker.acquire(NAMED.id, Holder(), TIMEOUT)
    writer = storage.writer(NAMED, lock.token)
    for _ in range(PART >> 20):
        await writer.write([bytes(1 << 20)])
    await writer.flush([b"tail"], sync=True)
    assert await storage.clean(records, older_than=-60) == []  # nothing is committed, but the upload is in use
    done = writer.snapshot()
    after = replace(NAMED, offset=done.offset, storage_state=done.storage_state)
    stored = await state.update(NAMED, after, lock.token, parts=done.new_parts)
    await writer.close()
    await lock.release()
    assert await storage.clean(records, older_than=-60) == []
    assert await storage.stored_size(stored) == PART + 4
    await state.delete(NAMED.id, 1 << 60)
    orphans = await storage.clean(records, older_than=-60)
    assert sorted(orphan.kind for orphan in orphans) == ["multipart upload", "tail"]
    assert await storage.clean(records, older_than=-60) == []
