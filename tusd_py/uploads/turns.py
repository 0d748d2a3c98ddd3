"""Turns of work that takes long: a few at a time, and one at a time of each owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from tusd_py.core.upload import Upload


class Turns:
    """The turns of one kind of work: an owner with many uploads waits for itself, and keeps no other owner waiting."""

    def __init__(self, most: int) -> None:
        """Give so many turns at a time."""
        self._turns = asyncio.Semaphore(most)
        self._of_owner: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # as long as somebody holds one

    @contextlib.asynccontextmanager
    async def of(self, upload: Upload) -> AsyncIterator[None]:
        """Wait for a turn for an upload, and hold it for the context; uploads without an owner wait for no other."""
        if not upload.owner:
            async with self._turns:
                yield
            return
        own = self._of_owner.setdefault(upload.owner, asyncio.Lock())
        async with own, self._turns:
            yield
