"""Locks between the processes of one host: bytes of one file, locked in the kernel, that die with their process.

Every upload has three bytes beyond the end of the lock file, at a place made from its id. Who has a write lock on the
first holds the upload. Who wants the holder to release, or to commit, holds a read lock on the second or third for
as long as the wish lasts: it too disappears with its process, so no stale request is ever left behind. Requests of
the same process reach the holder directly; those of other processes when the holder next looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tusd_py.errors import LockTimeout, StateUnavailable
from tusd_py.locks.base import LockHolder
from tusd_py.locks.ranges import is_locked_elsewhere, try_lock, unlock
from tusd_py.locks.tokens import TokenCounter

POLL_INTERVAL = 0.02  # seconds between two looks at what other processes did
HELD, RELEASE_WANTED, COMMIT_WANTED = 0, 1, 2
FIRST_UPLOAD_POSITION = 4096


def _position(upload_id: str) -> int:
    """Where the bytes of an upload are: 60 bits of its digest, four bytes each."""
    digest = hashlib.blake2b(upload_id.encode(), digest_size=8).digest()
    return FIRST_UPLOAD_POSITION + ((int.from_bytes(digest) >> 4) << 2) % (1 << 62)


class LocalLock:
    """One held lock."""

    inherited = 0  # the kernel takes a lock from dead processes only
    record = None  # the locker knows no records

    def __init__(self, locker: LocalLocker, upload_id: str, token: int, holder: LockHolder) -> None:
        self._locker = locker
        self.upload_id = upload_id
        self.token = token
        self.holder = holder
        self.release_was_requested = False

    def request_release(self) -> None:
        """Tell the holder, once, that somebody waits."""
        if not self.release_was_requested:
            self.release_was_requested = True
            self.holder.release_requested()

    async def outdo(self, token: int) -> None:
        while self.token <= token:
            self.token = self._locker._next_token(token) or self.token
            if self.token <= token:
                await asyncio.sleep(POLL_INTERVAL)

    async def release(self) -> None:
        self._locker._release(self)


class LocalLocker:
    """The locker of one process. All processes that share `path` exclude each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._held: dict[str, LocalLock] = {}
        self._waiters: dict[str, deque[asyncio.Future[None]]] = {}
        self._wishes: Counter[int] = Counter()  # read locks of this process, by position
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        try:
            self._descriptor = await asyncio.to_thread(self._open_file)
        except OSError as error:
            raise StateUnavailable from error

    def _open_file(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._tokens = TokenCounter(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def acquire(
        self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False
    ) -> LocalLock:
        if timeout <= 0 or upload_id not in self._held:
            lock = self._try(upload_id, holder)
            if lock is not None:
                return lock
        if timeout <= 0:
            raise LockTimeout
        try:
            async with asyncio.timeout(timeout):
                return await self._wait(upload_id, holder)
        except TimeoutError:
            raise LockTimeout from None

    async def _wait(self, upload_id: str, holder: LockHolder) -> LocalLock:
        with self._wish(_position(upload_id) + RELEASE_WANTED):
            while True:
                current = self._held.get(upload_id)
                if current is not None:
                    await self._wait_for_release(current)
                lock = self._try(upload_id, holder)
                if lock is not None:
                    return lock
                if upload_id not in self._held:  # another process has it
                    await asyncio.sleep(POLL_INTERVAL)

    async def _wait_for_release(self, lock: LocalLock) -> None:
        waiters = self._waiters.setdefault(lock.upload_id, deque())
        released = asyncio.get_running_loop().create_future()
        waiters.append(released)
        lock.request_release()
        try:
            await released
        except asyncio.CancelledError:
            if released.done() and not released.cancelled():  # it was this waiter's turn: pass it on
                self._wake_next(lock.upload_id)
            raise
        finally:
            with contextlib.suppress(ValueError):
                waiters.remove(released)
            if not waiters and self._waiters.get(lock.upload_id) is waiters:
                del self._waiters[lock.upload_id]

    def _try(self, upload_id: str, holder: LockHolder) -> LocalLock | None:
        position = _position(upload_id) + HELD
        if upload_id in self._held or not try_lock(self._descriptor, position):
            return None
        try:
            token = self._next_token()
        except StateUnavailable:
            unlock(self._descriptor, position)
            raise
        if token is None:
            unlock(self._descriptor, position)
            return None
        lock = LocalLock(self, upload_id, token, holder)
        self._held[upload_id] = lock
        if self._waiters.get(upload_id):  # they asked the holder before this one
            lock.request_release()
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._watch_other_processes())
        return lock

    def _next_token(self, above: int = 0) -> int | None:
        """A number larger than any before it, in whichever process; None if another process is just taking one."""
        try:
            return self._tokens.next(above)
        except OSError as error:
            raise StateUnavailable from error

    def _release(self, lock: LocalLock) -> None:
        if self._held.get(lock.upload_id) is not lock:
            return
        del self._held[lock.upload_id]
        if self._descriptor < 0:  # closed: the kernel has let go of every lock
            return
        unlock(self._descriptor, _position(lock.upload_id) + HELD)
        self._wake_next(lock.upload_id)

    def _wake_next(self, upload_id: str) -> None:
        waiters = self._waiters.get(upload_id)
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    @contextlib.contextmanager
    def _wish(self, position: int) -> Iterator[None]:
        if self._wishes[position] == 0:
            try_lock(self._descriptor, position, shared=True)
        self._wishes[position] += 1
        try:
            yield
        finally:
            self._wishes[position] -= 1
            if self._wishes[position] == 0:
                del self._wishes[position]
                unlock(self._descriptor, position)

    @contextlib.asynccontextmanager
    async def request_commit(self, upload_id: str) -> AsyncIterator[bool]:
        current = self._held.get(upload_id)
        if current is not None:
            current.holder.commit_requested()
            yield True
            return
        position = _position(upload_id)
        if not is_locked_elsewhere(self._descriptor, position + HELD):
            yield False
            return
        with self._wish(position + COMMIT_WANTED):
            yield True

    async def is_held(self, upload_id: str) -> bool:
        return upload_id in self._held or is_locked_elsewhere(self._descriptor, _position(upload_id) + HELD)

    async def _watch_other_processes(self) -> None:
        """Tell the holders of this process what other processes want of them; ends when nothing is held."""
        while self._held:
            for lock in list(self._held.values()):
                position = _position(lock.upload_id)
                if not lock.release_was_requested and is_locked_elsewhere(self._descriptor, position + RELEASE_WANTED):
                    lock.request_release()
                elif is_locked_elsewhere(self._descriptor, position + COMMIT_WANTED):
                    lock.holder.commit_requested()
            await asyncio.sleep(POLL_INTERVAL)
        self._watch = None
