"""The contract of a locker: who may write to an upload."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tusd_py.core.upload import Upload


class LockHolder(Protocol):
    """Receives the messages of a locker for the holder of a lock. The calls return at once; the holder acts on them."""

    def release_requested(self) -> None:
        """Another request wants to write: stop reading, commit what is there, release."""

    def commit_requested(self) -> None:
        """Another request wants to know the offset: commit what is there and go on."""

    def lock_lost(self) -> None:
        """The lock is, or may be, somebody else's: write nothing more, not even what is there."""


class Lock(Protocol):
    """A lock that is held. `token` is larger than that of every earlier holder of the same upload."""

    @property
    def upload_id(self) -> str: ...

    @property
    def token(self) -> int: ...

    @property
    def unreleased_predecessors(self) -> int:
        """Number of earlier holders that did not release the lock; each may be alive and believe that it holds it."""

    @property
    def record(self) -> Upload | None:
        """The record as it was when the lock was obtained, if the locker has seen it."""

    async def raise_token(self, token: int) -> None:
        """Have a token larger than this one, which the record has: the locker may have lost count."""

    async def release(self) -> None:
        """Let the next request in; calling it twice is fine."""


class Locker(Protocol):
    """Exclusive locks by upload id. A lock dies with the process that holds it."""

    async def open(self) -> None:
        """Make the locker ready; called once, before any other method."""

    async def close(self) -> None:
        """Let go of every resource."""

    async def acquire(self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False) -> Lock:
        """Take the lock within `timeout` seconds, asking its holder to release it meanwhile.

        A timeout of zero tries once and disturbs nobody. A caller who is going to remove something (`to_remove`) gets
        the lock even where there is no room for anything new. Raises `LockTimeout`, `StateFull`.
        """

    def request_commit(self, upload_id: str) -> AbstractAsyncContextManager[int]:
        """Ask the holder to commit its bytes, for as long as the context lasts.

        The value is the number of commits to wait for until one is sure to have begun after this call: 0 if nobody
        holds the lock, 1 if the holder is told once, 2 if it is told again and again while somebody asks, so that
        the first may be one that an earlier caller asked for.
        """

    async def is_held(self, upload_id: str) -> bool:
        """Whether anybody, in whatever process, holds the lock now."""
