"""Machines and their processes: what dies with a kill, what with a power cut, and what stays."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.filesystem import FileSystem, Folder, Inode
from tests.simulation.loop import PROCESS, SimulatedLoop
from tests.simulation.threads import Scheduler

FIRST_DESCRIPTOR = 1 << 20  # real descriptors are smaller
EPOCH = 1_700_000_000.0  # the right wall clock at virtual time 0


@dataclass(eq=False, slots=True)
class OpenFile:
    """An open file description of a process."""

    inode: Inode
    files: FileSystem
    process: Process
    writable: bool
    position: int = 0
    references: int = 1
    errors_seen: int = 0  # number of the last failed sync that was reported to it (Linux, errseq)


@dataclass(eq=False)
class Machine:
    """A host: its files, its clock, its kernel. `files` may be shared with other machines."""

    name: str
    loop: SimulatedLoop
    scheduler: Scheduler
    rng: Random
    files: FileSystem
    has_sockets: bool = False  # of its file system, by which its processes tell each other of changes
    record_answers: list[tuple[str, Any]] = field(default_factory=list)  # to the next statements with a beginning
    boots: int = 0
    booted_at: float = 0.0  # virtual time
    clock_error: float = 0.0  # seconds that its wall clock is ahead
    databases: dict[str, Any] = field(default_factory=dict)  # open SQLite files

    @property
    def boot_id(self) -> str:
        return f"{self.name}-{self.boots}"

    def wall(self) -> float:
        return EPOCH + self.loop.now + self.clock_error

    def monotonic(self) -> float:
        return self.loop.now - self.booted_at + 100.0


class Process:
    """One life of a server on a machine."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.name = f"{machine.name}/{number}"
        self.alive = True
        self.paused = False
        self.accepts_requests = True
        self.descriptors: dict[int, OpenFile] = {}
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.errors_seen = machine.files.failed_syncs
        self.on_death: list[Callable[[], object]] = []

    @property
    def is_running(self) -> bool:
        return self.alive and not self.paused

    def pause(self) -> None:
        self.paused = True

    def go_on(self) -> None:
        self.paused = False
        self.machine.loop.unpark(self)

    def end(self) -> None:
        """Stop every task and thread at once, and have the kernel close its files."""
        self.alive = False
        for opened in self.descriptors.values():
            release_locks(opened)
        self.descriptors.clear()
        for callback in self.on_death:
            callback()


def release_locks(opened: OpenFile) -> None:
    locks = getattr(opened.inode, "locks", None)
    if locks:
        locks[:] = [lock for lock in locks if lock[3] is not opened]


def is_folder(inode: Inode) -> bool:
    return isinstance(inode, Folder)
