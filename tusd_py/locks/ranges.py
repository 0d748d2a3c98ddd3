"""Byte-range locks of the kernel: the part of `fcntl` that the standard library leaves to a packed struct."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

# An "open file description" lock belongs to the opened file, not to the process, so that closing another descriptor
# of the same file does not drop it. Where the kernel lacks them a lock of the process does, with one descriptor only.
if sys.platform == "darwin":  # struct flock has another order there
    _FLOCK = struct.Struct("qqihh")
    _SET, _GET = fcntl.F_SETLK, fcntl.F_GETLK

    def _pack(kind: int, start: int) -> bytes:
        return _FLOCK.pack(start, 1, 0, kind, os.SEEK_SET)

    def _kind(packed: bytes) -> int:
        return int(_FLOCK.unpack(packed)[3])

else:
    _FLOCK = struct.Struct("hhqqi4x")
    _SET = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
    _GET = getattr(fcntl, "F_OFD_GETLK", fcntl.F_GETLK)

    def _pack(kind: int, start: int) -> bytes:
        return _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0)

    def _kind(packed: bytes) -> int:
        return int(_FLOCK.unpack(packed)[0])


def try_lock(descriptor: int, position: int, *, shared: bool = False) -> bool:
    """Lock one byte; False if another opened file holds a lock on it that excludes this one."""
    try:
        fcntl.fcntl(descriptor, _SET, _pack(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, position))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, position: int) -> None:
    fcntl.fcntl(descriptor, _SET, _pack(fcntl.F_UNLCK, position))


def is_locked_elsewhere(descriptor: int, position: int) -> bool:
    """True if another opened file holds any lock on this byte."""
    return _kind(fcntl.fcntl(descriptor, _GET, _pack(fcntl.F_WRLCK, position))) != fcntl.F_UNLCK
