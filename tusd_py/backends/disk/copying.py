"""Copies of files: in few threads of their own, in slices, and only where there is room for them.

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
SLICE_SIZE = 16 << 20  # bytes copied, and synced, before another copy has its turn


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes of a file from `start` up to but not including `end`."""

    path: Path
    start: int
    end: int


class _Stop:
    """Tells one copy to end after the slice it is at."""

    wanted = False


class FileCopier:
    """Runs copies, each a generator that yields after every slice, in turns."""

    def __init__(self) -> None:
        self._threads = Threads(COPY_THREADS, "tusd-py-copy")
        self._closing = False
        self._abandoned = False
        self._running: set[asyncio.Task[None]] = set()
        self._claims: dict[object, int] = {}  # bytes that the running copies have still to write

    def interrupt(self) -> None:
        """End every copy after its slice."""
        self._closing = True

    async def close(self, timeout: float | None = None) -> bool:
        """End every copy after its slice, and the threads; False if that took longer than `timeout` seconds.

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
        """Run the generator to its end, in threads; returns or raises once nothing of it runs any more.

        A cancellation closes the generator after the slice it is at. Raises `ServerShutdown` if the copier is closed.
        """
        stop = _Stop()
        task = asyncio.create_task(self._take_turns(steps, stop))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.wanted = True
            while (
                not task.done() and not self._abandoned
            ):  # cancelled again, perhaps: the lock of the upload has to outlast the copy
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((task,))
            if task.done() and not task.cancelled():
                task.exception()  # nobody is there to hear it
            raise

    async def _take_turns(self, steps: Generator[None], stop: _Stop) -> None:
        running = threading.Lock()  # this task may be cancelled while a thread is in the generator

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
                if self._closing or stop.wanted:
                    raise ServerShutdown("the copy was interrupted; it will be made again")
        except GeneratorExit:  # the loop was closed and this task is thrown away: nothing can be waited for
            has_loop = False
            raise
        finally:
            if has_loop and not self._abandoned:
                await self._threads.run(close)

    def steps(
        self, new: Path, path: Path, sources: Sequence[FileRange], tools: CopyTools, *, sync: bool
    ) -> Generator[None]:
        """Put ranges of files together under the name `new`, which then takes the place of `path`.

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
                    if sync:  # now, so that neither the end nor the writes of others meet a mountain of dirty pages
                        tools.syncs.sync_copy(target, path)
                    yield
        if sync:
            tools.syncs.sync_copy(target, path)

    def _check_room(self, folder: Path) -> None:
        """Raise `StorageFull` unless all running copies, the new one included, have room."""
        status = os.statvfs(_existing(folder))
        wanted = sum(list(self._claims.values()))
        if status.f_blocks and wanted > status.f_bavail * status.f_frsize:
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
    """The folder, or the nearest above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
