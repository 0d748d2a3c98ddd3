"""Records for tests of the orphan cleanup, without a state store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tusd_py.core.errors import LockTimeout
from tusd_py.core.upload import Upload


class FixedRecords:
    """A fixed set of records; uploads whose ids are in `in_use` count as locked by another request."""

    def __init__(self, *uploads: Upload) -> None:
        self.uploads = {upload.id: upload for upload in uploads}
        self.in_use: set[str] = set()

    async def get(self, upload_id: str) -> Upload | None:
        return self.uploads.get(upload_id)

    async def all(self) -> AsyncIterator[Upload]:
        for upload in list(self.uploads.values()):
            yield upload

    @contextlib.asynccontextmanager
    async def locked(self, upload_id: str) -> AsyncIterator[Upload | None]:
        if upload_id in self.in_use:
            raise LockTimeout
        yield await self.get(upload_id)
