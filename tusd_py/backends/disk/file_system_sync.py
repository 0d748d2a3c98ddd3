"""The sync of everything that was written to a file system."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.extents import MOUNTS, file_system_type, has_mount_below
from tusd_py.core.errors import StorageUnavailable

# They answer syncfs without having their server store anything.
UNPROVING = ("fuse", "cifs", "smb3", "ecryptfs", "9p", "vboxsf")


def sync_file_system(descriptor: int) -> None:
    """Sync the file system of an open file (Linux: syncfs); raises `OSError`.

    Errors of writing since the file was opened, or that nobody was told of before, make it fail.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def obstacle_to_sync(directory: Path) -> str:
    """Return why a sync of the file system of a directory does not prove all its files; empty if it does.

    Raises `OSError` if that cannot be found out.
    """
    folder, mounts = os.path.realpath(directory), MOUNTS.read_bytes()
    if has_mount_below(folder, mounts):
        return "other file systems are mounted below the directory"
    if file_system_type(folder, mounts).startswith(UNPROVING):
        return "a sync of this kind of file system proves nothing"
    return ""


class FileSystemSync:
    """The sync of the file system of a directory, as `WholeSync`. Open from before the first write. Blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with file_errors():
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def run(self) -> None:
        """Sync; raises `StorageUnavailable` if that fails, or would not prove all files of the directory."""
        with file_errors():
            if obstacle := obstacle_to_sync(self._directory):
                raise StorageUnavailable(obstacle)
            if os.stat(self._directory).st_dev != os.fstat(self._descriptor).st_dev:
                raise StorageUnavailable("the file system was mounted again: the earlier one proves nothing")
            sync_file_system(self._descriptor)

    def mount_id(self) -> str:
        """Return the number of the entry in sysfs that the kernel makes at each mount; empty if there is none."""
        device = os.fstat(self._descriptor).st_dev
        with contextlib.suppress(OSError):
            name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
            for kind in ("ext4", "xfs", "f2fs"):
                with contextlib.suppress(OSError):
                    return str(os.stat(f"/sys/fs/{kind}/{name}").st_ino)
        return ""

    def close(self) -> None:
        """Close the directory; a second call has no effect."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
