"""The servers of a world: started, killed, shut down and started again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel

from tests.simulation.loop import SimulatedLoop
from tests.simulation.machine import Machine, Process
from tests.simulation.moments import START
from tusd_py import TusServer
from tusd_py.asyncutil.futures import settle
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.core.errors import UploadError
from tusd_py.settings.model import Settings
from tusd_py.settings.sources import cross_check

START_PATIENCE = 90.0  # seconds
LINGERING = (0.0, 2.0, 30.0)  # seconds that a process may live on after the shutdown of its server
REQUEST_PATIENCE = 20.0  # seconds that a request may go on after the end of the shutdown


class Host:
    """The place of one process, which is started again whenever it has ended."""

    def __init__(
        self,
        machine: Machine,
        loop: SimulatedLoop,
        rng: Random,
        settings: Callable[[], dict[str, Any]],
        log: Callable[[str], None],
        components: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """`settings` returns those of the next life, `components` what they do not choose."""
        self.rng = rng
        self.machine = machine
        self.loop = loop
        self.settings = settings
        self.log = log
        self.components = components
        self.is_administrated: Callable[[], bool] = lambda: False  # whether the next life is prepared for queries
        self.lives = 0
        self.process: Process | None = None
        self.server: TusServer | None = None
        self.is_up = False
        self.is_starting = False
        self.leftovers: list[str] = []
        self._lingering: list[Process] = []  # applications that live on after the shutdown of their server
        self._ending: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Start a process, again and again until it serves."""
        self.is_starting = True
        try:
            await self._start_until_up()
        finally:
            self.is_starting = False

    async def _start_until_up(self) -> None:
        while True:
            self.lives += 1
            process = self.process = Process(self.machine, self.lives)
            starting = self.loop.create_task(self._start(process), context=process.context.copy())
            died = self.loop.create_future()
            process.on_death.append(functools.partial(settle, died, None, None))
            await asyncio.wait((starting, died), return_when=asyncio.FIRST_COMPLETED)
            if process.alive and starting.done() and (error := starting.exception()) is None:
                self.is_up = True
                self.log(f"process {process.name} serves")
                process.context.copy().run(self.machine.files.moments.note, START)
                return
            if process.alive:
                self.log(f"process {process.name} could not start: {error!r}")
                if not isinstance(error, UploadError):
                    raise error
                self._end(process)
            await asyncio.sleep(1.0)

    async def _start(self, process: Process) -> None:
        settings = _settings(upload_dir=Path(self.machine.files.top), **self.settings())
        server = TusServer(settings, **self.components())
        server.is_administrated = self.is_administrated()
        await server.startup()
        self.server = server

    async def record_ids(self) -> set[str]:
        """Return the ids of all records."""
        process, server = self.process, self.server
        if process is None or server is None or not self.is_up:
            return set()

        async def read() -> set[str]:
            return {upload.id async for upload in server.service.state.all()}

        while True:
            try:
                return await self.loop.create_task(read(), context=process.context.copy())  # type: ignore[no-any-return]
            except UploadError:  # a sync that failed before is reported only now
                await asyncio.sleep(1.0)

    def _end(self, process: Process) -> None:
        """End a process, and abandon the records that it had open, unless another one on the machine uses them."""
        if process.alive:
            process.end()
            for database in list(self.machine.databases.values()):
                database.end_of(process)

    def end_lingering(self) -> None:
        """End the applications that live on after the shutdown of their server."""
        while self._lingering:
            self._end(self._lingering.pop())

    def kill(self) -> None:
        """End the process at once, and start it again a little later."""
        if self.process is None or not self.process.alive:
            return
        self.log(f"process {self.process.name} is killed")
        self.is_up = False
        self._end(self.process)

    async def shut_down(self) -> None:
        """End the process as SIGTERM does, and note what it leaves behind."""
        process, server = self.process, self.server
        if process is None or server is None or not self.is_up:
            return
        self.log(f"process {process.name} shuts down")
        self.is_up = process.accepts_requests = False
        began = self.loop.now
        ending = self.loop.create_task(server.shutdown(), context=process.context.copy())
        await asyncio.wait((ending,), timeout=START_PATIENCE)
        try:
            if process.alive and ending.done():
                ending.result()
                if self.loop.now - began < server.settings.shutdown_grace:  # else a step of the storage hangs
                    self._note_work(process)
                    await self._requests_end(process)
                    if process.alive:
                        self._note_leftovers(process, server)
        finally:
            if self.process is process:
                self.process = None
            self._lingering.append(process)
            self.loop.call_later(self.rng.choice(LINGERING), self._end, process)

    async def _requests_end(self, process: Process) -> None:
        """Wait for requests whose clients are slow to leave, and for threads that close what these had open."""
        end = self.loop.now + REQUEST_PATIENCE
        while process.is_running and self.loop.now < end:
            if not (self.loop.tasks_of(process) or process.descriptors):
                return
            await asyncio.sleep(0.1)

    def _note_work(self, process: Process) -> None:
        """Note work under locks that goes on after the shutdown."""
        names = [getattr(task.get_coro(), "__qualname__", "") for task in self.loop.tasks_of(process)]
        if "LockedWork._hold" in names:
            self.leftovers.append(f"{process.name}: work under a lock goes on after the shutdown")

    def _note_leftovers(self, process: Process, server: TusServer) -> None:
        if server.service.budget.used:
            self.leftovers.append(f"{process.name}: {server.service.budget.used} bytes of the budget are not returned")
        storage: Any = server.service.storage
        if isinstance(storage, S3Storage) and (held := storage._memory.used - storage._memory._cached_size):
            self.leftovers.append(f"{process.name}: {held} bytes of parts are not returned")
        for opened in process.descriptors.values():
            self.leftovers.append(f"{process.name}: file {opened.inode.number} stays open")
        for task in self.loop.tasks_of(process):
            name = getattr(task.get_coro(), "__qualname__", "")
            self.leftovers.append(f"{process.name}: the task {name} is still there")


def _settings(**values: Any) -> Settings:
    """Return settings, those of the same values once only, since their checks take their time."""
    key = tuple(sorted((name, str(value)) for name, value in values.items()))
    if key not in _known_settings:
        settings = _known_settings[key] = Settings.__new__(Settings)
        BaseModel.__init__(settings, **values)  # without the look at variables, which takes fifteen times as long
        cross_check(settings)
    return _known_settings[key]


_known_settings: dict[tuple[tuple[str, str], ...], Settings] = {}
