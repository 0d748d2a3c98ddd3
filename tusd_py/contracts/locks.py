"""The contract of a locker: the right to write to an upload.

Implement `Locker` and `Lock`; the server implements `LockHolder`. `tusd_py.testing.MemoryLocker` is a complete
example, `tusd_py.testing.locker_suite` has the tests.

**Takeover.** A client whose connection broke comes back before the server has noticed. So a request that waits for a
lock makes the locker ask the holder to release it; the holder stops reading, commits and releases.

**Fencing.** A lock can be lost without its holder knowing: it sleeps, or cannot be reached. Every lock has a token
larger than all before it, and the state store refuses changes with an older one.

**Threads.** All methods, and those of `LockHolder`, are called in the event loop and must not block it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from tusd_py.core.upload import Upload


def named_lock(name: str) -> str:
    """Return the name by which `Locker` knows a lock that belongs to no upload, such as that of a periodic job.

    Example: `await locker.acquire(named_lock("sweeper"), holder, 0)`.
    """
    return f".{name}"


class LockHolder(Protocol):
    """The user of a lock, to whom the locker sends messages. Calls return at once; the holder acts on them later.

    Calls after the release have no effect.
    """

    def release_requested(self) -> None:
        """Stop reading, commit the bytes received, and release: another request wants to write."""

    def commit_requested(self) -> None:
        """Commit the bytes received, and go on: another request wants to know the offset."""

    def lock_lost(self) -> None:
        """Write nothing more, not even bytes already received: the lock is, or may be, that of another holder."""


class Lock(Protocol):
    """An acquired lock.

    Invariant: `token` is larger than that of every earlier lock of the same upload, also before a restart.
    """

    @property
    def upload_id(self) -> str:
        """Name that the lock was acquired under."""

    @property
    def token(self) -> int:
        """The fencing token, at least 1."""

    @property
    def unreleased_predecessors(self) -> int:
        """Number of earlier holders that did not release the lock; each may be alive and believe to hold it."""

    @property
    def upload(self) -> Upload | None:
        """The record as it was when the lock was acquired, if the locker keeps records too; saves a request."""

    async def raise_token(self, token: int) -> None:
        """Replace the token by one larger than `token`, that of the record, because the locker has lost its count."""

    async def release(self) -> None:
        """Release the lock. A second call has no effect, even when another request holds the lock by then."""


class Locker(Protocol):
    """Exclusive locks by name: upload ids, and names of `named_lock`. A lock ends with its process.

    Invariant: names of `named_lock` begin with a dot, upload ids do not; a named lock has no record.

    Example::

        lock = await locker.acquire(upload_id, holder, timeout=10)
        try:
            ...  # write, with lock.token
        finally:
            await lock.release()
    """

    async def open(self) -> None:
        """Make the locker ready.

        Called once before any other method, and again after `close` if the server starts again.

        Raises:
            StateUnavailable: with one sentence for the operator; the server tries again.
        """

    async def close(self) -> None:
        """Release every lock of this locker, and every resource. Called also after `open` has failed."""

    async def acquire(self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False) -> Lock:
        """Acquire a lock. While this waits, each holder is asked to release it.

        A cancelled call holds no lock, and its wish ends.

        Args:
            upload_id: the name of the lock.
            holder: receives the messages for the holder.
            timeout: seconds to wait; with 0, try once and send the holder no request.
            to_remove: the caller is going to remove something, and gets the lock where there is no room for anything
                new.

        Raises:
            LockTimeout: another holder has not released it in time.
            StateFull: there is no room for the lock.
            StateUnavailable: the locker cannot be used now.
        """

    def request_commit(self, upload_id: str) -> AbstractAsyncContextManager[int]:
        """Ask the holder to commit its bytes, for as long as the context lasts.

        The value is the number of commits to wait for until one is sure to have begun after this call: 0 if nobody
        holds the lock; 1 if the holder is told once; 2 if it is told repeatedly, so that the first commit may be one
        that an earlier caller asked for.
        """

    async def is_held(self, upload_id: str) -> bool:
        """Return whether any process holds the lock now."""


@runtime_checkable
class CountsServers(Protocol):
    """A locker that knows whether other servers use the same locks. No method blocks for long."""

    def another_has_settled(self) -> bool:
        """Return whether another server has called `settled` and not left: the kernel has not gone down since."""

    def settled(self) -> None:
        """Tell other servers that this one has settled the account of an earlier boot."""

    def leave(self) -> bool:
        """Stop counting as a server, unless no other one is there; return whether none is. Blocks, but never long.

        Invariant: of servers that call this one after the other, and start no more, the last one is told so.
        """
