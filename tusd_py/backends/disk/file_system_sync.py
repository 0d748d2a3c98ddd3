"""The sync of everything that was written to a file system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.extents import MOUNTS, has_mount_below
from tusd_py.core.errors import StorageUnavailable


def sync_file_system(descriptor: int) -> None:
    """Sync the file system of an open file (Linux: syncfs); raises `OSError`.

    Errors of writing since the file was opened, or that nobody was told of before, make it fail.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class FileSystemSync:
    """The sync of the file system of a directory, as `WholeSync`. Open from before the first write. Blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with file_errors():
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def run(self) -> None:
        """Sync; raises `StorageUnavailable` if that fails, or if other file systems are mounted below the directory."""
        with file_errors():
            if has_mount_below(os.path.realpath(self._directory), MOUNTS.read_bytes()):
                raise StorageUnavailable("other file systems are mounted below the directory")
            sync_file_system(self._descriptor)

    def close(self) -> None:
        """Close the directory; a second call has no effect."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
