"""The contract of a state store: the records of uploads.

Implement `StateStore`; the other protocols here are abilities that a store may have, recognised by their methods.
`tusd_py.testing.MemoryState` is a complete example, `tusd_py.testing.state_suite` has the tests.

**Fencing.** Every change carries the token of a lock. The comparison with the record and the change are one atomic
step, so that a request that has lost its lock, and does not know yet, changes nothing.

**Durability.** With `durable`, a change survives a power cut once the call has returned; without, it survives the
death of the process.

**Cancellation.** A cancelled change is made or is not made, now or a little later; nothing is made by halves.

**Threads.** All methods are called in the event loop, which they must not block, unless they say `Blocks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from tusd_py.core.clock import Clock
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.listing import EVERYTHING, Page, UploadFilter
from tusd_py.core.outbox import OutboxEvent
from tusd_py.core.quotas import Usage
from tusd_py.core.upload import Upload, UploadPart


class StateStore(Protocol):
    """Records by upload id. Every method may raise `StateUnavailable`, and those that add something `StateFull`.

    Example: a commit of the server::

        before = await state.get("24e533e02ec3bc40c387f1a0e460e216")
        lock = await locker.acquire(before.id, holder, timeout=10)
        after = await state.update(before, before.at(4096), lock.token, durable=True)
        assert after.token == lock.token
    """

    @property
    def clock(self) -> Clock:
        """The clock that records are stamped with. All servers that share this store see the same time."""

    async def ping(self) -> None:
        """Read from the store, for the readiness of the server. Raises `StateUnavailable` if that fails."""

    async def refresh_clock(self) -> None:
        """Set the clock as exactly as possible, such as by asking the database for its time."""

    async def open(self) -> None:
        """Make the store ready.

        Called once before any other method, and again after `close` if the server starts again.

        Raises:
            StateUnavailable: with one sentence for the operator; the server tries again.
        """

    async def close(self) -> None:
        """Release every resource. Called also after `open` has failed."""

    async def create(self, upload: Upload, *, durable: bool = False) -> None:
        """Add a record.

        Args:
            upload: the record. One that does not tell `updated_at` gets the time of `clock`.
            durable: wait until it survives a power cut.

        Raises:
            UploadExists: there is one with this id; it stays as it is.
        """

    async def get(self, upload_id: str) -> Upload | None:
        """Return the record, or None. Sees every change that any process has been told is made.

        Raises:
            BrokenRecord: it cannot be read.
        """

    async def update(
        self, before: Upload, after: Upload, token: int, *, parts: Sequence[UploadPart] = (), durable: bool = False
    ) -> Upload:
        """Replace a record, if it is still as the caller read it.

        Args:
            before: the record as read; its id, offset and status are compared, and by a store that may lose its last
                changes the length and the storage state, of which it may restore a length.
            after: the new record.
            token: the token of the lock, not older than that of the stored record.
            parts: parts to add to the part list in the same step, in place of those with the same numbers. A complete
                upload has no part list any more.
            durable: wait until the change survives a power cut.

        Returns:
            The record as stored: `after`, with `token` as its token and the time of `clock` as `updated_at`.

        Raises:
            LockLost: the record is another one by now, is gone, or has a newer token. Nothing changes.
        """

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """Return the part list of an upload, in the order of the numbers; empty for an unknown upload."""

    async def delete(self, upload_id: str, token: int) -> None:
        """Remove a record and its part list, also one that cannot be read; one that does not exist is no error.

        Raises:
            LockLost: the record has a newer token.
        """

    async def due(self, now: float, limit: int, *, skip: int = 0) -> Sequence[Upload]:
        """Return uploads that the sweeper has to look at.

        These are uploads past their expiry, and those left in the middle of finishing or ending. A final upload that
        waits (`Upload.is_waiting`) is due at its `expires_at`.

        Args:
            now: seconds since the epoch.
            limit: number of uploads at most.
            skip: number of due uploads to pass over.
        """

    async def add_waiting(self, partial_id: str, final_id: str) -> None:
        """Record that a final upload waits for a partial one. Such entries are hints: a store may lose them."""

    async def waiting_for(self, partial_id: str, limit: int) -> Sequence[str]:
        """Return the ids of final uploads that wait for a partial one, `limit` at most."""

    async def remove_waiting(self, partial_id: str, final_ids: Sequence[str]) -> None:
        """Remove the entries of these final uploads that wait for the partial one; unknown ids are no error."""

    async def read_metadata(self, name: str) -> str | None:
        """Return a text that the server keeps beside the records, such as the identity of the storage."""

    async def write_metadata(self, name: str, value: str, *, before: str | None) -> bool:
        """Replace a text durably, if it is still the one before.

        Args:
            name: the name of the text.
            value: the new text.
            before: the text as the caller knows it; None if there was none.

        Returns:
            False if it is another one by now; nothing changes then.
        """

    async def list(self, *, after: str = "", limit: int = 100, condition: UploadFilter = EVERYTHING) -> Page:
        """Return a page of the records that can be read, in the order of their ids.

        The cost depends on `limit` and `MAX_SCANNED`, not on the number of records. A record that exists from the
        first page to the last is listed once, whatever is created and removed meanwhile.

        Args:
            after: the cursor of the page before (`Page.after`); empty for the first page.
            limit: number of uploads of the page at most, from 1.
            condition: uploads that do not match it are passed over.
        """

    def all(self) -> AsyncIterator[Upload]:
        """Yield every record that can be read, in no particular order."""

    def broken(self) -> AsyncIterator[BrokenRecord]:
        """Yield an error for every record that cannot be read. `all`, `list` and `due` pass over them and log them."""


@runtime_checkable
class UpdatesInThreads(Protocol):
    """A state store whose records can be changed from any thread, such as the one that stored the bytes."""

    def get_in_thread(self, upload_id: str) -> Upload | None:
        """Do what `StateStore.get` does. Blocks."""

    def update_in_thread(
        self, before: Upload, after: Upload, token: int, *, durable: bool = False, events: Sequence[OutboxEvent] = ()
    ) -> Upload:
        """Do what `StateStore.update` does, for an upload without a part list, and store events. Blocks."""

    def update_after(
        self,
        store: Callable[[], tuple[Upload, Upload, Sequence[OutboxEvent]]],
        token: int,
        conclude: Callable[[Upload], object],
        *,
        new: Upload | None = None,
        new_events: Sequence[OutboxEvent] = (),
        durable: bool = False,
    ) -> asyncio.Future[Upload]:
        """Call `store` in a thread of the store, then commit, and call `conclude`.

        Invariant: the changes of other uploads do not wait long for a `store` or `conclude` that blocks.

        Args:
            store: stores bytes, and returns the record, the one to put in its place, and events to store with the
                change. Its error is raised, and nothing changes.
            token: the token of the lock.
            conclude: called with the new record after the commit.
            new: a record to add before `store` is called; it stays if `store` fails.
            new_events: events to store with the new record.
            durable: have the commit survive a power cut if the upload is complete.

        Returns:
            The future of the new record.
        """


@runtime_checkable
class ReadsAtOnce(Protocol):
    """A store that mostly reads a record within a function call."""

    def get_at_once(self, upload_id: str) -> Upload | None:
        """Return the record; None if there is none, or if reading it would have to wait.

        Raises:
            BrokenRecord: the record cannot be read.
        """


@runtime_checkable
class ReadsToChange(Protocol):
    """A store in which a change whose commit has failed may come back after a crash."""

    async def get_to_change(self, upload_id: str) -> Upload | None:
        """Return the record as `get` does, once no later one can come back: bytes beyond it may be cut off.

        Raises:
            StateUnavailable: a later one still can.
        """


@runtime_checkable
class SupportsQuotas(Protocol):
    """A state store that counts what each owner has, and refuses what exceeds a quota.

    `create` raises `QuotaExceeded` for a record that is over a quota that it names (`Upload.quota_bytes`,
    `Upload.quota_uploads`), and `update` for one that grows over its quota (`core.quotas.growth`): nothing changes.
    An update that completes a final upload sets `Upload.uncounted` of its partial uploads in the same step
    (`core.quotas.replaces_partials`); only what the final one has beyond those of its owner counts as growth. An
    update that ends a complete final upload takes that back in those that are left (`core.quotas.returns_partials`).

    Invariant: what is counted of each owner is the sum over its records (`core.quotas.counted_bytes`, `is_open`),
    also after a process has died. Records without a quota are counted too.
    """

    enforces_quotas: bool  # whether they refuse anything; records that are copied have been admitted before

    async def update(
        self,
        before: Upload,
        after: Upload,
        token: int,
        *,
        parts: Sequence[UploadPart] = (),
        durable: bool = False,
        partials_until: float | None = None,
    ) -> Upload:
        """Do what `StateStore.update` does.

        A change that completes a final upload lets its partial ones, which count no more, expire at `partials_until` if
        they expire later or never, in the same step: bytes that count for nobody do not stay.
        """

    async def usage_of(self, owner: str) -> Usage:
        """Return what an owner has now.

        The first call may count all records. Raises `StateUnavailable`, for good if the store cannot count with its
        configuration.
        """


@runtime_checkable
class SupportsIndexRepair(Protocol):
    """A state store that finds what is due by an index which it can lose."""

    async def repair_index(self) -> int:
        """Restore lost entries of the index, if it is time to look for them; return their number."""
