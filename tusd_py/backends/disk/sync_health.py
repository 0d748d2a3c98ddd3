"""The health of a file system: after a failed sync it counts as broken, until a probe succeeds a while later."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from tusd_py.backends.disk.files import FULL_DISK_ERRORS, FileTree
from tusd_py.backends.disk.folder_syncs import FolderSyncs
from tusd_py.backends.disk.sync_calls import UNSUPPORTED, sync_file
from tusd_py.core.errors import StorageUnavailable

logger = logging.getLogger("tusd_py.storage")

SUSPICION = 60.0  # seconds after a failed sync during which `check` fails
PROBE_SIZE = 64 << 10  # bytes
FAILED = "a sync to the disk failed and bytes were lost: look at the disk"


class SyncHealth:
    """The health of the file system of one storage. The methods block."""

    def __init__(self, files: FileTree, folders: FolderSyncs) -> None:
        self._files = files
        self._folders = folders
        self._failed_at: float | None = None  # monotonic time of the last failed sync

    def open(self) -> None:
        """Probe the file system; a full disk, which cannot be probed, counts as one that supports everything."""
        try:
            self.probe()
        except OSError as error:
            if error.errno not in FULL_DISK_ERRORS:
                raise

    def probe(self) -> None:
        """Find out what the file system supports; raises `OSError` if it cannot store bytes."""
        path = self._files.top / ".probe"  # always the same, so that the next probe removes what a crash has left
        try:
            with self._files.opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
                os.write(descriptor, bytes(PROBE_SIZE))
                _sync_probe(descriptor)
            self._folders.sync(self._files.top)
        finally:
            with contextlib.suppress(OSError):
                self._files.unlink(path)

    @property
    def failed(self) -> bool:
        """Whether a sync has failed, and no probe has succeeded since."""
        return self._failed_at is not None

    def check(self) -> None:
        """Raise `StorageUnavailable` after a failed sync, until a probe `SUSPICION` seconds later has succeeded."""
        if self._failed_at is None:
            return
        if time.monotonic() - self._failed_at < SUSPICION:
            raise StorageUnavailable(FAILED)
        try:
            self.probe()
        except OSError as error:
            raise StorageUnavailable(FAILED) from error
        self._failed_at = None

    def note_failure(self) -> None:
        """Note that a sync has failed."""
        self._failed_at = time.monotonic()

    def report_failure(self, path: Path, error: OSError, kept: int) -> None:
        """Note and log that the sync of a file has failed, whose bytes count up to `kept`."""
        self.note_failure()
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
