"""Work under the locks of uploads, in tasks that belong to the service and not to the requests that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tusd_py.asyncutil.futures import settle
from tusd_py.contracts.locks import Lock, Locker, LockHolder
from tusd_py.core.errors import CodedError, LockTimeout, ServerShutdown
from tusd_py.core.request_context import RequestContext
from tusd_py.events.bus import EventBus
from tusd_py.events.types import LockWaited
from tusd_py.uploads.lock_holders import NonInterruptibleHolder

logger = logging.getLogger("tusd_py.uploads")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock that this process holds: since when, in monotonic seconds, and on behalf of which request."""

    upload_id: str
    since: float
    context: RequestContext | None


class LockedWork:
    """The runner of work that must come to its end, even if the request that started it is cancelled.

    A lock is released after the last step of the work under it: a request that is cancelled, once or again and again,
    ends, and its work continues. Only the end of the event loop cancels these tasks; a lock is not released then, since
    a thread may still be writing: it ends with the process (or with its lease).
    """

    def __init__(self, locker: Locker, events: EventBus) -> None:
        self._locker = locker
        self._events = events
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held: dict[str, HeldLock] = {}  # by upload id
        self._closed = False
        self.is_draining = False

    def open(self) -> None:
        """Accept work, again after `drain` and `close`."""
        self._closed = self.is_draining = False

    def refuse_when_draining(self) -> None:
        """Raise `ServerShutdown` if the server is draining."""
        if self.is_draining:
            raise ServerShutdown

    def drain(self) -> None:
        """Make `refuse_when_draining` refuse new work. Work that does not call it still gets its locks."""
        self.is_draining = True

    async def acquire(self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False) -> Lock:
        """Acquire a lock (`Locker.acquire`); the caller passes it to `start` before it awaits anything else."""
        started = time.monotonic()
        try:
            lock = await self._locker.acquire(upload_id, holder, timeout, to_remove=to_remove)
        except LockTimeout:
            if timeout > 0:
                self._events.publish(LockWaited(upload_id, time.monotonic() - started, obtained=False))
            raise
        waited = time.monotonic() - started
        self._events.publish(
            LockWaited(upload_id, waited, obtained=True, unreleased_predecessors=lock.unreleased_predecessors > 0)
        )
        return lock

    @property
    def held(self) -> Sequence[HeldLock]:
        """The locks that work of this process holds now."""
        return tuple(self._held.values())

    def start(self, lock: Lock, work: Coroutine[Any, Any, T], context: RequestContext | None = None) -> asyncio.Task[T]:
        """Run the work, on behalf of a request, in a task of its own, which then releases the lock.

        After `close` the work is not run, and the task raises `ServerShutdown`.
        """
        if self._closed:
            work.close()
            return self._spawn(self._refuse(lock))
        return self._spawn(self._hold(lock, work, context))

    async def run(
        self,
        upload_id: str,
        holder: LockHolder,
        timeout: float,
        work: Callable[[Lock], Coroutine[Any, Any, T]],
        *,
        to_remove: bool = False,
        context: RequestContext | None = None,
    ) -> T:
        """Acquire the lock, and wait for the work under it; raises `LockTimeout` and the errors of the work."""
        lock = await self.acquire(upload_id, holder, timeout, to_remove=to_remove)
        return await outcome(self.start(lock, work(lock), context))

    def start_unlocked(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work that acquires its locks itself; raises `ServerShutdown` after `close`."""
        if self._closed:
            work.close()
            raise ServerShutdown
        return self._spawn(work)

    async def settle(self) -> None:
        """Wait until no work is left."""
        while pending := [task for task in self._tasks if not (task.done() or task.get_loop().is_closed())]:
            await asyncio.wait(pending)

    async def close(self) -> None:
        """Refuse new work, and wait until no work is left."""
        self._closed = self.is_draining = True
        await self.settle()

    async def _hold(self, lock: Lock, work: Coroutine[Any, Any, T], context: RequestContext | None) -> T:
        held = self._held[lock.upload_id] = HeldLock(lock.upload_id, time.monotonic(), context)
        try:
            with self._events.held(lock.upload_id):
                try:
                    result = await work
                except Exception:
                    await lock.release()
                    raise
                await lock.release()
                return result
        finally:
            if self._held.get(lock.upload_id) is held:  # a lock that was lost may be held again
                del self._held[lock.upload_id]

    async def _refuse(self, lock: Lock) -> Any:
        await lock.release()
        raise ServerShutdown

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CodedError):  # logged in case that the request was cancelled
            logger.debug("work on an upload failed", exc_info=error)

    # Uploads that are about to end.

    @contextlib.asynccontextmanager
    async def ending(self, upload_id: str) -> AsyncIterator[None]:
        """Mark an upload as ending for the context (`is_ending`), for the holder that is asked to release its lock."""
        try:
            lock = await self._locker.acquire(_ending(upload_id), NonInterruptibleHolder(), 0, to_remove=True)
        except LockTimeout:  # another request is ending the upload
            yield
            return
        try:
            yield
        finally:
            await lock.release()

    async def is_ending(self, upload_id: str) -> bool:
        """Return whether a request, in any process, is about to end this upload."""
        return await self._locker.is_held(_ending(upload_id))


async def outcome(task: asyncio.Task[T]) -> T:
    """Wait for the task and return its result; a cancellation of the caller does not reach the task."""
    ended: asyncio.Future[None] = task.get_loop().create_future()
    task.add_done_callback(lambda _: settle(ended, None, None))
    try:
        await ended  # `asyncio.shield` does the same with three times the calls
        return task.result()
    finally:
        del task  # its error refers to this frame, and would live on in a cycle with the body


def _ending(upload_id: str) -> str:
    """Return the name of the lock that marks an upload as ending; no upload id has a dot."""
    return f"{upload_id}.ending"
