"""Inspection of an upload whose append ends at that moment."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tusd_py.uploads.validation import AppendRequest, NewUpload

LENGTH = 10


@pytest.mark.parametrize("records", ["sqlite", "redis"])
async def test_head_answers_the_offset_of_an_append_that_ends_after_its_record_was_read(
    tmp_path: Path, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"upload_dir": tmp_path / "uploads"}
    if records == "redis":
        values |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    async with running_service(values) as writer, running_service(values) as reader:
        upload = await writer.create(NewUpload(length=LENGTH))
        request_commit = reader.locker.request_commit

        @contextlib.asynccontextmanager
        async def request_late(upload_id: str) -> AsyncIterator[int]:
            """Request the commit when the append has ended, and nobody has the lock any more."""
            monkeypatch.setattr(reader.locker, "request_commit", request_commit)
            await writer.append(upload.id, AppendRequest(0, Body(bytes(LENGTH - 1))))
            async with request_commit(upload_id) as commits:
                yield commits

        monkeypatch.setattr(reader.locker, "request_commit", request_late)
        assert (await reader.inspect(upload.id)).offset == LENGTH - 1
