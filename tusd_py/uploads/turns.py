"""Turns of work that takes long, such as reading a whole upload: a few at a time, and of each owner fewer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from tusd_py.core.upload import Upload

SMALL = 64 << 20  # bytes; uploads of at most so many have turns of their own


class Turns:
    """The turns of one kind of work, of small uploads beside those of large ones.

    An owner with many uploads waits for itself: of those that wait for a turn that all owners share, each owner has a
    few at a time, so that every other one comes soon. Uploads without an owner count as those of one more, who may have
    all turns but one, since without authentication all uploads are its own.
    """

    def __init__(self, most: int, *, of_owner: int = 1) -> None:
        """Give so many turns at a time, to small uploads and to large ones each, and so many of them to one owner."""
        self._small = asyncio.Semaphore(most)
        self._large = asyncio.Semaphore(most)
        self._most_of_owner = of_owner
        self._most_of_nobody = max(1, most - 1)
        self._of_owner: WeakValueDictionary[tuple[str, bool], asyncio.Semaphore] = WeakValueDictionary()  # in use

    @contextlib.asynccontextmanager
    async def of(self, upload: Upload) -> AsyncIterator[None]:
        """Wait for a turn for an upload, and hold it for the context."""
        is_small = (upload.length or 0) <= SMALL
        most = self._most_of_owner if upload.owner else self._most_of_nobody
        own = self._of_owner.setdefault((upload.owner, is_small), asyncio.Semaphore(most))
        async with own, self._small if is_small else self._large:
            yield
