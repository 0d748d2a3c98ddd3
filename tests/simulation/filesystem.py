"""A file system with a page cache: what was not synced is lost, or torn, at a power cut.

Model: a file has its bytes as processes see them, those on the device, and the changes between both, in order. A sync
makes the changes of a file durable, one of a folder those of its names. At a power cut a random beginning of the
changes of every file and folder has reached the device; the last write of them may be torn; writes over bytes that
the device already had reach it in any order, block by block (ext4 and XFS in ordered mode, without their barriers).
The size of a file may have reached the device before its bytes, which are zeros then.

A failed sync leaves the pages clean: they can be read, and never reach the device. Blocks that it should have added to
a file stay unwritten, which the file system can tell.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from tests.simulation.moments import Moments

# Abilities that a file system may lack: syncs of folders, whose names are then safe at once, copies by the kernel, hard
# links, the removal of a file that has bytes while the disk is full, and the answer which blocks were never written.
ABILITIES = ("folder syncs", "copies", "links", "removal when full", "extents")
SLOW_READS = 0.05  # of the statements of long reads of records take their time
BLOCK = 512  # bytes that are written, or lost, together

FileChange: TypeAlias = tuple[int, bytes | None]  # bytes at a position, or a cut at it
FolderChange: TypeAlias = "tuple[str, Inode | None]"  # a name and what it stands for; None: removed


def error(number: int, path: str = "") -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


@dataclass(eq=False, slots=True)
class Inode:
    """A file or a folder."""

    number: int
    mode: int
    changed_at: int = 0  # nanoseconds
    modified_at: float = 0.0


@dataclass(eq=False, slots=True)
class File(Inode):
    """Bytes, and the locks of the kernel on them: first byte, last byte, exclusive, owner."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[FileChange] = field(default_factory=list)
    locks: list[tuple[int, int, bool, object]] = field(default_factory=list)
    unwritten: set[int] = field(default_factory=set)  # numbers of blocks
    failed: int = 0  # number of the last failed sync: the next sync of who had the file open reports it (Linux, errseq)

    def write(self, position: int, content: bytes) -> None:
        _apply(self.data, (position, content))
        self.pending.append((position, content))

    def cut(self, size: int) -> None:
        _apply(self.data, (size, None))
        self.pending.append((size, None))

    def sync(self) -> None:
        for position, content in self.pending:
            _apply(self.durable, (position, content))
            if content is None:
                self.unwritten = {block for block in self.unwritten if block * BLOCK < position}
            else:
                self.unwritten.difference_update(_blocks(position, content))
        self.pending.clear()

    def fail_sync(self) -> None:
        """Clean the pages without writing them."""
        written = -(-len(self.durable) // BLOCK)
        for position, content in self.pending:
            if content is not None:
                self.unwritten.update(block for block in _blocks(position, content) if block >= written)
        self.pending = [change for change in self.pending if change[1] is None]

    def extents(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        """Write the dirty pages; return position and size of every block of a range, and whether it was written."""
        self.sync()
        blocks = range(start // BLOCK, -(-min(end, len(self.data)) // BLOCK))
        return [(block * BLOCK, BLOCK, block not in self.unwritten) for block in blocks]

    def power_cut(self, rng: Random, *, sizes_first: bool) -> None:
        written = len(self.durable)
        reached = rng.randrange(len(self.pending) + 1)
        for number, (position, content) in enumerate(self.pending):
            if content is None:
                if number < reached:
                    _apply(self.durable, (position, None))
                continue
            if number == reached:
                content = content[: rng.randrange(len(content) + 1)]
            elif number > reached:
                content = content[: max(0, min(written, len(self.durable)) - position)]
                content = content if rng.random() < 0.5 else content[: rng.randrange(len(content) // BLOCK + 1) * BLOCK]
            if content:
                _apply(self.durable, (position, content))
        if self.pending and sizes_first and rng.random() < 0.3:
            size = rng.randrange(len(self.data) + 1)
            self.durable.extend(bytes(max(0, size - len(self.durable))))
        self.pending.clear()
        self.locks.clear()
        self.unwritten = {block for block in self.unwritten if block * BLOCK < len(self.durable)}
        self.data = bytearray(self.durable)


@dataclass(eq=False, slots=True)
class Link(Inode):
    """A symbolic link, which is as durable as its name."""

    text: str = ""


@dataclass(eq=False, slots=True)
class Folder(Inode):
    """Names."""

    entries: dict[str, Inode] = field(default_factory=dict)
    durable: dict[str, Inode] = field(default_factory=dict)
    pending: list[list[FolderChange]] = field(default_factory=list)

    def change(self, *changes: FolderChange) -> None:
        """Make changes of names as one step."""
        _rename(self.entries, changes)
        self.pending.append(list(changes))

    def sync(self) -> None:
        for changes in self.pending:
            _rename(self.durable, changes)
        self.pending.clear()

    def power_cut(self, rng: Random, *, sizes_first: bool) -> None:
        for changes in self.pending[: rng.randrange(len(self.pending) + 1)]:
            _rename(self.durable, changes)
        self.pending.clear()
        self.entries = dict(self.durable)


def _blocks(position: int, content: bytes) -> range:
    """Return the numbers of the blocks that a write touches."""
    return range(position // BLOCK, -(-(position + len(content)) // BLOCK))


def _apply(data: bytearray, change: FileChange) -> None:
    position, content = change
    if content is None:
        if position < len(data):
            del data[position:]
        else:
            data.extend(bytes(position - len(data)))
        return
    if position > len(data):
        data.extend(bytes(position - len(data)))
    data[position : position + len(content)] = content


def _rename(entries: dict[str, Inode], changes: list[FolderChange] | tuple[FolderChange, ...]) -> None:
    for name, inode in changes:
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode


class FileSystem:
    """The files of one machine, or of one server of shared files."""

    def __init__(self, rng: Random, top: str) -> None:
        """Have the one folder `top`, which is durable."""
        self.rng = rng
        self._numbers = 0
        self._ticks = 0
        self.top = top
        self.mounted = self.new_folder()
        self.below_mount = self.new_folder()
        self.inodes: list[File | Folder] = [self.mounted]
        self.lacks: frozenset[str] = frozenset()
        self.sizes_first = True  # whether the size of a file may reach the device before its bytes
        # Faults.
        self.is_away = False  # nothing is mounted on `top`
        self.room = math.inf  # bytes that files may grow by, until the disk is full
        self.stalled_until = 0.0  # virtual time
        self.failing_syncs = 0  # number of syncs that are going to fail
        self.failing_record_syncs = 0  # of those of SQLite
        self.failing_folder_syncs = 0
        self.failing_writes = 0
        self.failing_closes = 0  # of files that were written to: NFS stores bytes when a file is closed
        self.hang_seconds = 0.0  # that the next write or sync takes, while others go on
        self.hangs_end_at = math.inf  # virtual time
        self.slow_reads = SLOW_READS
        self.syncs = 0
        self.failed_syncs = 0
        self.on_failed_sync: Callable[[], object] = lambda: None
        self.moments = Moments()

    @property
    def is_full(self) -> bool:
        """Whether the disk is full, but for the bytes of what was removed since."""
        return self.room < math.inf

    @is_full.setter
    def is_full(self, value: bool) -> None:
        self.room = 0 if value else math.inf

    def fits(self, file: File, end: int) -> int:
        """Return the end up to which a file can be written, at most `end`."""
        return min(end, int(len(file.data) + max(0, min(self.room, end))))

    def grow(self, size: int) -> None:
        """Note that files have grown by so many bytes, or shrunk by them if they are less than 0."""
        self.room -= size

    def stop_failing(self) -> None:
        self.failing_syncs = self.failing_record_syncs = self.failing_folder_syncs = 0
        self.failing_writes = self.failing_closes = 0

    def fail_sync(self, file: File) -> None:
        """Let one sync fail."""
        self.failed_syncs += 1
        file.failed = self.failed_syncs
        file.fail_sync()
        self.on_failed_sync()

    def new_folder(self) -> Folder:
        return Folder(self._next(), 0o40755)

    def new_file(self, mode: int) -> File:
        file = File(self._next(), 0o100000 | mode)
        self.inodes.append(file)
        return file

    def make_link(self, above: Folder, name: str, text: str) -> None:
        above.change((name, Link(self._next(), 0o120777, text=text)))

    def make_folder(self, above: Folder, name: str) -> None:
        folder = self.new_folder()
        self.inodes.append(folder)
        above.change((name, folder))

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def touch(self, inode: Inode, now: float) -> None:
        self._ticks += 1
        inode.changed_at = int(now * 1e9) + self._ticks
        inode.modified_at = now

    def power_cut(self) -> None:
        for inode in self.inodes:
            if isinstance(inode, Folder) and "folder syncs" in self.lacks:
                inode.sync()
            inode.power_cut(self.rng, sizes_first=self.sizes_first)

    # Names.

    def find(self, path: str, start: Folder | None = None) -> Inode:
        """Return what a path names; raises `FileNotFoundError`, `NotADirectoryError`."""
        folder, name = self.place(path, start)
        if not name:
            return folder
        try:
            return folder.entries[name]
        except KeyError:
            raise error(errno.ENOENT, path) from None

    def place(self, path: str, start: Folder | None = None) -> tuple[Folder, str]:
        """Return the folder that a path leads to, and the last name; an empty one for the top."""
        if path.startswith("/"):
            rest = path[len(self.top) :].strip("/")
            start = self.below_mount if self.is_away else self.mounted
        else:
            rest = path
        assert start is not None
        *folders, name = rest.split("/")
        for folder in folders:
            below = start.entries.get(folder)
            if below is None:
                raise error(errno.ENOENT, path)
            if not isinstance(below, Folder):
                raise error(errno.ENOTDIR, path)
            start = below
        return start, name

    def read(self, path: str) -> bytes | None:
        """Return the bytes that processes see in a file of the mounted file system; None if there is none."""
        away, self.is_away = self.is_away, False
        try:
            found = self.find(path)
        except OSError:
            return None
        finally:
            self.is_away = away
        return bytes(found.data) if isinstance(found, File) else None

    def names(self) -> list[str]:
        """Return the paths of all files of the mounted file system, relative to its top."""
        return [name for name, _ in self._walk(self.mounted, "")]

    def _walk(self, folder: Folder, prefix: str) -> list[tuple[str, Inode]]:
        found: list[tuple[str, Inode]] = []
        for name, inode in sorted(folder.entries.items()):
            found += self._walk(inode, f"{prefix}{name}/") if isinstance(inode, Folder) else [(prefix + name, inode)]
        return found
