"""Administrators, who find and show uploads, count them, and end or complete them before their time."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.operators import Operator, Task
from tests.simulation.oracle import Expected
from tusd_py import TusServer
from tusd_py.core.listing import EVERYTHING, UploadFilter
from tusd_py.core.queries import ORDERS, UploadQuery, decode_cursor, encode_cursor, position_of, rank
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.sweeping import OrphanCleaner

if TYPE_CHECKING:
    from tests.simulation.world import World

ENDS = 0.2  # share of the tasks that end an upload, or complete it
LASTING_ORDERS = ("created_at", "id", "client", "concatenation")  # by what never changes, so that no upload is missed
LIMITS = (1, 2, 100)  # uploads of a page


class Administrator(Operator):
    """One administrator with a task now and then, on a server that is prepared for them or not."""

    def __init__(self, world: World, rng: Random) -> None:
        super().__init__(world, rng)
        self._tasks: Sequence[Task] = (
            self._find,
            self._find,
            self._search,
            self._show,
            self._count,
            self._orphans,
        )
        self._ends: Sequence[Task] = (self._remove, self._expire, self._complete, self._complete)

    def _draw(self) -> Task:
        return self.rng.choice(self._ends if self.rng.random() < ENDS else self._tasks)

    # Questions.

    async def _find(self, server: TusServer) -> None:
        """Page through all uploads, those of one owner or those that are complete, in any order."""
        order = self.rng.choice((*ORDERS, *LASTING_ORDERS))
        owner = self.rng.choice(("", *self.world.owners))
        condition = self.rng.choice((EVERYTHING, UploadFilter(owner=owner), UploadFilter(status=Status.COMPLETE)))
        query = UploadQuery(condition, order, descending=self.rng.random() < 0.5, limit=self.rng.choice(LIMITS))
        lasting, losses = self._lasting(condition), self.world.oracle.losses
        found = await self._pages(server, query, "")
        if order in LASTING_ORDERS:
            self._check_pages(found, query)
            self._check_complete(found, lasting, losses)

    async def _search(self, server: TusServer) -> None:
        """Search an upload by its id or by the beginning of it."""
        uploads = [upload for upload in self.world.oracle.uploads if upload.id]
        if not uploads:
            return
        upload = self.rng.choice(uploads)
        text = upload.id[: self.rng.choice((6, 12, 100))].upper() if self.rng.random() < 0.5 else upload.id
        lasting = [each for each in self._lasting(EVERYTHING) if each is upload]
        losses = self.world.oracle.losses
        query = UploadQuery(order=self.rng.choice(LASTING_ORDERS), limit=self.rng.choice(LIMITS))
        self._check_complete(await self._pages(server, query, text), lasting, losses)

    async def _pages(self, server: TusServer, query: UploadQuery, text: str) -> list[Upload]:
        """Return the uploads of all pages of a list, each of which leads to the next one by a cursor."""
        found: list[Upload] = []
        while True:
            page = await server.queries.find(query, text)
            if len(page.uploads) > query.limit:
                self.world.complain(f"a page of {query.limit} uploads has {len(page.uploads)}")
            found += page.uploads
            if page.next is None:
                return found
            cursor = encode_cursor(query, page.next)
            after = decode_cursor(cursor, query.order, descending=query.descending)
            query = UploadQuery(query.condition, query.order, query.descending, query.limit, after)

    def _lasting(self, condition: UploadFilter) -> list[Expected]:
        """Return the uploads that a list with this condition has, unless something ends them."""
        if not self.world.keeps_every_record:
            return []
        found = []
        for upload in self.world.oracle.uploads:
            is_of_owner = condition.owner is None or self.world.owner_of(upload) == condition.owner
            if is_of_owner and (condition.status is None or upload.complete) and self._is_lasting(upload):
                found.append(upload)
        return found

    def _is_lasting(self, upload: Expected) -> bool:
        self.world.oracle.note_expiry(upload)
        return not (upload.may_be_gone or upload.is_gone)

    def _check_pages(self, found: Sequence[Upload], query: UploadQuery) -> None:
        """Check that a list by what never changes has its uploads in order and once."""
        if len({upload.id for upload in found}) != len(found) and self.world.keeps_every_record:
            self.world.complain(f"a list by {query.order} has an upload twice: {[upload.id for upload in found]}")
        ranks = [rank(position_of(upload, query.order)) for upload in found]
        if ranks != sorted(ranks, reverse=query.descending) and self.world.keeps_every_record:
            self.world.complain(f"a list by {query.order} is out of order: {ranks}")

    def _check_complete(self, found: Sequence[Upload], lasting: Sequence[Expected], losses: int) -> None:
        """Check that a list misses no upload that was there all the time."""
        if losses != self.world.oracle.losses or not self.world.keeps_every_record:
            return
        ids = {upload.id for upload in found}
        for upload in lasting:
            if upload.id not in ids and self._is_lasting(upload):
                self.world.complain(f"a list misses upload {upload.number} ({upload.id[:8]})")

    async def _show(self, server: TusServer) -> None:
        """Look at an upload, also one that has ended, with its lock and its history."""
        upload = self._choose()
        if upload is None:
            return
        losses, floor = self.world.oracle.losses, upload.floor
        is_lasting = bool(self._lasting(EVERYTHING)) and self._is_lasting(upload)
        record = await server.service.find(upload.id)
        if losses == self.world.oracle.losses and is_lasting and self._is_lasting(upload):
            if record is None:
                self.world.complain(f"upload {upload.number} is not shown")
            elif record.offset < floor and upload.kind != "final":
                self.world.complain(f"upload {upload.number} is shown at {record.offset}, after {floor} bytes")
        if record is None:
            return
        await server.service.locker.is_held(upload.id)
        times = [entry.time for entry in await server.history.of(record)]
        if not times or times != sorted(times):
            self.world.complain(f"the history of upload {upload.number} has the times {times}")

    async def _count(self, server: TusServer) -> None:
        """Ask for totals, and for the locks of the process."""
        totals = (await server.queries.totals()).totals
        by_status, by_owner = (
            (sum(share.count for share in shares), sum(share.bytes for share in shares))
            for shares in (totals.by_status.values(), totals.by_owner.values())
        )
        if by_status != by_owner:  # there are fewer owners than totals tell of
            self.world.complain(f"the totals are {by_status} by status, and {by_owner} by owner")
        for held in server.service.held_locks:
            await server.service.locker.is_held(held.upload_id)

    async def _orphans(self, server: TusServer) -> None:
        await OrphanCleaner(server.service).clean(older_than=self.rng.choice((0.0, 86400.0)), dry_run=True)

    # Ends.

    def _choose(self) -> Expected | None:
        candidates = [upload for upload in self.world.oracle.uploads if upload.kind != "partial"]
        return self.rng.choice(candidates) if candidates else None

    async def _expire(self, server: TusServer) -> None:
        """Expire an upload, which does nothing to one that is complete."""
        upload = self._choose()
        if upload is None:
            return
        self.world.log(f"an administrator expires upload {upload.number}")
        losses = self.world.oracle.losses
        upload.may_be_expired = True
        self.world.oracle.note_expiry(upload)
        if not upload.complete:
            self.world.oracle.ended.add(upload.id)
        await server.service.expire(upload.id)
        self.world.log(f"upload {upload.number} is expired")
        record = await server.service.find(upload.id)
        if losses == self.world.oracle.losses and record is not None and not record.has_ended:
            self.world.complain(f"upload {upload.number} was expired, and is still there")

    async def _complete(self, server: TusServer) -> None:
        """Complete an abandoned upload of unknown length at its offset; refused for every other one."""
        uploads = [upload for upload in self.world.oracle.uploads if upload.kind == ""]
        deferred = [upload for upload in uploads if upload.deferred and not upload.declared]
        candidates = deferred if deferred and self.rng.random() < 0.8 else uploads
        if not candidates:
            return
        upload = self.rng.choice(candidates)
        self.world.log(f"an administrator completes upload {upload.number}")
        losses, floor = self.world.oracle.losses, upload.floor
        is_known = not upload.deferred
        upload.may_be_completed = upload.may_be_completed or upload.deferred
        completed = await server.service.complete(upload.id)
        self.world.log(f"upload {upload.number} is completed at {completed.offset}")
        server.history.add("completed", completed)
        if losses != self.world.oracle.losses:
            return
        if is_known:
            self.world.complain(f"upload {upload.number} of a known length is completed")
        if completed.length != completed.offset or completed.offset < floor or not completed.is_complete:
            text = f"is completed with {completed.offset} bytes of {completed.length}, after {floor}"
            self.world.complain(f"upload {upload.number} {text}")


async def check_totals(server: TusServer, records: Sequence[Upload]) -> str:
    """Return a sentence if the totals are not the sums over the records, which nobody changes; empty if they are."""
    totals = (await server.queries.totals()).totals
    for status in Status:
        own = [upload for upload in records if upload.status is status]
        share = totals.by_status.get(status)
        told = (0, 0) if share is None else (share.count, share.bytes)
        if told != (len(own), sum(upload.offset for upload in own)):
            return f"the totals of uploads that are {status} are {told}, and there are {len(own)}"
    return ""
