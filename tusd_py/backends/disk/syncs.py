"""Syncs of files and folders, of which a failed one is a failure for good.

After a failed fsync the kernel has thrown the bytes away, or keeps them as if they were stored: the next fsync
succeeds and proves nothing. So what was not synced before is cut off at once, in the thread of the sync and before
anybody is answered: the file itself then says how much there is, to every process and after every crash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tusd_py.backends.disk.files import NO_ROOM, FileTree
from tusd_py.core.errors import StorageBehind, StorageUnavailable

Inode: TypeAlias = tuple[int, int]

logger = logging.getLogger("tusd_py.storage")

BLOCK = 4096  # bytes that a device writes, or loses, together
SUSPICION = 60.0  # seconds after a failure in which no success counts for the readiness
UNSUPPORTED = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
    errno.EISDIR,
)
FAILED = "a sync to the disk failed and bytes were lost: look at the disk"
NO_FOLDER_SYNC = "the file system cannot sync directories: after a power cut the names of the newest files may be lost"


def sync_file(descriptor: int) -> None:
    """Have the device hold the bytes and all that is known of the file."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # where fsync stops at the cache of the device (macOS)
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Have the device hold the bytes."""
    if hasattr(os, "fdatasync") and not hasattr(fcntl, "F_FULLFSYNC"):
        os.fdatasync(descriptor)
    else:
        sync_file(descriptor)


class Syncs:
    """The syncs of one storage. Every call blocks."""

    def __init__(self, files: FileTree, *, shared: bool = False) -> None:
        """`shared` says that others may put another file in the place of one that is being synced."""
        self._files = files
        self._shared = shared
        self._failed_at: float | None = None  # in the time of the monotonic clock
        self._distrusted: dict[Path, int] = {}  # files that could not be cut off, and where they should have been
        self._syncs_folders = True
        self.limitations: list[str] = []

    def sync(
        self,
        descriptor: int,
        path: Path,
        kept: int,
        *,
        start: int = 0,
        names: bool,
        with_call: Callable[[int], None] = sync_file,
    ) -> None:
        """Sync a file, and with `names` the folders that lead to it.

        `start` is the position of the file's first byte, `kept` the end of what the last good sync covered. After a
        failure the file ends there; raises `StorageBehind`.
        """
        try:
            with_call(descriptor)
            if names:
                self.sync_folders(path)
        except OSError as error:
            self.lost(path, kept, error, start=start, inode=inode_of(descriptor))

    def sync_copy(self, descriptor: int, path: Path) -> None:
        """Sync a file that is made from others, and made anew if that fails; raises `OSError`."""
        try:
            sync_file(descriptor)
        except OSError as error:
            self._tell(path, error, 0)
            raise

    def lost(self, path: Path, kept: int, error: OSError, *, start: int = 0, inode: Inode) -> None:
        """Cut off what a failure may have lost, of this file only; raises `StorageBehind`."""
        kept = max(kept, start)
        self._tell(path, error, kept)
        try:
            if kept == start and not self._shared:
                self._files.unlink(path)  # what comes next goes to a file of which no page is in doubt
            else:
                with self._files.opened(path, os.O_RDWR) as descriptor:
                    if inode_of(descriptor) == inode:  # or who took the lease over has finished the upload meanwhile
                        _cut(descriptor, kept)
        except FileNotFoundError:
            pass
        except OSError as failure:
            logger.error("%s could not be cut off: %s", path, failure.strerror)
            self._distrusted[path] = kept
        raise StorageBehind(kept) from error

    def believed(self, path: Path, size: int) -> int:
        """The number of bytes that count of a file of this size: fewer where a failed sync could not be cut off."""
        return min(size, self._distrusted.get(path, size)) if self._distrusted else size

    def trust(self, path: Path) -> None:
        """Take note that a file was cut off where its upload goes on, so that all of it counts again."""
        if self._distrusted:
            self._distrusted.pop(path, None)

    def sync_folders(self, path: Path) -> None:
        """Have the device hold the name of a file; raises `OSError`."""
        if not self._syncs_folders:
            return
        try:
            for folder in self._files.folders(path):
                self._sync_folder(folder)
        except OSError:
            self._failed_at = time.monotonic()
            raise

    def _sync_folder(self, folder: Path) -> None:
        try:
            with self._files.opened_folder(folder) as descriptor:
                sync_file(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._syncs_folders = False
            self.limitations.append(NO_FOLDER_SYNC)

    def probe(self) -> None:
        """See what the file system can do; raises `OSError` where it cannot store anything."""
        path = self._files.top / ".probe"  # always the same, so that the next probe removes what a crash has left
        try:
            with self._files.opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
                os.write(descriptor, b"probe")
                _sync_probe(descriptor)
            self._sync_folder(self._files.top)
        finally:
            with contextlib.suppress(OSError):
                self._files.unlink(path)

    def open(self) -> None:
        """Probe once; a full disk, on which nothing can be tried, counts as one that can do everything."""
        try:
            self.probe()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    @property
    def failed(self) -> bool:
        return self._failed_at is not None

    def check(self) -> None:
        """Raise `StorageUnavailable` after a failed sync, until a probe well after it has succeeded."""
        if self._failed_at is None:
            return
        if time.monotonic() - self._failed_at < SUSPICION:
            raise StorageUnavailable(FAILED)
        try:
            self.probe()
        except OSError as error:
            raise StorageUnavailable(FAILED) from error
        self._failed_at = None

    def _tell(self, path: Path, error: OSError, kept: int) -> None:
        self._failed_at = time.monotonic()
        logger.error("the sync of %s failed: %s; its bytes from %d on do not count", path, error.strerror, kept)


def _sync_probe(descriptor: int) -> None:
    try:
        sync_file(descriptor)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise StorageUnavailable(
                "its file system cannot sync files, so that nothing would be safe there"
            ) from error
        raise


def inode_of(descriptor: int) -> Inode:
    """Device and inode number, which tell a file from another one that has its name later."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _cut(descriptor: int, end: int) -> None:
    """Cut a file off, and have the block around its end written again: it was part of what failed."""
    if os.fstat(descriptor).st_size < end:
        return
    begin = end - end % BLOCK
    block = os.pread(descriptor, end - begin, begin)
    os.ftruncate(descriptor, end)
    os.pwrite(descriptor, block, begin)
