"""The uploads whose state is known: those with listeners, and some that had one a short while ago."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tusd_py.progress.watched import Ended, Numbers, Told, Watched

KEPT_TIME = 60.0  # seconds that the state of an upload is kept for listeners that come back
MAX_KEPT = 2000  # uploads without listeners whose state is kept


class WatchedUploads:
    """The state of each upload by its id, in bounded memory."""

    def __init__(self, numbers: Numbers, ended: Ended, told: Told) -> None:
        """Take what each state takes, see `Watched`."""
        self._numbers = numbers
        self._ended = ended
        self._told = told
        self._states: dict[str, Watched] = {}
        self._kept: dict[str, float] = {}  # uploads without listeners -> time of the event loop, the oldest first

    def __len__(self) -> int:
        return len(self._states)

    def get(self, upload_id: str) -> Watched | None:
        """Return the state of an upload; None if nothing is known of it."""
        return self._states.get(upload_id)

    def state_of(self, upload_id: str) -> Watched:
        """Return the state of an upload for somebody who is to listen, a new one if nothing is known."""
        watched = self._states.get(upload_id)
        if watched is None:
            watched = self._states[upload_id] = Watched(upload_id, self._numbers, self._ended, self._told)
        self._kept.pop(upload_id, None)
        return watched

    def listened(self) -> Sequence[Watched]:
        """Return the states that have listeners."""
        return [watched for watched in self._states.values() if watched.listeners]

    def keep(self, watched: Watched) -> None:
        """Keep the state of an upload that nobody watches for a while, unless nothing is known of it.

        Do nothing for a state that has been dropped: its id may be that of another upload, with listeners.
        """
        if self._states.get(watched.upload_id) is not watched:
            return
        if watched.last is None:
            self._drop(watched.upload_id)
            return
        self._kept.pop(watched.upload_id, None)  # so that the oldest stay first
        self._kept[watched.upload_id] = asyncio.get_running_loop().time()
        if len(self._kept) > MAX_KEPT:
            self._drop(next(iter(self._kept)))

    def drop_old(self) -> None:
        """Drop what has been kept for long."""
        now = asyncio.get_running_loop().time()
        while self._kept:
            upload_id, since = next(iter(self._kept.items()))
            if now - since < KEPT_TIME:
                break
            self._drop(upload_id)

    def close(self) -> None:
        """Drop everything."""
        for upload_id in list(self._states):
            self._drop(upload_id)

    def _drop(self, upload_id: str) -> None:
        self._kept.pop(upload_id, None)
        watched = self._states.pop(upload_id, None)
        if watched is not None:
            watched.close()
