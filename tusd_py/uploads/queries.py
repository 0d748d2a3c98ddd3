"""Lists and totals of uploads for administrators, on every state store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from tusd_py.contracts.queries import SupportsQueries
from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.queries import (
    STORED_ORDERS,
    Counting,
    Position,
    QueryPage,
    Share,
    TopUploads,
    Totals,
    UploadQuery,
    matches_text,
    position_of,
)
from tusd_py.core.upload import Upload, is_upload_id

SLICE = 1000  # records that are looked at for a text at a time
MAX_LOOKED_AT = 10_000  # records that are looked at for one page
MAX_TIME = 0.2  # seconds after which a page of a search ends early
MAX_AGE = 10.0  # seconds for which totals are told again, fewer if they are counted quickly
COUNTING_SHARE = 0.05  # of the time that may go into counting, however often totals are asked for


@dataclass(frozen=True, slots=True)
class CountedTotals:
    """Totals, and when they were counted, in seconds since the epoch."""

    totals: Totals
    as_of: float


class RecordQueries:
    """The queries of the records of one store. Invariant: one slow query runs at a time."""

    def __init__(self, state: StateStore) -> None:
        self._state = state
        self._able = state if isinstance(state, SupportsQueries) else None
        self._slow = asyncio.Lock()
        self._counting = asyncio.Lock()
        self._counted: tuple[CountedTotals, float] | None = None  # with the monotonic time until which they are told

    async def prepare(self) -> None:
        """Have the store make what the queries need, such as indexes."""
        if self._able is not None:
            await self._able.prepare_queries()

    async def find(self, query: UploadQuery, text: str = "") -> QueryPage:
        """Return a page of uploads.

        Args:
            query: its `order` is one of `ORDERS`.
            text: leave out the uploads whose id, owner and metadata do not contain it, ignoring case. The id of an
                upload finds that one alone.
        """
        if text and is_upload_id(text) and query.after is None:
            upload = await self._get(text)
            if upload is not None and query.condition.matches(upload):
                return QueryPage((upload,), None)
        text = text.casefold()
        if query.order not in STORED_ORDERS:
            async with self._slow:
                return await self._scan(query, text)
        return await self._walk(query, text)

    async def _get(self, upload_id: str) -> Upload | None:
        try:
            return await self._state.get(upload_id)
        except BrokenRecord:
            return None

    async def _walk(self, query: UploadQuery, text: str) -> QueryPage:
        """Return a page of the uploads that contain a text, in an order that the store knows.

        The page is a short one if many records had to be looked at.
        """
        found: list[Upload] = []
        after, looked_at, deadline = query.after, 0, time.monotonic() + MAX_TIME
        while True:
            page = await self._find(replace(query, after=after, limit=SLICE if text else query.limit - len(found)))
            found += [upload for upload in page.uploads if not text or matches_text(upload, text)]
            if len(found) > query.limit:
                shown = found[: query.limit]
                return QueryPage(tuple(shown), position_of(shown[-1], query.order))
            after, looked_at = page.next, looked_at + max(1, len(page.uploads))
            ended = after is None or len(found) == query.limit
            if ended or looked_at >= MAX_LOOKED_AT or time.monotonic() > deadline:
                return QueryPage(tuple(found), after)

    async def _find(self, query: UploadQuery) -> QueryPage:
        if self._able is not None:
            return await self._able.find(query)
        async with self._slow:
            return await self._scan(query, "")

    async def _scan(self, query: UploadQuery, text: str) -> QueryPage:
        """Return a page after a look at all records."""
        top = TopUploads(query)
        async for upload in self._all():
            if not text or matches_text(upload, text):
                top.add(upload)
        return top.page()

    async def _all(self) -> AsyncIterator[Upload]:
        """Yield every record, each slice of a store with queries by the thread that it has for them."""
        if self._able is None:
            async for upload in self._state.all():
                yield upload
            return
        after: Position | None = None
        while True:
            page = await self._able.find(UploadQuery(order="id", descending=False, limit=SLICE, after=after))
            for upload in page.uploads:
                yield upload
            if page.next is None:
                return
            after = page.next
            await asyncio.sleep(0)  # others have their turn

    async def totals(self) -> CountedTotals:
        """Return the records in numbers, which may be `MAX_AGE` old."""
        async with self._counting:
            now = time.monotonic()
            if self._counted is None or now >= self._counted[1]:
                totals = await (self._count() if self._able is None else self._able.totals())
                ended = time.monotonic()
                until = ended + min(MAX_AGE, (ended - now) / COUNTING_SHARE)
                self._counted = CountedTotals(totals, self._state.clock.wall()), until
            return self._counted[0]

    async def _count(self) -> Totals:
        counting = Counting()
        async for upload in self._state.all():
            counting.add(upload.status, upload.owner, Share(1, upload.offset), upload.created_at)
        return counting.totals()
