"""Bytes in files on a local disk, one file an upload, named by its id.

Every call to the file system runs in threads of the storage's own. A file is made with the first bytes; nothing is
allocated for what a client merely claims.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from tusd_py.errors import (
    StorageBehind,
    StorageFull,
    StorageUnavailable,
    StoredElsewhere,
    UploadError,
    UploadNotFound,
)
from tusd_py.storage.base import Buffer, Observer
from tusd_py.storage.copying import CopyTools, FileCopier, FileRange
from tusd_py.storage.threads import Threads
from tusd_py.upload import Part, Upload

logger = logging.getLogger("tusd_py.storage")

T = TypeVar("T")

THREADS = 8
READ_SIZE = 1 << 20
COPY_SIZE = 1 << 30  # bytes one copy_file_range is asked for
FILE_MODE = 0o664
MOST_BUFFERS = 1024  # IOV_MAX
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Errors of the operating system as errors of an upload."""
    try:
        yield
    except OSError as error:
        raise (StorageFull() if error.errno in NO_ROOM else StorageUnavailable()) from error


class DiskStorage:
    """Files under one directory, in folders by day of creation if `date_folders` is set."""

    def __init__(self, directory: Path, *, date_folders: bool = False) -> None:
        self._directory = directory
        self._date_folders = date_folders

    async def open(self) -> None:
        self._threads = Threads(THREADS, "tusd-py-disk")
        self._copier = FileCopier()
        await self.run(self._check_directory)

    async def close(self) -> None:
        await self._copier.close()
        await asyncio.to_thread(self._threads.close)

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run blocking work in the threads of this storage."""
        return self._threads.run(work)

    async def finished(self, work: Callable[[], T]) -> T:
        """Run blocking work that has to be over before the lock of the upload is released, even if it is cancelled."""
        job = self.run(work)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait((job,))
            raise

    def path(self, upload: Upload) -> Path:
        """The file of an upload, below the directory whatever its id; raises `StoredElsewhere`."""
        if not self._can_read(upload.layout):
            raise StoredElsewhere
        folder = self._directory
        if self._date_folders:
            folder = folder / time.strftime("%Y/%m/%d", time.gmtime(upload.created_at))
        path = folder / upload.id
        if path.parent != folder or upload.id.startswith("."):
            raise UploadNotFound
        return path

    def _can_read(self, layout: str) -> bool:
        return not layout

    def writer(self, upload: Upload, token: int, observer: Observer | None = None, *, inherited: int = 0) -> DiskWriter:
        # No fencing is needed: a lock of this host dies with its process, which then cannot write either.
        return DiskWriter(self, self.path(upload), upload.offset, observer)

    async def stored(self, upload: Upload) -> int:
        path = self.path(upload)

        def size() -> int:
            with file_errors():
                try:
                    return path.stat().st_size
                except FileNotFoundError:
                    self.check_place()
                    return 0

        return await self.run(size)

    async def complete(self, upload: Upload, parts: Sequence[Part] = (), *, sync: bool) -> str:
        path = self.path(upload)
        length = upload.offset

        def finish() -> None:
            with file_errors(), opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
                size = os.fstat(descriptor).st_size
                if size < length:
                    self.check_place()
                    raise StorageBehind(size)
                if size > length:
                    os.ftruncate(descriptor, length)
                if sync:
                    os.fsync(descriptor)
                    self.sync_folders(path)

        await self.finished(finish)
        return ""

    async def tidy(self, upload: Upload) -> None:
        """There is one file."""

    async def delete(self, upload: Upload) -> None:
        path = self.path(upload)

        def remove() -> None:
            with file_errors():
                path.unlink(missing_ok=True)
                _unfinished(path).unlink(missing_ok=True)

        await self.finished(remove)

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        path = self.path(final)
        ranges = [FileRange(self.path(partial), 0, partial.offset) for partial in partials]
        # The lock of the upload sees to it that one name is enough, and the next try writes over what a crash left.
        await self.assemble(_unfinished(path), path, ranges, sync=sync)
        return ""

    async def assemble(self, new: Path, path: Path, ranges: Sequence[FileRange], *, sync: bool) -> None:
        """Put ranges of files together under the name `new`, which then takes the place of `path`."""
        tools = CopyTools(file_errors, self._create, copy_range, self.sync_folders)
        await self._copier.run(self._copier.steps(new, path, ranges, tools, sync=sync))

    def _create(self, path: Path) -> int:
        self.check_place()
        return open_file(path, os.O_CREAT | os.O_TRUNC)

    async def read(self, upload: Upload, start: int, end: int) -> AsyncIterator[Buffer]:
        path = self.path(upload)

        def open_file() -> int:
            with file_errors():
                try:
                    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    self.check_place()
                    raise UploadNotFound from None

        def read_at(position: int) -> bytes:
            with file_errors():
                return os.pread(descriptor, min(READ_SIZE, end - position), position)

        descriptor = await self.run(open_file)
        try:
            position = start
            while position < end:
                data = await self.run(partial(read_at, position))
                if not data:
                    raise StorageUnavailable("the stored file is shorter than the upload")
                position += len(data)
                yield data
        finally:
            self.run(lambda: os.close(descriptor))

    def _check_directory(self) -> None:
        with file_errors():
            self._directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self._directory, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self._directory))
            self._inode = self._directory.stat().st_ino

    def check_place(self) -> None:
        """See that the directory is the one that was opened, and not what is left without its mount; in a thread.

        Otherwise bytes would go where nobody looks for them, and those that are away would count as lost.
        """
        with file_errors():
            if self._directory.stat().st_ino != self._inode:
                raise StorageUnavailable("the upload directory is not the one that this server was started with")

    def sync_folders(self, path: Path) -> None:
        """Make the name of a file survive a power cut; call it in a thread."""
        for folder in _folders(path, self._directory):
            with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
                os.fsync(descriptor)


class DiskWriter:
    """Writes at explicit offsets; one block is written while the next one fills."""

    layout = ""

    def __init__(self, storage: DiskStorage, path: Path, offset: int, observer: Observer | None) -> None:
        self._storage = storage
        self._path = path
        self._start = offset
        self._observer = observer
        self._descriptor = -1
        self._pending: asyncio.Future[None] | None = None
        self._failure: UploadError | None = None
        self._new_name = offset == 0  # this writer may make the file
        self.stored = offset

    def parts(self, after: int) -> Sequence[Part]:
        return ()

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await self._settle()
        if buffers:
            self._pending = self._storage.run(lambda: self._write(buffers))

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        await self._settle()
        if buffers or (sync and self._descriptor >= 0):
            self._pending = self._storage.run(lambda: self._flush(buffers, sync))
            await self._settle()

    async def checkpoint(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        await self.flush(buffers, sync=sync)

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        await self._settle()
        if not buffers and self._descriptor < 0:
            return False  # this writer has not even opened the file
        self._pending = self._storage.run(lambda: self._finish(buffers, sync))
        await self._settle()
        return not self.layout

    async def discard(self, offset: int) -> None:
        await self._wait()
        if self._descriptor >= 0:
            await self._storage.run(lambda: self._truncate(offset))
        self.stored = offset

    async def close(self) -> None:
        await self._wait()
        if self._descriptor >= 0:
            await self._storage.run(self._close)

    async def _settle(self) -> None:
        """Wait for the write under way; raises what has failed, now and whenever it is called again."""
        await self._wait()
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        """Wait for the write under way. A cancelled request does so too: its lock is released after its last write."""
        if self._pending is None:
            return
        try:
            await asyncio.shield(self._pending)
        except UploadError as error:
            self._failure = self._failure or error
        except Exception as error:  # of an observer, say: the bytes after it may not be written either
            logger.error("bytes could not be written", exc_info=error)
            self._failure = self._failure or StorageUnavailable()
            self._failure.__cause__ = error
        self._pending = None

    # What follows runs in a thread of the storage, one call at a time.

    def _write(self, buffers: Sequence[Buffer]) -> None:
        with file_errors():
            if self._descriptor < 0:
                self._storage.check_place()
                self._open()
            if self._observer is not None:
                for buffer in buffers:
                    self._observer(buffer)
            for first in range(0, len(buffers), MOST_BUFFERS):
                self._write_all(list(buffers[first : first + MOST_BUFFERS]))

    def _write_all(self, buffers: list[Buffer]) -> None:
        while buffers:
            written = os.pwritev(self._descriptor, buffers, self.stored)
            self.stored += written
            while buffers and written >= len(buffers[0]):
                written -= len(buffers[0])
                del buffers[0]
            if written:
                buffers[0] = memoryview(buffers[0])[written:]

    def _open(self) -> None:
        if self._start == 0:
            with contextlib.suppress(FileExistsError):
                self._descriptor = open_file(self._path, os.O_CREAT | os.O_EXCL)
                return
        descriptor = open_file(self._path, os.O_CREAT)
        size = os.fstat(descriptor).st_size
        if size < self._start:
            os.close(descriptor)
            raise StorageBehind(size)
        if size > self._start:  # bytes that were never committed
            os.ftruncate(descriptor, self._start)
        self._descriptor = descriptor

    def _flush(self, buffers: Sequence[Buffer], sync: bool) -> None:
        if buffers:
            self._write(buffers)
        if sync:
            with file_errors():
                os.fdatasync(self._descriptor)
                if self._new_name:
                    self._storage.sync_folders(self._path)

    def _finish(self, buffers: Sequence[Buffer], sync: bool) -> None:
        if buffers:
            self._write(buffers)
        if sync:
            with file_errors():
                os.fsync(self._descriptor)
                self._storage.sync_folders(self._path)
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _truncate(self, offset: int) -> None:
        with file_errors():
            os.ftruncate(self._descriptor, offset)


def open_file(path: Path, flags: int) -> int:
    """A descriptor for reading and writing; a file that is made gets its folders too."""
    flags |= os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, flags, FILE_MODE)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)  # the first upload of a day
        return os.open(path, flags, FILE_MODE)


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    if flags & os.O_CREAT:
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unfinished(path: Path) -> Path:
    """The file that a concatenation fills; no upload id starts with a dot."""
    return path.with_name(f".{path.name}.concatenation")


def _folders(path: Path, top: Path) -> list[Path]:
    """The folders from the one that holds `path` up to and including `top`."""
    folders = [path.parent]
    while folders[-1] != top:
        folders.append(folders[-1].parent)
    return folders


def copy_range(target: int, source: Path, start: int, end: int) -> None:
    """Append the bytes of a file from `start` up to but not including `end`, in the kernel where it can."""
    if start == end:
        return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UploadNotFound("a partial upload is no longer there") from None
    try:
        position = _copy_in_kernel(descriptor, target, start, end)
        while position < end:
            data = os.pread(descriptor, min(READ_SIZE, end - position), position)
            if not data:
                raise StorageUnavailable("a partial upload is shorter than its record says")
            position += os.write(target, data)
    finally:
        os.close(descriptor)


def _copy_in_kernel(source: int, target: int, start: int, end: int) -> int:
    """Copy by copy_file_range (a reflink on file systems that have it); returns how far that went."""
    position = start
    if not hasattr(os, "copy_file_range"):
        return position
    try:
        while position < end:
            count = os.copy_file_range(source, target, min(COPY_SIZE, end - position), position)
            if count == 0:
                break
            position += count
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
    return position
