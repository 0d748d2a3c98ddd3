"""A hub of live progress with one listener, on records in memory."""

from __future__ import annotations

import asyncio

from tests.support.timing import TIMEOUT
from tusd_py.core.clock import SystemClock
from tusd_py.core.errors import UploadNotFound
from tusd_py.core.listing import Page, UploadFilter
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.progress.hub import ProgressHub
from tusd_py.progress.listener import Listener
from tusd_py.progress.messages import Message
from tusd_py.testing import MemoryLocker

UPLOAD = Upload("a", 1.0, length=100)


async def anybody(upload: Upload) -> bool:
    return True


class Records:
    """The records, as many as there are."""

    def __init__(self, *uploads: Upload) -> None:
        self.uploads = {upload.id: upload for upload in uploads}
        self.events = EventBus()

    async def find(self, upload_id: str) -> Upload | None:
        return self.uploads.get(upload_id)

    async def get(self, upload_id: str) -> Upload:
        if upload_id not in self.uploads:
            raise UploadNotFound
        return self.uploads[upload_id]

    async def list(self, *, after: str, limit: int, condition: UploadFilter) -> Page:
        return Page(tuple(self.uploads.values()), None)

    def change(self, upload: Upload) -> Upload:
        self.uploads[upload.id] = upload
        return upload


class Followed:
    """A hub with one listener, and what that was told."""

    def __init__(self, records: Records, *, max_listeners: int = 10) -> None:
        self.records = records
        self.hub = ProgressHub(records.events, records.find, MemoryLocker(), SystemClock(), max_listeners=max_listeners)
        self.listener = Listener(("a",))

    async def follow(self, number: int | None = None) -> bool:
        self.listener = Listener(("a",))
        self.hub.add(self.listener, "sse", 3600)
        return await self.hub.watch(self.listener, "a", lambda: self.records.get("a"), number)

    async def follow_owner(self, owner: str | None = "ann") -> None:
        self.listener = Listener(None)
        self.hub.add(self.listener, "sse", 3600)
        await self.hub.watch_owner(self.listener, owner, anybody, self.records.list)

    async def next(self) -> list[Message]:
        async with asyncio.timeout(TIMEOUT):
            return list(await self.listener.next() or ())

    async def kinds(self) -> list[str]:
        return [message.kind for message in await self.next()]
