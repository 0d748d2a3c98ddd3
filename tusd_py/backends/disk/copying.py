"""Copies of files: in a few threads of their own, in slices, and only where there is room for them.

A concatenation may copy hundreds of gigabytes. Writes and reads of other uploads never wait for it, concatenations take
turns after every slice, and a cancellation or a shutdown waits for one slice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tusd_py.asyncutil.threads import Threads
from tusd_py.backends.disk.files import FileTree
from tusd_py.backends.disk.syncs import Syncs
from tusd_py.core.errors import ServerShutdown, StorageFull

COPY_THREADS = 2
SLICE_SIZE = 16 << 20  # bytes copied, and synced, before the turn of another copy


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes of a file from `start` up to but not including `end`."""

    path: Path
    start: int
    end: int


class _Stop:
    """A request to one copy to end after its current slice."""

    requested = False


class FileCopier:
    """The runner of copies in turns; a copy is a generator that yields after every slice."""

    def __init__(self) -> None:
        self._threads = Threads(COPY_THREADS, "tusd-py-copy")
        self._closing = False
        self._abandoned = False
        self._running: set[asyncio.Task[None]] = set()
        self._claims: dict[object, int] = {}  # copy -> bytes that it has still to write

    def interrupt(self) -> None:
        """End every copy after its current slice."""
        self._closing = True

    async def close(self, timeout: float | None = None) -> bool:
        """End every copy after its current slice, and the threads; return False if `timeout` seconds are not enough.

        Copies that hang then are not waited for any more when the event loop ends.
        """
        self._closing = True
        running = [task for task in self._running if not (task.done() or task.get_loop().is_closed())]
        if running:
            _, hanging = await asyncio.wait(running, timeout=timeout)
            self._abandoned = bool(hanging)
            if hanging:
                return False
        return await asyncio.to_thread(self._threads.close, timeout)

    async def run(self, steps: Generator[None]) -> None:
        """Run the generator to its end, in threads; return or raise once no step of it runs.

        A cancellation closes the generator after its current slice. Raises `ServerShutdown` if the copier is closed.
        """
        stop = _Stop()
        task = asyncio.create_task(self._run_slices(steps, stop))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.requested = True
            while (
                not task.done() and not self._abandoned
            ):  # cancelled again, perhaps: the lock of the upload has to outlast the copy
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((task,))
            if task.done() and not task.cancelled():
                task.exception()  # mark it as retrieved: the caller is cancelled
            raise

    async def _run_slices(self, steps: Generator[None], stop: _Stop) -> None:
        running = threading.Lock()  # this task may be cancelled while a thread runs the generator

        def advance() -> bool:
            with running:
                for _ in steps:
                    return True
                return False

        def close() -> None:
            with running:
                steps.close()

        has_loop = True
        try:
            while await self._threads.run(advance):
                if self._closing or stop.requested:
                    raise ServerShutdown("the copy was interrupted; it will be made again")
        except GeneratorExit:  # the event loop was closed and this task is destroyed: waiting is impossible
            has_loop = False
            raise
        finally:
            if has_loop and not self._abandoned:
                await self._threads.run(close)

    def steps(
        self, new: Path, path: Path, sources: Sequence[FileRange], tools: CopyTools, *, sync: bool
    ) -> Generator[None]:
        """Concatenate ranges of files in the file `new`, which then replaces `path`.

        Raises `StorageFull` before the first byte if there is no room for all of them. After a failure, or when the
        generator is closed early, there is no file `new`.
        """
        claim = object()
        self._claims[claim] = sum(source.end - source.start for source in sources)
        try:
            with tools.errors():
                self._check_room(path.parent)
                descriptor = tools.create(new)
                try:
                    yield from self._fill(descriptor, path, sources, tools, claim, sync=sync)
                finally:
                    os.close(descriptor)
                tools.files.rename(new, path)
                if sync:
                    tools.syncs.sync_folders(path)
        except BaseException:
            with contextlib.suppress(OSError):
                tools.files.unlink(new)
            raise
        finally:
            del self._claims[claim]

    def _fill(
        self, target: int, path: Path, sources: Sequence[FileRange], tools: CopyTools, claim: object, *, sync: bool
    ) -> Generator[None]:
        copied = 0
        for source in sources:
            position = source.start
            while position < source.end:
                end = min(source.end, position + SLICE_SIZE - copied)
                tools.copy_range(target, source.path, position, end)
                self._claims[claim] -= end - position
                copied += end - position
                position = end
                if copied == SLICE_SIZE:
                    copied = 0
                    if sync:  # after each slice, or dirty pages would pile up and delay the end and other writes
                        tools.syncs.sync_copy(target, path)
                    yield
        if sync:
            tools.syncs.sync_copy(target, path)

    def _check_room(self, folder: Path) -> None:
        """Raise `StorageFull` unless all running copies, the new one included, have room."""
        status = os.statvfs(_existing(folder))
        requested = sum(list(self._claims.values()))
        if status.f_blocks and requested > status.f_bavail * status.f_frsize:
            raise StorageFull("there is no room for the concatenated upload")


@dataclass(frozen=True, slots=True)
class CopyTools:
    """Functions and objects of a storage that a copy uses."""

    errors: Callable[[], contextlib.AbstractContextManager[None]]
    create: Callable[[Path], int]  # a new file for reading and writing
    copy_range: Callable[[int, Path, int, int], None]  # append a range of a file to a descriptor
    files: FileTree
    syncs: Syncs


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest existing one above it."""
    while not folder.exists():
        folder = folder.parent
    return folder
