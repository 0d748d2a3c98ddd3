"""Blocks that a file system has allocated to a file and never written: bytes that did not reach the device.

A page that a failed sync has lost stays in the page cache, clean, until the memory is needed, and then reads as zeros.
FIEMAP answers from the extents of the file instead, whatever the cache holds and whoever has read the file. A hole is
no proof where a file system stores zeros as holes, or answers before it has written; so only known ones are asked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

FS_IOC_FIEMAP = 0xC020660B
SYNC = 1  # FIEMAP_FLAG_SYNC: write dirty pages first
LAST = 1  # FIEMAP_EXTENT_LAST
UNWRITTEN = 0x800  # FIEMAP_EXTENT_UNWRITTEN
REQUEST = struct.Struct("=QQIIII")  # struct fiemap: start, length, flags, mapped extents, room for extents, reserved
EXTENT = struct.Struct("=QQQQQIIII")  # struct fiemap_extent: position, place, length, reserved, flags, reserved
ROOM = 128  # extents of one answer
UNSUPPORTED = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES)
KNOWN_TYPES = ("ext3", "ext4", "xfs", "btrfs")  # they write an extent, and only then call it written
MOUNTS = Path("/proc/self/mountinfo")
ESCAPED = re.compile(rb"\\([0-7]{3})")


def first_gap(descriptor: int, start: int, end: int) -> int | None:
    """Return where the first byte of a range is that was never written to the device; None if that is unknown.

    Dirty pages are written before. A file without gaps has the answer `end`. Raises `OSError`.
    """
    position = start
    while position < end:
        try:
            extents = _extents(descriptor, position, end)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return None
            raise
        if not extents:
            return position
        for extent_start, length, flags in extents:
            if extent_start > position or flags & UNWRITTEN:
                return position
            position = extent_start + length
            if flags & LAST:
                return min(position, end)
    return end


def _extents(descriptor: int, start: int, end: int) -> list[tuple[int, int, int]]:
    """Return position, length and flags of the first extents of a range; raises `OSError`."""
    answer = bytearray(REQUEST.size + ROOM * EXTENT.size)
    REQUEST.pack_into(answer, 0, start, end - start, SYNC, 0, ROOM, 0)
    fcntl.ioctl(descriptor, FS_IOC_FIEMAP, answer, True)
    count = REQUEST.unpack_from(answer)[3]
    found = [EXTENT.unpack_from(answer, REQUEST.size + number * EXTENT.size) for number in range(count)]
    return [(extent[0], extent[2], extent[5]) for extent in found]


def tells_gaps(path: Path) -> bool:
    """Return whether the file system of a file is one whose holes and unwritten extents were never written."""
    try:
        return file_system_type(os.path.realpath(path.parent), MOUNTS.read_bytes()) in KNOWN_TYPES
    except OSError:  # not Linux
        return False


def file_system_type(folder: str, mounts: bytes) -> str:
    """Return the type of the file system of a real path, by the text of `mountinfo`; empty if it is not there."""
    found, longest = "", -1
    for mount, kind in _mounts(mounts):
        # Of several mounts on one place, the last one counts.
        if len(mount) >= longest and _is_in(folder, mount):
            found, longest = kind, len(mount)
    return found


def has_mount_below(folder: str, mounts: bytes) -> bool:
    """Return whether something is mounted below a real path, by the text of `mountinfo`."""
    return any(mount != folder and _is_in(mount, folder) for mount, _ in _mounts(mounts))


def _mounts(mounts: bytes) -> Iterator[tuple[str, str]]:
    """Yield place and type of every mount."""
    for line in mounts.splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        if len(fields) > 4 and after:
            place = ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
            yield os.fsdecode(place), os.fsdecode(after.split(b" ")[0])


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
