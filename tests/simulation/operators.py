"""Operators and the code of applications, which ask servers beside the clients: lists, checks, sweeps, events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from tusd_py import TusServer
from tusd_py.core.errors import UploadError
from tusd_py.core.listing import UploadFilter
from tusd_py.core.upload import Status
from tusd_py.sinks import outbox_of
from tusd_py.uploads.identity import IdentityCheck
from tusd_py.uploads.sweeping import OrphanCleaner, Sweeper

if TYPE_CHECKING:
    from tests.simulation.world import World

Task = Callable[[TusServer], Awaitable[object]]

PATIENCE = 60.0  # seconds for one task of an operator
REMOVES = 0.03  # share of the tasks that remove an upload


class Operator:
    """One operator with a task now and then, each on behalf of one process that serves."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self._tasks: Sequence[Task] = (
            self._list,
            self._check,
            self._read,
            self._sweep,
            self._adopt,
            self._events,
            self._expired,
            self._orphans,
        )

    def _draw(self) -> Task:
        return self._remove if self.rng.random() < REMOVES else self.rng.choice(self._tasks)

    async def live(self) -> None:
        """Do one thing after the other until the faults end."""
        while not self.world.is_calm:
            await asyncio.sleep(self.rng.random() * 6)
            host = self.world.host_for(self.rng)
            if host is None or host.process is None or host.server is None or host.process.paused:
                continue
            doing = self.world.loop.create_task(
                self._do(self._draw(), host.server), context=host.process.context.copy()
            )
            await asyncio.wait((doing,), timeout=PATIENCE)

    async def _do(self, task: Task, server: TusServer) -> None:
        try:
            await task(server)
            self.world.count(f"{task.__name__.strip('_')} of an operator")
        except UploadError:  # as any task may be refused while something is away
            pass
        except Exception as error:  # a defect
            self.world.complain(f"an operator ({task.__name__.strip('_')}) meets {error!r}")

    async def _list(self, server: TusServer) -> None:
        """Page through all uploads, which must come in order and once."""
        service = server.service
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

    async def _check(self, server: TusServer) -> None:
        """Ask what `/readyz` asks."""
        service = server.service
        await service.check()
        assert isinstance(service.health.limitations, list | tuple)

    async def _read(self, server: TusServer) -> None:
        """Read the bytes of complete uploads, as an application does."""
        service = server.service
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

    async def _sweep(self, server: TusServer) -> None:
        await Sweeper(server.service).sweep(lambda sentence: self.world.log(f"a sweep: {sentence}"))

    async def _expired(self, server: TusServer) -> None:
        async for upload in Sweeper(server.service).expired():
            if upload.status is Status.COMPLETE and not self.world.oracle.retention and not upload.is_partial:
                self.world.complain(f"the complete upload {upload.id[:8]} counts as expired")

    async def _adopt(self, server: TusServer) -> None:
        """Join the records and their storage, as `tusd-py adopt-storage` does, while nothing is away."""
        if not self.world.machine.files.is_away:
            await IdentityCheck(server.service.state, server.service.storage).adopt()

    async def _orphans(self, server: TusServer) -> None:
        await OrphanCleaner(server.service).clean(older_than=0, dry_run=True)

    async def _events(self, server: TusServer) -> None:
        """Look at the events that wait, and have them sent again."""
        outbox = outbox_of(server.service.state)
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

    async def _remove(self, server: TusServer) -> None:
        """Remove an upload, as an application does."""
        service = server.service
        candidates = [upload for upload in self.world.oracle.uploads if upload.kind != "partial"]
        if candidates:
            upload = self.rng.choice(candidates)
            upload.may_be_gone = upload.is_ending = True
            self.world.oracle.ended.add(upload.id)
            self.world.log(f"an operator removes upload {upload.number}")
            await service.terminate(upload.id)
