"""Uploads of no bytes, which are complete as soon as they are made."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_server import shared_redis_url
from tests.support.services import running_service
from tests.unit.test_reservations import RESERVED, reserving
from tusd_py.core.conditions import Conditions
from tusd_py.core.errors import DigestMismatch, UploadExists
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.events.types import UploadFinished
from tusd_py.uploads.expiration import SweepResult
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import NewUpload

OTHER_DIGEST = Conditions((("sha-256", hashlib.sha256(b"other bytes").hexdigest()),))


@pytest.fixture(params=["sqlite", "redis"])
async def service(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[UploadService]:
    options: dict[str, Any] = {"upload_dir": tmp_path}
    if request.param == "redis":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    async with running_service(options) as service:
        yield service


@pytest.fixture(params=["has been made", "is being finished"])
def swept(
    service: UploadService, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[SweepResult | None]:
    """Let every upload be swept in the middle of its creation; collect the results."""
    results: list[SweepResult | None] = []
    create, finish = service.state.create, service.storage.finish

    async def create_and_be_swept(upload: Upload, *, durable: bool = False) -> None:
        await create(upload, durable=durable)
        if request.param == "has been made":
            results.append(await service.sweep(upload))

    async def be_swept_and_finish(upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        if request.param == "is being finished":
            results.append(await service.sweep(upload))
        return await finish(upload, parts, sync=sync)

    monkeypatch.setattr(service.state, "create", create_and_be_swept)
    monkeypatch.setattr(service.storage, "finish", be_swept_and_finish)
    return results


async def test_sweeper_leaves_an_empty_upload_to_the_request_that_makes_it(
    service: UploadService, swept: list[SweepResult | None]
) -> None:
    finished: list[UploadFinished] = []
    service.events.observe(UploadFinished, finished.append)
    assert (await service.create(NewUpload(0))).is_complete
    assert swept == [None]
    assert len(finished) == 1


@pytest.mark.parametrize("swept", ["has been made"], indirect=True)
async def test_refusal_of_an_empty_upload_is_for_its_sender_and_frees_the_reservation(
    service: UploadService, swept: list[SweepResult | None]
) -> None:
    for _ in range(2):
        with pytest.raises(DigestMismatch):
            await service.create(replace(reserving(0), conditions=OTHER_DIGEST))
        assert await service.state.get(RESERVED) is None
    assert swept == [None, None]
    assert (await service.create(reserving(0))).is_complete


class Holder:
    """The holder of a lock, which notes that it is asked to release it."""

    asked = False

    def release_requested(self) -> None:
        self.asked = True

    def commit_requested(self) -> None: ...

    def lock_lost(self) -> None: ...


async def test_empty_upload_of_an_id_in_use_disturbs_nobody(service: UploadService) -> None:
    upload, holder = await service.create(NewUpload(10, id="chosen")), Holder()
    lock = await service.locker.acquire(upload.id, holder, 0)
    with pytest.raises(UploadExists):
        await service.create(NewUpload(0, id=upload.id))
    assert not holder.asked
    await lock.release()
