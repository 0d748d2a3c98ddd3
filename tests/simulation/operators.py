"""Operators and the code of applications, which ask servers beside the clients: lists, checks, sweeps, events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

from tusd_py.core.errors import UploadError
from tusd_py.core.listing import UploadFilter
from tusd_py.core.upload import Status
from tusd_py.sinks import outbox_of
from tusd_py.uploads.identity import IdentityCheck
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import OrphanCleaner, Sweeper

if TYPE_CHECKING:
    from tests.simulation.world import World

PATIENCE = 60.0  # seconds for one task of an operator
REMOVES = 0.03  # share of the tasks that remove an upload


class Operator:
    """One operator with a task now and then, each on behalf of one process that serves."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self._tasks: tuple[Callable[[UploadService], Awaitable[object]], ...] = (
            self._list,
            self._check,
            self._read,
            self._sweep,
            self._adopt,
            self._events,
            self._expired,
            self._orphans,
        )

    async def live(self) -> None:
        """Do one thing after the other until the faults end."""
        while not self.world.is_calm:
            await asyncio.sleep(self.rng.random() * 6)
            host = self.world.host_for(self.rng)
            if host is None or host.process is None or host.server is None or host.process.paused:
                continue
            task = self._remove if self.rng.random() < REMOVES else self.rng.choice(self._tasks)
            doing = self.world.loop.create_task(
                self._do(task, host.server.service), context=host.process.context.copy()
            )
            await asyncio.wait((doing,), timeout=PATIENCE)

    async def _do(self, task: Callable[[UploadService], Awaitable[object]], service: UploadService) -> None:
        try:
            await task(service)
        except UploadError:  # as any task may be refused while something is away
            pass
        except Exception as error:  # a defect
            self.world.complain(f"an operator ({task.__name__.strip('_')}) meets {error!r}")

    async def _list(self, service: UploadService) -> None:
        """Page through all uploads, which must come in order and once."""
        condition = self.rng.choice((UploadFilter(), UploadFilter(status=Status.COMPLETE), UploadFilter(owner="")))
        after: str | None = ""
        seen: list[str] = []
        while after is not None:
            page = await service.list(after=after, limit=self.rng.choice((1, 2, 100)), condition=condition)
            seen += [upload.id for upload in page.uploads]
            after = page.after
        if seen != sorted(set(seen)):
            self.world.complain(f"a list has the uploads {seen}")
        await service.count()
        if [broken async for broken in service.broken()]:
            self.world.complain("a record cannot be read")

    async def _check(self, service: UploadService) -> None:
        """Ask what `/readyz` asks."""
        await service.check()
        assert isinstance(service.health.limitations, list | tuple)

    async def _read(self, service: UploadService) -> None:
        """Read the bytes of complete uploads, as an application does."""
        for upload in (await service.list(after="", limit=100, condition=UploadFilter())).uploads:
            service.downloads.path(upload)
            if not upload.is_complete:
                continue
            complete = await service.get_completed(upload.id)
            start = self.rng.randrange(complete.offset + 1)
            size = sum([len(piece) async for piece in service.downloads.read(complete, start, complete.offset)])
            if size != complete.offset - start:
                self.world.complain(f"{size} bytes of upload {upload.id[:8]} are read from {start} on")
            await service.downloads.whole_file(complete)
            opened = await service.downloads.open_file(complete)
            if opened is not None:
                opened.close()

    async def _sweep(self, service: UploadService) -> None:
        await Sweeper(service).sweep(lambda sentence: self.world.log(f"a sweep: {sentence}"))

    async def _expired(self, service: UploadService) -> None:
        async for upload in Sweeper(service).expired():
            if upload.status is Status.COMPLETE and not self.world.oracle.retention and not upload.is_partial:
                self.world.complain(f"the complete upload {upload.id[:8]} counts as expired")

    async def _adopt(self, service: UploadService) -> None:
        """Join the records and their storage, as `tusd-py adopt-storage` does, while nothing is away."""
        if not self.world.machine.files.is_away:
            await IdentityCheck(service.state, service.storage).adopt()

    async def _orphans(self, service: UploadService) -> None:
        await OrphanCleaner(service).clean(older_than=0, dry_run=True)

    async def _events(self, service: UploadService) -> None:
        """Look at the events that wait, and have them sent again."""
        outbox = outbox_of(service.state)
        after, found = "", []
        while True:
            page = await outbox.deliveries(after, self.rng.choice((1, 3, 100)))
            found += [delivery.event.id for delivery in page.deliveries]
            after = page.after
            if not after:
                break
        for event_id in found[:2]:
            await outbox.find_event(event_id)
        await outbox.retry(found[:3] if self.rng.random() < 0.5 else None)

    async def _remove(self, service: UploadService) -> None:
        """Remove an upload, as an application does."""
        candidates = [upload for upload in self.world.oracle.uploads if upload.kind != "partial"]
        if candidates:
            upload = self.rng.choice(candidates)
            upload.may_be_gone = upload.is_ending = True
            self.world.oracle.ended.add(upload.id)
            self.world.log(f"an operator removes upload {upload.number}")
            await service.terminate(upload.id)
