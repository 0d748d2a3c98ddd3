"""The place of a listener in the hub, with what a stream of all uploads of an owner needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from tusd_py.core.listing import Page, UploadFilter
from tusd_py.core.upload import Upload
from tusd_py.progress.watched import Watched

MAX_REFUSED = 10_000  # uploads that a stream remembers that its client may not see

MayFollow: TypeAlias = Callable[[Upload], Awaitable[bool]]


class ListsUploads(Protocol):
    """The list of the records, see `StateStore.list`."""

    async def __call__(self, *, after: str, limit: int, condition: UploadFilter) -> Page:
        """Return a page."""


@dataclass(slots=True)
class Place:
    """The place of a listener in the hub."""

    kind: str
    end: asyncio.TimerHandle  # of its stream
    watched: set[Watched] = field(default_factory=set)
    may_follow: MayFollow | None = None  # of a stream of all uploads of an owner
    known: set[tuple[str, float]] = field(default_factory=set)  # id and creation of uploads that were decided about

    def note(self, key: tuple[str, float]) -> None:
        """Remember that an upload was decided about, in bounded memory."""
        if len(self.known) >= MAX_REFUSED:
            self.known.clear()
        self.known.add(key)
