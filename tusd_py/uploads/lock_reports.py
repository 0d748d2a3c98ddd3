"""The locks of uploads that this process and others hold, for administrators."""

from __future__ import annotations

import asyncio
import heapq
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tusd_py.contracts.process_questions import AsksProcesses
from tusd_py.core.clock import Clock
from tusd_py.core.lock_reports import MAX_REPORTED, MAX_TEXT, LockReport, decode_reports, encode_reports
from tusd_py.core.redaction import without_signatures_within
from tusd_py.uploads.locked_work import HeldLock

ANSWER_TIMEOUT = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class KnownLocks:
    """The locks that processes have told of, the oldest first.

    Attributes:
        locks: `MAX_REPORTED` at most.
        processes: number of processes that have told theirs, with this one.
        silent: number of processes that did not answer in time.
    """

    locks: Sequence[LockReport]
    processes: int
    silent: int


class LockReports:
    """The reports of one process, which asks the others for theirs."""

    def __init__(self, held: Callable[[], Sequence[HeldLock]], clock: Clock, others: object) -> None:
        """Take the locks that this process holds, the clock of the records, and what may ask other processes."""
        self._held = held
        self._clock = clock
        self._others = others if isinstance(others, AsksProcesses) else None
        self._asking: asyncio.Task[KnownLocks] | None = None
        if self._others is not None:
            self._others.answer_with(lambda: encode_reports(self._own()))

    async def all(self) -> KnownLocks:
        """Return the locks of all processes that answer. Callers at the same time share one question.

        Raises `StateUnavailable` if other processes cannot be asked now.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(_ended)
        return await asyncio.shield(self._asking)

    async def _ask(self) -> KnownLocks:
        locks, processes, silent = self._own(), 1, 0
        if self._others is not None:
            answers = await self._others.ask_for_locks(ANSWER_TIMEOUT)
            silent = answers.silent
            for text in answers.texts:
                told = decode_reports(text)
                if told is None:
                    silent += 1
                else:
                    locks, processes = [*locks, *told], processes + 1
        return KnownLocks(sorted(locks, key=lambda lock: lock.since)[:MAX_REPORTED], processes, silent)

    def _own(self) -> list[LockReport]:
        """Return the oldest locks of this process, `MAX_REPORTED` at most: it may hold many times as many."""
        ahead = self._clock.wall() - time.monotonic()
        oldest = heapq.nsmallest(MAX_REPORTED, self._held(), key=lambda lock: lock.since)
        return [_report(lock, max(0.0, lock.since + ahead)) for lock in oldest]


def _report(lock: HeldLock, since: float) -> LockReport:
    place = socket.gethostname(), os.getpid()
    context = lock.context
    if context is None:
        return LockReport(lock.upload_id, since, *place)
    path = without_signatures_within(context.path)[:MAX_TEXT]
    return LockReport(lock.upload_id, since, *place, context.method, path, context.client or None, context.principal)


def _ended(task: asyncio.Task[KnownLocks]) -> None:
    """Mark the error of a question as seen: it is told to whoever waits."""
    if not task.cancelled():
        task.exception()
