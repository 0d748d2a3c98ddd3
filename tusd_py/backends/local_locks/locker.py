"""Locks between the processes of one host: byte-range locks of the kernel, which end with their process.

Every upload has a byte in one of several (empty) lock files, at a position computed from its id; a write lock on that
byte is the lock of the upload. A process that asks the holder to release or to commit holds a read lock on a byte of
the request file for as long as it waits. That lock ends with its process too, so no stale request is left behind.
Requests of the same process reach the holder directly, those of other processes when the holder polls.

A poll costs one system call while there is no request, however many uploads are locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tusd_py.backends.local_locks.byte_ranges import (
    all_locked_elsewhere,
    first_locked_elsewhere,
    is_locked_elsewhere,
    try_lock,
    unlock,
)
from tusd_py.backends.local_locks.tokens import TokenCounter
from tusd_py.contracts.locks import LockHolder
from tusd_py.core.errors import LockTimeout, StateUnavailable

logger = logging.getLogger("tusd_py.locks")

POLL_INTERVAL = 0.02  # seconds between two polls of the locks of other processes
MAX_INTERVAL = 0.5  # seconds between two polls that take long, because of many locks
POLL_SHARE = 0.1  # maximum share of the CPU time of the event loop that polls take
LOCK_FILES = 16  # several, because the kernel searches all locks of a file for each that it sets
RELEASE_REQUEST, COMMIT_REQUEST = 0, 2  # not adjacent: the kernel would merge their locks
SERVER_PRESENCE = 64  # the byte of the counter file on which every server holds a read lock
SETTLED = 66  # the byte of the counter file on which every server holds a read lock that has called `settled`
EARLIER_LOCKS = 4096  # the byte of the counter file from which on earlier versions lock uploads
LAST_REQUEST = (1 << 62) + COMMIT_REQUEST


def _digest(upload_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(upload_id.encode(), digest_size=8).digest())


@contextlib.contextmanager
def servers_excluded(path: Path) -> Iterator[None]:
    """Keep servers that use these lock files from starting, for the context. Blocks.

    Raises `StateUnavailable` if a server is running.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):  # no server has ever used this directory
        yield
        return
    except OSError as error:
        raise StateUnavailable from error
    try:
        if not try_lock(descriptor, SERVER_PRESENCE):
            raise StateUnavailable("a server is running with these records; stop it first")
        yield
    finally:
        os.close(descriptor)


class LocalLock:
    """A lock of this process on an upload, see `Lock`."""

    unreleased_predecessors = 0  # the kernel ends a lock only when its process has released it or died
    upload = None  # the locker does not read records

    def __init__(self, locker: LocalLocker, upload_id: str, place: tuple[int, int], holder: LockHolder) -> None:
        """Create a lock that is not granted yet. `place` is a descriptor and a position in its file."""
        self._locker = locker
        self.upload_id = upload_id
        self.place = place
        self.token = 0
        self.holder = holder
        self.release_was_requested = False

    def request_release(self) -> None:
        """Tell the holder once that another request waits for the lock."""
        if not self.release_was_requested:
            self.release_was_requested = True
            self.holder.release_requested()

    async def raise_token(self, token: int) -> None:
        """Take tokens until one is larger than `token`, see `Lock.raise_token`."""
        while self.token <= token:
            self.token = self._locker._next_token(token) or self.token
            if self.token <= token:
                await asyncio.sleep(POLL_INTERVAL)

    async def release(self) -> None:
        """Release the lock, unless it is released already."""
        self._locker._release(self)


class LocalLocker:
    """The locker of one process. All processes that share `path` exclude each other."""

    def __init__(self, path: Path) -> None:
        """Keep the token counter in `path`, and the locks in files whose names begin with it."""
        self._path = path
        self._counter_file = -1  # descriptors
        self._request_file = -1
        self._lock_files: list[int] = []
        self._held: dict[str, LocalLock] = {}
        self._held_by_position: dict[int, LocalLock] = {}
        self._waiters: dict[str, deque[asyncio.Future[None]]] = {}  # of this process, for locks of this process
        self._external_waiters: dict[str, list[asyncio.Future[None]]] = {}  # of this process, for locks of others
        self._lock_requests: Counter[int] = Counter()  # position in the request file -> waiting requests
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Open the lock files; raises `StateUnavailable` if that fails or other programs use them."""
        try:
            await asyncio.to_thread(self._open_files)
        except OSError as error:
            self._close_files()
            raise StateUnavailable from error
        except StateUnavailable:
            self._close_files()
            raise

    def _open_files(self) -> None:
        self._counter_file = self._open_file("")
        if not try_lock(self._counter_file, SERVER_PRESENCE, shared=True):
            raise StateUnavailable("its records are being copied by tusd-py migrate; try again when that has ended")
        # Locks of earlier versions and of this one do not exclude each other: two writers could write the same bytes.
        if not try_lock(self._counter_file, EARLIER_LOCKS, shared=True, to_end=True):
            raise StateUnavailable("a server of an earlier version is taking uploads there; stop it first")
        self._tokens = TokenCounter(self._counter_file)
        self._request_file = self._open_file("-requests")
        for number in range(LOCK_FILES):
            self._lock_files.append(self._open_file(f"-{number}"))

    def _open_file(self, suffix: str) -> int:
        path = self._path.with_name(self._path.name + suffix)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _close_files(self) -> None:
        for descriptor in (self._counter_file, self._request_file, *self._lock_files):
            if descriptor >= 0:
                os.close(descriptor)
        self._counter_file = self._request_file = -1
        self._lock_files.clear()

    async def close(self) -> None:
        """Release every lock, and close the files."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_files()  # the kernel releases every lock
        for waiters in self._external_waiters.values():
            _wake_all(waiters)

    def another_has_settled(self) -> bool:
        """See `CountsServers.another_has_settled`."""
        try:
            return is_locked_elsewhere(self._counter_file, SETTLED)
        except OSError as error:
            raise StateUnavailable from error

    def settled(self) -> None:
        """See `CountsServers.settled`."""
        try:
            try_lock(self._counter_file, SETTLED, shared=True)
        except OSError as error:
            raise StateUnavailable from error

    def leave(self) -> bool:
        """Stop counting as a server, unless it is the last one, see `CountsServers.leave`."""
        try:
            if not is_locked_elsewhere(self._counter_file, SERVER_PRESENCE):
                return True
            unlock(self._counter_file, SERVER_PRESENCE)
            unlock(self._counter_file, SETTLED)
        except OSError as error:
            raise StateUnavailable from error
        return False

    def _lock_place(self, upload_id: str) -> tuple[int, int]:
        """Return descriptor and position of the lock of an upload; raises `StateUnavailable` after `close`."""
        if not self._lock_files:
            raise StateUnavailable
        digest = _digest(upload_id)
        return self._lock_files[digest % LOCK_FILES], (digest >> 4) << 2  # 60 bits of it, and room for the requests

    async def acquire(
        self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False
    ) -> LocalLock:
        """Acquire a lock, see `Locker.acquire`."""
        if timeout <= 0 or upload_id not in self._held:
            lock = self._try_acquire(upload_id, holder)
            if lock is not None:
                return lock
        if timeout <= 0:
            raise LockTimeout
        try:
            async with asyncio.timeout(timeout):
                return await self._wait_and_acquire(upload_id, holder)
        except TimeoutError:
            raise LockTimeout from None

    async def _wait_and_acquire(self, upload_id: str, holder: LockHolder) -> LocalLock:
        with self._announce_request(self._lock_place(upload_id)[1] + RELEASE_REQUEST):
            while True:
                current = self._held.get(upload_id)
                if current is not None:
                    await self._wait_for_release(current)
                lock = self._try_acquire(upload_id, holder)
                if lock is not None:
                    return lock
                if upload_id not in self._held:
                    await self._wait_for_other_process(upload_id)

    async def _wait_for_release(self, lock: LocalLock) -> None:
        waiters = self._waiters.setdefault(lock.upload_id, deque())
        released = asyncio.get_running_loop().create_future()
        waiters.append(released)
        lock.request_release()
        try:
            await released
        except asyncio.CancelledError:
            if released.done() and not released.cancelled():  # this waiter was next: let the one after it try
                self._wake_next(lock.upload_id)
            raise
        finally:
            with contextlib.suppress(ValueError):
                waiters.remove(released)
            if not waiters and self._waiters.get(lock.upload_id) is waiters:
                del self._waiters[lock.upload_id]

    async def _wait_for_other_process(self, upload_id: str) -> None:
        """Wait until a poll has found the lock free."""
        waiters = self._external_waiters.setdefault(upload_id, [])
        free = asyncio.get_running_loop().create_future()
        waiters.append(free)
        self._poll_later(POLL_INTERVAL)
        try:
            await free
        finally:
            waiters.remove(free)
            if not waiters:
                del self._external_waiters[upload_id]

    def _try_acquire(self, upload_id: str, holder: LockHolder) -> LocalLock | None:
        place = self._lock_place(upload_id)
        if upload_id in self._held or not try_lock(*place):
            return None
        lock = LocalLock(self, upload_id, place, holder)
        try:
            token = self._next_token()
        except BaseException:
            unlock(*place)
            raise
        if token is None:
            unlock(*place)
            return None
        lock.token = token
        self._held[upload_id] = self._held_by_position[place[1]] = lock
        if self._waiters.get(upload_id):  # these asked the previous holder, not this one
            lock.request_release()
        self._pass_on_requests_for(lock)
        self._poll_later(POLL_INTERVAL)
        return lock

    def _next_token(self, above: int = 0) -> int | None:
        """Return a token larger than all before it, of all processes; None if another process is just taking one."""
        if self._counter_file < 0:
            raise StateUnavailable
        try:
            return self._tokens.next(above)
        except OSError as error:
            raise StateUnavailable from error

    def _release(self, lock: LocalLock) -> None:
        if self._held.get(lock.upload_id) is not lock:
            return
        del self._held[lock.upload_id], self._held_by_position[lock.place[1]]
        if not self._lock_files:  # closed: the kernel has released every lock
            return
        unlock(*lock.place)
        self._wake_next(lock.upload_id)

    def _wake_next(self, upload_id: str) -> None:
        waiters = self._waiters.get(upload_id)
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    @contextlib.contextmanager
    def _announce_request(self, position: int) -> Iterator[None]:
        if self._lock_requests[position] == 0:
            try_lock(self._request_file, position, shared=True)
        self._lock_requests[position] += 1
        try:
            yield
        finally:
            self._lock_requests[position] -= 1
            if self._lock_requests[position] == 0:
                del self._lock_requests[position]
                if self._request_file >= 0:
                    unlock(self._request_file, position)

    @contextlib.asynccontextmanager
    async def request_commit(self, upload_id: str) -> AsyncIterator[int]:
        """Ask the holder to commit, see `Locker.request_commit`."""
        current = self._held.get(upload_id)
        if current is not None:
            current.holder.commit_requested()
            yield 1
            return
        descriptor, position = self._lock_place(upload_id)
        if not is_locked_elsewhere(descriptor, position):
            yield 0
            return
        with self._announce_request(position + COMMIT_REQUEST):
            yield 2  # every poll of the holder's process asks for a commit

    async def is_held(self, upload_id: str) -> bool:
        """Return whether any process holds the lock."""
        return upload_id in self._held or is_locked_elsewhere(*self._lock_place(upload_id))

    # Polls of the locks of other processes.

    def _poll_later(self, delay: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay, self._poll)

    def _poll(self) -> None:
        """Pass requests of other processes to holders, and wake waiting requests whose locks other processes released.

        Schedules itself again while a lock is held or waited for.
        """
        self._timer = None
        started = time.thread_time()
        try:
            self._pass_on_requests()
            for upload_id, waiters in self._external_waiters.items():
                if not is_locked_elsewhere(*self._lock_place(upload_id)):
                    _wake_all(waiters)
        except OSError as error:  # of the kernel: the next poll may succeed
            logger.error("the locks of other processes cannot be seen: %s", error)
        if self._held or self._external_waiters:
            spent = time.thread_time() - started
            self._poll_later(min(MAX_INTERVAL, max(POLL_INTERVAL, spent / POLL_SHARE)))

    def _pass_on_requests(self) -> None:
        """Pass requests of other processes to the holders of this process.

        Lists all requests if they are fewer than the locks held; otherwise checks each lock.
        """
        if not self._held:
            return
        requests = all_locked_elsewhere(self._request_file, 0, LAST_REQUEST, limit=len(self._held))
        if requests is None:
            for lock in list(self._held.values()):
                self._pass_on_requests_for(lock)
            return
        for position in {position & ~COMMIT_REQUEST for position in requests}:
            requested = self._held_by_position.get(position)
            if requested is not None:
                self._pass_on_requests_for(requested)

    def _pass_on_requests_for(self, lock: LocalLock) -> None:
        position = lock.place[1]
        if first_locked_elsewhere(self._request_file, position, position + COMMIT_REQUEST) is None:
            return
        if is_locked_elsewhere(self._request_file, position + RELEASE_REQUEST):
            lock.request_release()
        elif is_locked_elsewhere(self._request_file, position + COMMIT_REQUEST):
            lock.holder.commit_requested()


def _wake_all(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
