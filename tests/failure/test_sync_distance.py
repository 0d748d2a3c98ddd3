"""Bytes of an unfinished upload that a power cut may take: never more than a bounded number, however it is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.services import Body
from tests.support.small_uploads import records_in_redis, small_append
from tusd_py.core.errors import ClientDisconnected
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

DISTANCE = 1000
PIECE = 250
SYNCING = pytest.mark.parametrize("durability", ["complete"])


@pytest.fixture(params=["sqlite", "redis"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return records_in_redis(tmp_path) if request.param == "redis" else {}


@pytest.fixture(autouse=True)
def _small_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tusd_py.core.durability.SYNC_DISTANCE", DISTANCE)


@SYNCING
async def test_small_bodies_are_synced_once_a_distance(service: UploadService, slow_paths: list[str]) -> None:
    upload = await service.create(NewUpload(100 * PIECE))
    synced = []
    for number in range(20):
        upload = await service.append(upload.id, small_append(b"x" * PIECE, number * PIECE))
        assert upload.offset - upload.synced < DISTANCE
        assert await service.state.get(upload.id) == upload
        synced.append(upload.synced)
    assert sorted(set(synced)) == list(range(0, 20 * PIECE + 1, DISTANCE))
    assert len(slow_paths) == 5  # the others stay on the fast path


@SYNCING
async def test_a_body_that_breaks_off_is_synced_behind_the_distance(service: UploadService) -> None:
    upload = await service.create(NewUpload(100 * PIECE))
    with pytest.raises(ClientDisconnected):
        await service.append(upload.id, AppendRequest(0, Body(b"x" * 10 * PIECE, breaks_off=True, piece_size=PIECE)))
    stored = await service.state.get(upload.id)
    assert stored is not None
    assert (stored.offset, stored.synced) == (10 * PIECE, 10 * PIECE)


@SYNCING
async def test_bodies_below_the_distance_are_not_synced(service: UploadService) -> None:
    upload = await service.create(NewUpload(100 * PIECE))
    upload = await service.append(upload.id, AppendRequest(0, Body(b"x" * (DISTANCE - 1), piece_size=PIECE)))
    assert (upload.offset, upload.synced) == (DISTANCE - 1, 0)
    upload = await service.append(upload.id, AppendRequest(DISTANCE - 1, Body(b"x")))
    assert (upload.offset, upload.synced) == (DISTANCE, DISTANCE)


@pytest.mark.parametrize("durability", ["never"])
async def test_nothing_is_synced_where_that_is_switched_off(service: UploadService) -> None:
    upload = await service.create(NewUpload(100 * PIECE))
    upload = await service.append(upload.id, AppendRequest(0, Body(b"x" * 10 * PIECE, piece_size=PIECE)))
    assert (upload.offset, upload.synced) == (10 * PIECE, 0)
