"""Marks of syncs under way, which outlive their process.

The kernel reports a failed sync once, to the process that made it. If that process is killed before it has cut off the
lost bytes, their pages can still be read, and every later sync succeeds without writing them. So a sync that could lose
acknowledged bytes has a mark: a file beside the file of the upload, made before the sync, and removed after the sync
has succeeded or its bytes were cut off. A process that finds a mark does not know the outcome of a sync, and must not
rely on another one. The mark is empty, or tells how many bytes are known to be stored all the same, and whether those
after them are known to be lost.

A mark has to survive its process only, and is not synced: after a power cut there are no pages to be deceived by.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tusd_py.backends.disk.files import FileTree
from tusd_py.transfer.whole_writes import write_at

STEP_SIZE = 4 << 20  # bytes that are read, written and synced at a time
NAME = re.compile(r"\.(.+)\.sync")
CONTENT = re.compile(rb"([0-9]{20}) ([0-9]{20}) ([01])\n")  # `proven`, inode number, `lost`
CONTENT_SIZE = 44  # always, so that one content replaces another whole


class MissingBytes(OSError):
    """Bytes that were stored are no longer there."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "stored bytes are missing")


@dataclass(frozen=True, slots=True)
class Mark:
    """The content of a mark.

    Attributes:
        proven: end of the bytes that are known to be stored; 0 if nothing is known.
        lost: whether the bytes from there on are known to be lost; nothing is known of them otherwise.
    """

    proven: int = 0
    lost: bool = False


class SyncMarks:
    """The marks of one storage. Every method blocks."""

    def __init__(self, files: FileTree) -> None:
        self._files = files

    def make(self, path: Path) -> bool:
        """Make the mark of a file; return False if it has one. Raises `OSError`."""
        try:
            os.close(self._files.open(mark_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def exists(self, path: Path) -> bool:
        """Return whether a file has a mark. Raises `OSError`."""
        return self._files.size(mark_of(path)) is not None

    def note(self, path: Path, inode: int, mark: Mark) -> None:
        """Write the content of the mark of a file with this inode number; one that tells of a loss is made.

        Raises `OSError`.
        """
        flags = os.O_WRONLY | (os.O_CREAT if mark.lost else 0)
        with self._files.opened(mark_of(path), flags) as descriptor:
            write_at(descriptor, b"%020d %020d %d\n" % (mark.proven, inode, mark.lost), 0)

    def read(self, path: Path, inode: int) -> Mark | None:
        """Return the mark of a file, which tells nothing of a file with another inode number; None if there is none.

        Raises `OSError`.
        """
        try:
            with self._files.opened(mark_of(path), os.O_RDONLY) as descriptor:
                content = CONTENT.fullmatch(os.pread(descriptor, CONTENT_SIZE, 0))
        except FileNotFoundError:
            return None
        if content is None or int(content[2]) != inode:
            return Mark()
        return Mark(int(content[1]), content[3] == b"1")

    def remove(self, path: Path) -> None:
        """Remove the mark of a file, if there is one; one that stays has bytes stored again without need."""
        with contextlib.suppress(OSError):
            self._files.unlink(mark_of(path))


def mark_of(path: Path) -> Path:
    """Return the mark of a file; no upload id starts with a dot."""
    return path.with_name(f".{path.name}.sync")


def marked_name(name: str) -> str:
    """Return the name of the file that a mark with this name belongs to; empty if it is no name of a mark."""
    found = NAME.fullmatch(name)
    return found[1] if found else ""


def read_steps(descriptor: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of a range with their positions, at most `STEP_SIZE` at a time.

    Raises:
        MissingBytes: the file ends before them.
        OSError: they cannot be read.
    """
    position = start
    while position < end:
        data = os.pread(descriptor, min(STEP_SIZE, end - position), position)
        if not data:
            raise MissingBytes
        yield position, data
        position += len(data)
