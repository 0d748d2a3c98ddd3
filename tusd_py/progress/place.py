"""The place of a listener in the hub, with what a stream of all uploads of an owner needs."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from tusd_py.core.listing import Page, UploadFilter
from tusd_py.core.upload import Upload
from tusd_py.progress.watched import Watched

MAX_REMEMBERED = 10_000  # uploads of which a stream remembers that it was decided about them, or that it left them
MAX_ASKING = 100  # uploads of one stream about which is decided at a time

Key: TypeAlias = tuple[str, float]  # id and creation of an upload

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
    sender: str
    watched: set[Watched] = field(default_factory=set)
    may_follow: MayFollow | None = None  # of a stream of all uploads of an owner
    known: set[Key] = field(default_factory=set)  # uploads that were decided about
    left: set[Key] = field(default_factory=set)  # uploads that stood still, and made room for others
    asking: int = 0  # uploads about which is being decided

    def note(self, key: Key) -> None:
        """Remember that an upload was decided about, in bounded memory."""
        _add_to(self.known, key)

    def leave_still(self, count: int) -> Sequence[Watched]:
        """Leave so many uploads, those first that have stood still for longest; return them."""
        still = heapq.nsmallest(count, self.watched, key=lambda watched: (watched.appending, watched.heard_at))
        for watched in still:
            self.watched.discard(watched)
            if watched.last is not None:
                key = watched.upload_id, watched.last.created_at
                self.known.discard(key)
                _add_to(self.left, key)
        return still


def _add_to(keys: set[Key], key: Key) -> None:
    if len(keys) >= MAX_REMEMBERED:
        keys.clear()
    keys.add(key)
