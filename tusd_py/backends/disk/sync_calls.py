"""The calls that sync a file, and the errors by which a file system tells that it cannot."""

from __future__ import annotations

import errno
import fcntl
import os

UNSUPPORTED = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
    errno.EISDIR,
)


def sync_file(descriptor: int) -> None:
    """Sync the bytes and all metadata of a file to the device."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, where fsync stops at the cache of the device
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Sync the bytes of a file to the device."""
    if hasattr(os, "fdatasync") and not hasattr(fcntl, "F_FULLFSYNC"):
        os.fdatasync(descriptor)
    else:
        sync_file(descriptor)
