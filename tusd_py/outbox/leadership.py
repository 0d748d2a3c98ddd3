"""The one process that delivers to a sink, among all that share the records."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator

from tusd_py.contracts.locks import Locker, named_lock
from tusd_py.core.errors import LockTimeout


class Leadership:
    """The holder of the lock of a sink; other processes wait for the lock without a request."""

    def __init__(self) -> None:
        self.is_lost = False  # set once another process may have the lock

    def release_requested(self) -> None:
        """Do nothing."""

    def commit_requested(self) -> None:
        """Do nothing."""

    def lock_lost(self) -> None:
        """Note that another process may deliver now."""
        self.is_lost = True


def lock_of_sink(name: str) -> str:
    """Return the name of the lock of a sink, of a length that every locker takes."""
    return named_lock(f"events-{hashlib.sha256(name.encode()).hexdigest()[:16]}")


@contextlib.asynccontextmanager
async def leadership_of(locker: Locker, sink: str) -> AsyncIterator[Leadership | None]:
    """Try to become the one process that delivers to a sink, for the context; yield None if another one is.

    Two processes that both believe to be it, as after a lost lease, deliver an event twice, and do nothing worse.

    Raises:
        StateUnavailable: the locker cannot be used now.
    """
    leadership = Leadership()
    try:
        # Room is made by delivering: the lock is obtained on a full disk or in a full Redis too.
        lock = await locker.acquire(lock_of_sink(sink), leadership, 0, to_remove=True)
    except LockTimeout:
        yield None
        return
    try:
        yield leadership
    finally:
        await lock.release()
