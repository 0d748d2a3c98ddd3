"""Byte-range locks of the kernel, by the structures that `fcntl` passes to it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

LAST_POSITION = (1 << 63) - 1

# An "open file description" lock belongs to the opened file, not to the process: closing another descriptor of the same
# file does not release it. Kernels without such locks have locks of the process, which work as long as the process has
# one descriptor of each file.
if sys.platform == "darwin":  # struct flock has another order there
    _FLOCK = struct.Struct("qqihh")
    _SET, _GET = fcntl.F_SETLK, fcntl.F_GETLK

    def _pack(kind: int, start: int, length: int) -> bytes:
        return _FLOCK.pack(start, length, 0, kind, os.SEEK_SET)

    def _unpack(packed: bytes) -> tuple[int, int, int]:
        start, length, _, kind, _ = _FLOCK.unpack(packed)
        return kind, start, length

else:
    _FLOCK = struct.Struct("hhqqi4x")
    _SET = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
    _GET = getattr(fcntl, "F_OFD_GETLK", fcntl.F_GETLK)

    def _pack(kind: int, start: int, length: int) -> bytes:
        return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)

    def _unpack(packed: bytes) -> tuple[int, int, int]:
        kind, _, start, length, _ = _FLOCK.unpack(packed)
        return kind, start, length


def try_lock(descriptor: int, position: int, *, shared: bool = False, to_end: bool = False) -> bool:
    """Lock one byte, or with `to_end` all bytes from `position` on; return whether that succeeded.

    Fails if another opened file holds a lock that excludes this one.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, _SET, _pack(kind, position, 0 if to_end else 1))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, position: int) -> None:
    """Release the lock of one byte."""
    fcntl.fcntl(descriptor, _SET, _pack(fcntl.F_UNLCK, position, 1))


def is_locked_elsewhere(descriptor: int, position: int) -> bool:
    """Return whether another opened file holds any lock on this byte."""
    return first_locked_elsewhere(descriptor, position, position) is not None


def first_locked_elsewhere(descriptor: int, first: int, last: int) -> tuple[int, int] | None:
    """Return a range (first and last byte) that another opened file has locked between two bytes, or None.

    The range is the first one in the list of the kernel, not the one with the lowest position.
    """
    packed = fcntl.fcntl(descriptor, _GET, _pack(fcntl.F_WRLCK, first, last - first + 1))
    kind, start, length = _unpack(packed)
    if kind == fcntl.F_UNLCK:
        return None
    return start, start + length - 1 if length else LAST_POSITION


def all_locked_elsewhere(descriptor: int, first: int, last: int, *, limit: int) -> list[int] | None:
    """Return the bytes from `first` to `last` that other opened files have locked, where each lock is of one byte.

    Returns None if there are more than `most`. Costs one system call, and two more for each lock.
    """
    found: list[int] = []
    unknown = [(first, last)]
    while unknown:
        start, end = unknown.pop()
        locked = first_locked_elsewhere(descriptor, start, end) if start <= end else None
        if locked is not None:
            if len(found) == limit:
                return None
            position = max(start, locked[0])
            found.append(position)
            unknown += [(start, position - 1), (position + 1, end)]
    return found
