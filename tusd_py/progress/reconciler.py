"""The comparison of watched uploads with their records: the records are the truth, and messages may be lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from tusd_py.contracts.locks import Locker
from tusd_py.core.clock import Clock
from tusd_py.core.errors import UploadError
from tusd_py.core.upload import Upload
from tusd_py.progress.watched import Watched

logger = logging.getLogger("tusd_py.progress")

INTERVAL = 5  # seconds between two looks at the record of an upload
INTERVAL_OF_DEAF = 1  # the same where changes of other processes do not come
SILENCE = 5.0  # seconds without a word from an append, after which its lock is looked at
AT_A_TIME = 16  # records


class Reconciler:
    """The reader of the records of all uploads that have listeners, one round at a time."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Upload | None]],
        locker: Locker,
        clock: Clock,
        listened: Callable[[], Sequence[Watched]],
    ) -> None:
        """Take the function that returns the record of an upload, and the one that returns those with listeners."""
        self._find = find
        self._locker = locker
        self._clock = clock
        self._listened = listened
        self._round: asyncio.Task[None] | None = None
        self._ticks = 0  # since the last round began
        self.hears_all: Callable[[], bool] = lambda: False  # whether the changes of other processes come

    def tick(self) -> None:
        """Count a second, and begin a round when it is time."""
        self._ticks += 1
        if self._ticks >= (INTERVAL if self.hears_all() else INTERVAL_OF_DEAF):
            self.look_now()

    def look_now(self) -> None:
        """Begin a round, unless one is under way."""
        if self._round is None or self._round.done():
            self._ticks = 0
            self._round = asyncio.get_running_loop().create_task(self._look_at_all())

    def stop(self) -> None:
        """End a round that is under way."""
        if self._round is not None:
            self._round.cancel()
            self._round = None

    async def _look_at_all(self) -> None:
        try:
            watched = self._listened()
            for start in range(0, len(watched), AT_A_TIME):
                await asyncio.gather(*map(self._look_at, watched[start : start + AT_A_TIME]))
        except Exception:  # a defect must not end the comparison for good: the next round tries again
            logger.exception("the comparison of watched uploads with their records failed")

    async def _look_at(self, watched: Watched) -> None:
        version = watched.version
        try:
            upload = await self._find(watched.upload_id)
            silent = watched.appending and asyncio.get_running_loop().time() - watched.heard_at >= SILENCE
            is_dead = silent and not await self._locker.is_held(watched.upload_id)
        except UploadError:  # the records or locks are away: nothing is known
            return
        if watched.version == version:
            watched.reconcile(upload, self._clock.wall())
            if is_dead and watched.version == version:
                watched.silence(self._clock.wall())
