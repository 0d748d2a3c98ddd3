"""Writes at a position that leave no part out."""

from __future__ import annotations

import errno
import os


def write_at(descriptor: int, data: bytes, position: int) -> None:
    """Write all bytes at a position: one call may take a part of them without an error. Blocks; raises `OSError`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        if written == 0:  # a file system that takes nothing and names no error: a repetition might never end
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        position += written
        rest = rest[written:]
