"""Contracts of questions of administrators: optional abilities of a state store.

A store without them is asked by reading all its records, which takes a time that grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tusd_py.core.history import HistoryEntry
from tusd_py.core.queries import QueryPage, Totals, UploadQuery


@runtime_checkable
class SupportsQueries(Protocol):
    """A state store that finds and counts records without reading all of them.

    Invariant: changes of records do not wait for these methods. They are called in the event loop, which they must not
    block, and may raise `StateUnavailable`.
    """

    async def prepare_queries(self) -> None:
        """Make what the queries need, such as indexes, for good.

        Called after `open` by a server that is administrated. Records that are added later, by any server, are found
        too; those of servers of an earlier version perhaps only after a while.
        """

    async def find(self, query: UploadQuery) -> QueryPage:
        """Return a page of the records that can be read.

        A record that exists, with the same value of `UploadQuery.order`, from the first page to the last is listed
        once, whatever is created, changed and removed meanwhile.

        Args:
            query: its `order` is one of `STORED_ORDERS`.
        """

    async def totals(self) -> Totals:
        """Count the records."""


@runtime_checkable
class SupportsHistory(Protocol):
    """A state store that keeps the history of uploads beside their records."""

    async def add_history(self, upload_id: str, entry: HistoryEntry) -> None:
        """Add an entry to an upload that has a record; the newest `MAX_ENTRIES` of each are kept.

        May be called for an upload without a record, and raise `StateUnavailable`: nothing is added then.
        """

    async def history(self, upload_id: str) -> Sequence[HistoryEntry]:
        """Return the entries of an upload, the oldest first; none for an unknown one.

        The history is removed with the record.
        """
