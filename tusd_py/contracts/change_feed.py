"""The contract of a change feed: changes of uploads on their way from the process that makes them to those that listen.

Interests go to the publishers, not changes to everybody: a process tells the others what it wants to hear of, and one
that changes an upload sends only that, and only to it. So nothing is sent while nobody listens.

**Loss.** Every change may be lost; the receiver compares with the records. Nothing may be delivered twice in a way that
matters: a change tells its token and time.

**Threads.** All methods are called in the event loop and must not block it.
"""

from __future__ import annotations

from typing import Protocol

from tusd_py.core.progress import Change, Interests


class FeedReceiver(Protocol):
    """The part of a server that a feed tells of changes."""

    def changed(self, change: Change) -> None:
        """Take a change that another process has made."""

    def lost_changes(self) -> None:
        """Compare with the records: changes have been lost."""

    def interest_changed(self) -> None:
        """Take note that other processes have begun or ceased to want changes."""


class ChangeFeed(Protocol):
    """The feed of one process."""

    @property
    def works(self) -> bool:
        """Whether changes of all other processes come; if not, the records are compared more often."""

    @property
    def is_wanted(self) -> bool:
        """Whether another process wants any changes."""

    def wants(self, upload_id: str, owner: str) -> bool:
        """Return whether another process wants the changes of this upload."""

    async def open(self, receiver: FeedReceiver) -> None:
        """Begin. A feed that cannot work logs why, and raises nothing."""

    async def close(self) -> None:
        """End; called also if `open` was not."""

    def want(self, interests: Interests) -> None:
        """Tell the other processes what this one wants, in place of what it has wanted before."""

    def publish(self, change: Change) -> None:
        """Send a change to those that want it, now or never; returns at once."""
