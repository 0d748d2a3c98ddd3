"""The contract of a state store: where the records of uploads live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from tusd_py.core.clock import Clock
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.listing import EVERYTHING, Page, UploadFilter
from tusd_py.core.upload import Upload, UploadPart


class StateStore(Protocol):
    """Records by upload id. Every method may raise `StateUnavailable` or `StateFull`.

    A change is fenced: it is made only if the caller's token is not older than the record's and the record is still
    as the caller read it (same offset and status); otherwise `LockLost` is raised and nothing changes.
    With `durable`, a change survives a power cut once the call returns; without, it survives the death of the process.
    """

    @property
    def clock(self) -> Clock:
        """The clock that records are stamped with; all servers that share this store see the same time."""

    async def refresh_clock(self) -> None:
        """Have the clock tell the time as exactly as it can."""

    async def open(self) -> None:
        """Make the store ready; called once, before any other method."""

    async def close(self) -> None:
        """Let go of every resource."""

    async def create(self, upload: Upload, *, durable: bool = False) -> None:
        """Add a record; raises `UploadExists` if there is one with this id."""

    async def get(self, upload_id: str) -> Upload | None:
        """The record; raises `BrokenRecord` if it cannot be read."""

    async def update(
        self, before: Upload, after: Upload, token: int, *, parts: Sequence[UploadPart] = (), durable: bool = False
    ) -> Upload:
        """Replace `before` by `after`; returns the record as stored, with `token` as its token.

        The parts are added to the upload's ledger in the same step, in place of those with the same number. A complete
        upload has no ledger any more.
        """

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """The ledger of an upload, in the order of the numbers."""

    async def delete(self, upload_id: str, token: int) -> None:
        """Remove a record, also one that cannot be read; one that does not exist is fine.

        Raises `LockLost` for one with a newer token.
        """

    async def due(self, now: float, limit: int, *, skip: int = 0) -> Sequence[Upload]:
        """Uploads the sweeper has to look at: past their expiry, or left in the middle of finishing or ending.

        A final upload that waits (`Upload.is_waiting`) is due at its `expires_at`. Passes over the first `skip`.
        """

    async def add_waiting(self, partial_id: str, final_id: str) -> None:
        """Note that a final upload waits for a partial one. The notes are hints: they may be lost."""

    async def waiting_for(self, partial_id: str, limit: int) -> Sequence[str]:
        """The ids of final uploads that wait for a partial one, at most so many of them."""

    async def remove_waiting(self, partial_id: str, final_ids: Sequence[str]) -> None:
        """Forget that these final uploads wait for the partial one."""

    async def read_metadata(self, name: str) -> str | None:
        """A text that is kept beside the records."""

    async def write_metadata(self, name: str, value: str, *, before: str | None) -> bool:
        """Replace a text, which survives a power cut; False if it was not `before` (None: there was none)."""

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
        """Every record that can be read, in no particular order."""

    def broken(self) -> AsyncIterator[BrokenRecord]:
        """Every record that cannot be read: garbage in a field. `due` and `all` pass over them and tell the log."""


@runtime_checkable
class UpdatesInThreads(Protocol):
    """A state store whose records can be changed from any thread, such as the one that has just stored the bytes."""

    def get_in_thread(self, upload_id: str) -> Upload | None:
        """Do what `StateStore.get` does. Blocks."""

    def update_in_thread(self, before: Upload, after: Upload, token: int, *, durable: bool = False) -> Upload:
        """Do what `StateStore.update` does, for an upload that has no ledger. Blocks."""

    def update_after(
        self, store: Callable[[], tuple[Upload, Upload]], token: int, conclude: Callable[[Upload], object]
    ) -> asyncio.Future[Upload]:
        """In a thread of the store, call `store`, which returns a record and the one to put in its place.

        Then `conclude` is called with the new record, which is the result. An error of `store` is raised, and nothing
        is changed. Neither waits for a device.
        """


@runtime_checkable
class ReadsAtOnce(Protocol):
    """A store that reads a record in the time of a call, mostly."""

    def get_at_once(self, upload_id: str) -> Upload | None:
        """The record; None if there is none, or if it cannot be read without waiting. Raises `BrokenRecord`."""


@runtime_checkable
class SupportsIndexRepair(Protocol):
    """A state store that finds what is due by an index which it can lose."""

    async def repair_index(self) -> int:
        """Restore entries that were lost, if it is time to look for them; returns how many."""
