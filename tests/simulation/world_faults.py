"""The faults of a run: they come at their times or moments, and hit processes, machines, files or the network."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.faults import Fault
from tests.simulation.loop import PROCESS, SimulatedLoop
from tests.simulation.machine import Machine
from tests.simulation.moments import CHANGE, FAILED_SYNC, Moments
from tests.simulation.oracle import Oracle
from tests.simulation.servers import Host
from tusd_py.core.errors import UploadError
from tusd_py.uploads.sweeping import OrphanCleaner


class FaultyWorld:
    """The part of a world that has faults happen, and starts again what they have ended.

    Attributes:
        faults: all of the run, in the order of their times; those with a number in `left_out` do not happen.
        calm: set when no more faults happen: everything must work.
        orphans_possible: whether a fault may have left files that no record names.
    """

    period: float
    loop: SimulatedLoop
    machine: Machine
    machines: Sequence[Machine]
    hosts: Sequence[Host]
    oracle: Oracle
    faults: list[Fault]
    left_out: set[int]
    calm: asyncio.Event
    orphans_possible: bool
    story: list[str]
    violations: list[str]
    counts: dict[str, int]
    _restarts: set[asyncio.Task[None]]

    # The records for the report.

    def log(self, text: str) -> None:
        self.story.append(f"{self.loop.now - 1000:10.4f}  {text}")

    def complain(self, text: str) -> None:
        self.violations.append(text)
        self.log(f"VIOLATION: {text}")

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def is_calm(self) -> bool:
        return self.calm.is_set()

    @property
    def moments(self) -> Moments:
        return self.machine.files.moments

    # Faults.

    async def _inject(self) -> None:
        begin = self.loop.now
        for fault in self.faults:
            await asyncio.sleep(max(0.0, begin + fault.at - self.loop.now))
            if fault.number not in self.left_out:
                self.log(str(fault))
                self.count(fault.kind)
                self._apply_when_due(fault)
        await asyncio.sleep(max(0.0, begin + self.period - self.loop.now))

    def _apply_when_due(self, fault: Fault) -> None:
        apply = functools.partial(self._apply_next, fault)
        if fault.moment:
            then = functools.partial(self._wait_for_changes, fault) if fault.changes else apply
            self.moments.wait(fault.moment, 1, then)
        elif fault.changes:
            self._wait_for_changes(fault)
        else:
            self._apply(fault)

    def _wait_for_changes(self, fault: Fault) -> None:
        self.moments.wait(CHANGE, fault.changes, functools.partial(self._apply_next, fault))

    def _apply_next(self, fault: Fault) -> None:
        """Apply a fault whose moment has come in a call of a process, before that call ends if it can be."""
        caller = PROCESS.get()
        targets = [number for number, host in enumerate(self.hosts) if host.process is caller]
        due = replace(fault, target=targets[0]) if targets else fault

        def apply() -> None:
            if not self.is_calm:
                self.log(f"now fault {fault.number}")
                self._apply(due)

        self.loop.call_next(apply)

    def _apply(self, fault: Fault) -> None:
        host = self.hosts[fault.target % len(self.hosts)]
        if fault.kind == "kill":
            host.kill()
            self._start_later(host, fault.seconds)
        elif fault.kind == "power cut":
            self.power_cut(fault.seconds)
        elif fault.kind == "power off":
            self._track(asyncio.ensure_future(self._power_off(fault.seconds)))
        elif fault.kind == "pause" and host.process is not None:
            host.process.pause()
            self.loop.call_later(fault.seconds, host.process.go_on)
        elif fault.kind == "shutdown":
            self._track(asyncio.ensure_future(self._restart(host, fault.seconds)))
        elif fault.kind == "sync kills":
            self.machine.files.failing_syncs += 1
            self._apply_when_due(replace(fault, kind="kill", moment=FAILED_SYNC, changes=0))
        elif fault.kind == "clock":
            host.machine.clock_error += (fault.amount - 0.5) * 10 ** (2 + fault.seconds % 6)
        else:
            self._apply_to_files(fault)

    def _apply_to_files(self, fault: Fault) -> None:
        files = self.machine.files
        if fault.kind == "stall":
            files.stalled_until = max(files.stalled_until, self.loop.now + fault.seconds * 2)
        elif fault.kind == "hang":
            files.hang_seconds = fault.seconds
        elif fault.kind == "sync fails":
            files.failing_syncs += 1 + int(fault.amount * 3)
        elif fault.kind == "record sync fails":
            files.failing_record_syncs += 1 + int(fault.amount * 2)
        elif fault.kind == "write fails":
            files.failing_writes += 1 + int(fault.amount * 3)
        elif fault.kind == "full":
            files.is_full = True
            self.loop.call_later(fault.seconds, setattr, files, "is_full", False)
        elif fault.kind == "away":
            self._unmount(fault.seconds)

    async def _power_off(self, seconds: float) -> None:
        """Shut all servers down, and take the power once they have ended."""
        for host in self.hosts:
            await host.shut_down()
        self.power_cut(seconds)

    def _unmount(self, seconds: float) -> None:
        """Show an empty folder in place of the files; only while the servers run, whose records are open."""
        self.machine.files.is_away = True
        self.loop.call_later(seconds, setattr, self.machine.files, "is_away", False)

    def power_cut(self, seconds: float) -> None:
        """Take the power from all machines and their disk."""
        files = self.machine.files
        for host in self.hosts:
            host.kill()
            host.end_lingering()
        for machine in self.machines:
            for database in list(machine.databases.values()):
                database.abandon()
            machine.boots += 1
            machine.booted_at = self.loop.now
        files.power_cut()
        files.stalled_until = 0.0
        files.is_away = files.is_full = False
        files.stop_failing()
        files.hang_seconds = 0.0
        self.orphans_possible = True
        self.oracle.lost_unsynced(records=True)
        for host in self.hosts:
            self._start_later(host, seconds)

    # Starts after faults.

    def _track(self, task: asyncio.Task[None]) -> None:
        self._restarts.add(task)
        task.add_done_callback(self._restarted)

    def _restarted(self, task: asyncio.Task[None]) -> None:
        self._restarts.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.complain(f"a server could not be ended or started: {error!r}")

    def _start_later(self, host: Host, seconds: float) -> None:
        self._track(asyncio.ensure_future(self._start(host, seconds)))

    async def _start(self, host: Host, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self.machine.files.is_away:  # noqa: ASYNC110 - an operator mounts first
            await asyncio.sleep(0.5)
        if not host.is_starting and (host.process is None or not host.process.alive):
            await host.start()

    async def _restart(self, host: Host, seconds: float) -> None:
        await host.shut_down()
        await self._start(host, seconds)

    def _clean_now(self, host: Host) -> None:
        """Remove orphans of any age: the lock protects what a request is about to commit."""
        if host.is_up and host.process is not None and host.process.alive and host.server is not None:
            cleaner = OrphanCleaner(host.server.service)
            cleaning = self.loop.create_task(cleaner.clean(older_than=0), context=host.process.context.copy())
            cleaning.add_done_callback(self._cleaned)

    def _cleaned(self, cleaning: asyncio.Task[Any]) -> None:
        if not cleaning.cancelled() and not isinstance(cleaning.exception(), UploadError | None):
            self.complain(f"the cleanup of orphans fails: {cleaning.exception()!r}")
