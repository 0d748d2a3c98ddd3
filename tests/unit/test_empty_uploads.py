"""Uploads of no bytes, which are complete as soon as they are made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_server import shared_redis_url
from tests.support.services import running_service
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.events.types import UploadFinished
from tusd_py.uploads.expiration import SweepResult
from tusd_py.uploads.validation import NewUpload


@pytest.mark.parametrize("sweeper", ["has finished it", "is finishing it"])
@pytest.mark.parametrize("records", ["sqlite", "redis"])
async def test_an_empty_upload_that_the_sweeper_finds_first_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: str, sweeper: str
) -> None:
    """The record of the upload is there, and due, before the request that made it has gone on."""
    options: dict[str, Any] = {"upload_dir": tmp_path}
    if records == "redis":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    async with running_service(options) as service:
        finished: list[UploadFinished] = []
        service.events.observe(UploadFinished, finished.append)
        create, complete = service.state.create, service.storage.finish
        sweeping: list[asyncio.Task[SweepResult | None]] = []
        completing = asyncio.Event()

        async def create_and_be_swept(upload: Upload, *, durable: bool = False) -> None:
            await create(upload, durable=durable)
            sweeping.append(asyncio.create_task(service.sweep(upload)))
            await (sweeping[0] if sweeper == "has finished it" else completing.wait())

        async def complete_slowly(upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
            completing.set()
            await asyncio.sleep(0.2)
            return await complete(upload, parts, sync=sync)

        monkeypatch.setattr(service.state, "create", create_and_be_swept)
        monkeypatch.setattr(service.storage, "finish", complete_slowly)
        assert (await service.create(NewUpload(0))).is_complete
        assert await sweeping[0]
        assert len(finished) == 1
