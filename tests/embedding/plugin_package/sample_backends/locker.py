"""A locker: `flock` on one file for each upload, and files beside it for the requests to its holder."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tusd_py import LockTimeout, Upload
from tusd_py.contracts.locks import LockHolder

T = TypeVar("T")

POLL = 0.03  # seconds between two looks at a file


class FileLocker:
    """A locker that all processes of a host share. Its files are never removed, since they hold the tokens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: set[FileLock] = set()

    async def open(self) -> None:
        await asyncio.to_thread(partial(self._folder.mkdir, parents=True, exist_ok=True))

    async def close(self) -> None:
        for lock in list(self._held):
            await lock.release()

    async def acquire(self, upload_id: str, holder: LockHolder, timeout: float, *, to_remove: bool = False) -> FileLock:
        deadline = asyncio.get_running_loop().time() + timeout
        lock = await self._try(upload_id, holder)
        if lock is None and timeout > 0:
            try:
                async with self._request(upload_id, "release"):
                    while lock is None and asyncio.get_running_loop().time() < deadline:
                        await asyncio.sleep(POLL)
                        lock = await self._try(upload_id, holder)
            except BaseException:  # also cancelled while the request was removed, with the lock in hand
                if lock is not None:
                    await lock.release()
                raise
        if lock is None:
            raise LockTimeout
        return lock

    async def _try(self, upload_id: str, holder: LockHolder) -> FileLock | None:
        locked, cancelled = await _to_the_end(partial(_lock, self._folder / upload_id))
        if cancelled is not None:
            if locked is not None:
                os.close(locked[0])
            raise cancelled
        return None if locked is None else FileLock(upload_id, *locked, holder, self._folder, self._held)

    @contextlib.asynccontextmanager
    async def request_commit(self, upload_id: str) -> AsyncIterator[int]:
        async with self._request(upload_id, "commit"):
            yield 2 if await self.is_held(upload_id) else 0

    async def is_held(self, upload_id: str) -> bool:
        return await asyncio.to_thread(_is_locked, self._folder / upload_id)

    @contextlib.asynccontextmanager
    async def _request(self, upload_id: str, kind: str) -> AsyncIterator[None]:
        """Ask the holder of a lock for something, for as long as the context lasts."""
        request = self._folder / f"{kind}.requests" / upload_id / secrets.token_hex(8)

        def make() -> None:
            request.parent.mkdir(parents=True, exist_ok=True)
            request.touch()

        try:
            _, cancelled = await _to_the_end(make)
            if cancelled is not None:
                raise cancelled
            yield
        finally:
            await asyncio.to_thread(partial(request.unlink, missing_ok=True))


class FileLock:
    """A lock that is held; ends with its process."""

    unreleased_predecessors = 0  # a process that has ended writes nothing more
    upload: Upload | None = None

    def __init__(
        self, upload_id: str, descriptor: int, token: int, holder: LockHolder, folder: Path, held: set[FileLock]
    ) -> None:
        self.upload_id = upload_id
        self.token = token
        self._descriptor: int | None = descriptor
        self._held = held
        held.add(self)
        self._watch = asyncio.create_task(self._pass_on(holder, folder))

    async def raise_token(self, token: int) -> None:
        if token >= self.token and self._descriptor is not None:
            self.token = await asyncio.to_thread(_next_token, self._descriptor, token)

    async def release(self) -> None:
        if self._descriptor is not None:
            self._watch.cancel()
            os.close(self._descriptor)
            self._descriptor = None
            self._held.discard(self)

    async def _pass_on(self, holder: LockHolder, folder: Path) -> None:
        """Pass requests to the holder until the lock is released."""
        kinds = ("release", "commit")
        requests = [folder / f"{kind}.requests" / self.upload_id for kind in kinds]
        while True:
            release, commit = await asyncio.to_thread(lambda: [_has_files(folder) for folder in requests])
            if release:
                holder.release_requested()
            if commit:
                holder.commit_requested()
            await asyncio.sleep(POLL)


async def _to_the_end(function: Callable[[], T]) -> tuple[T, asyncio.CancelledError | None]:
    """Run a function in a worker thread, and wait for its end whatever cancels the wait.

    A thread cannot be cancelled: a caller that left before would not know its effect.

    Returns:
        the function's result, and the last cancellation of the wait.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function))
    cancelled = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
    return running.result(), cancelled


def _lock(path: Path) -> tuple[int, int] | None:
    """Lock a file until its descriptor is closed; return that and a new token, None if another holder has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor, _next_token(descriptor, 0)


def _next_token(descriptor: int, least: int) -> int:
    token = max(least, int(os.pread(descriptor, 20, 0) or 0)) + 1
    os.pwrite(descriptor, b"%-20d" % token, 0)
    return token


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _has_files(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(folder.iterdir())
    return False
