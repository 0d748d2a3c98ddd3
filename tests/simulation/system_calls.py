"""Stands for the modules `os` and `fcntl` in the code of the server: calls to the files of the machine it runs on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.simulation.filesystem import File, FileSystem, Folder, Inode, Link, error
from tests.simulation.loop import PROCESS
from tests.simulation.machine import FIRST_DESCRIPTOR, OpenFile, Process, release_locks
from tests.simulation.moments import CHANGE, CUT, FAILED_SYNC, HANG
from tusd_py.backends.disk.extents import EXTENT, FS_IOC_FIEMAP, REQUEST, UNWRITTEN

FLOCK = struct.Struct("hhqqi4x")
LAST = (1 << 63) - 1


def process_now() -> Process:
    process = PROCESS.get()
    if process is None or not process.alive:
        raise error(errno.EBADF)
    return process


class OsModule:
    """The calls of `os` that the server makes; for paths and descriptors that are not simulated, the real ones."""

    def __init__(self) -> None:
        for name in dir(os):
            if name not in dir(self):
                setattr(self, name, getattr(os, name))
        self._next = FIRST_DESCRIPTOR
        self.is_denied = False  # whether the directory may not be used, in a scenario

    # Descriptors.

    def _opened(self, descriptor: int) -> OpenFile:
        try:
            return process_now().descriptors[descriptor]
        except KeyError:
            raise error(errno.EBADF) from None

    def _add(self, opened: OpenFile) -> int:
        self._next += 1
        opened.process.descriptors[self._next] = opened
        return self._next

    def _files(self, path: Any, dir_fd: int | None) -> tuple[FileSystem, Folder | None] | None:
        """Return the file system of a path, and the folder that it is relative to; None for a real path."""
        process = PROCESS.get()
        if dir_fd is not None:
            opened = self._opened(dir_fd)
            assert isinstance(opened.inode, Folder)
            return opened.files, opened.inode
        if process is None or not os.fspath(path).startswith(process.machine.files.top):
            return None
        process_now()
        return process.machine.files, None

    def _wait(self, files: FileSystem, chance: float = 0.3) -> None:
        scheduler = process_now().machine.scheduler
        if scheduler.is_in_thread:
            scheduler.pause(chance)
            while files.stalled_until > scheduler.loop.now:
                scheduler.sleep(min(0.5, files.stalled_until - scheduler.loop.now) + scheduler.latency())

    def _hang(self, files: FileSystem) -> None:
        """Have this call hang, if one is to; only a process that lives comes back."""
        scheduler = process_now().machine.scheduler
        if not files.hang_seconds or not scheduler.is_in_thread:
            return
        end, files.hang_seconds = scheduler.loop.now + files.hang_seconds, 0.0
        files.moments.note(HANG)
        while scheduler.loop.now < min(end, files.hangs_end_at):
            scheduler.sleep(0.1)

    def _note(self, files: FileSystem, moment: str) -> None:
        """Note a moment, and let a fault that has waited for it come before the call returns."""
        scheduler = process_now().machine.scheduler
        if files.moments.note(moment) and scheduler.is_in_thread:
            scheduler.sleep(0.0)

    # Names.

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._files(path, dir_fd)
        if place is None:
            return os.open(path, flags, mode, dir_fd=dir_fd)
        files, start = place
        self._wait(files, 0.05)
        process = process_now()
        folder, name = files.place(os.fspath(path), start)
        inode: Inode | None = folder.entries.get(name) if name else folder
        if inode is None:
            if not flags & os.O_CREAT:
                raise error(errno.ENOENT, os.fspath(path))
            self._check_room(files)
            inode = files.new_file(mode)
            folder.change((name, inode))
            files.touch(inode, process.machine.loop.now)
        elif flags & os.O_EXCL and flags & os.O_CREAT:
            raise error(errno.EEXIST, os.fspath(path))
        if isinstance(inode, Link):
            raise error(errno.ELOOP, os.fspath(path))
        writable = bool(flags & (os.O_WRONLY | os.O_RDWR))
        if isinstance(inode, Folder) and writable:
            raise error(errno.EISDIR, os.fspath(path))
        if isinstance(inode, File) and flags & os.O_DIRECTORY:
            raise error(errno.ENOTDIR, os.fspath(path))
        if isinstance(inode, File) and flags & os.O_TRUNC:
            files.grow(-len(inode.data))
            inode.cut(0)
        opened = OpenFile(inode, files, process, writable)
        opened.errors_seen = files.failed_syncs
        return self._add(opened)

    def _check_room(self, files: FileSystem) -> None:
        if files.room <= 0 or files.is_away:
            raise error(errno.EROFS if files.is_away else errno.ENOSPC)

    def close(self, descriptor: int) -> None:
        if descriptor < FIRST_DESCRIPTOR:
            os.close(descriptor)
            return
        opened = self._opened(descriptor)
        del opened.process.descriptors[descriptor]
        opened.references -= 1
        if not opened.references:
            release_locks(opened)
        if opened.files.failing_closes and opened.writable and isinstance(opened.inode, File):
            opened.files.failing_closes -= 1
            opened.files.fail_sync(opened.inode)
            raise error(errno.EIO)

    def dup(self, descriptor: int) -> int:
        opened = self._opened(descriptor)
        opened.references += 1
        return self._add(opened)

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if isinstance(path, int):
            return self.fstat(path)
        place = self._files(path, dir_fd)
        if place is None:
            return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        self._wait(place[0], 0.05)
        return _status(place[0].find(os.fspath(path), place[1]))

    def lstat(self, path: Any) -> os.stat_result:
        return self.stat(path, follow_symlinks=False)

    def fstat(self, descriptor: int) -> os.stat_result:
        return os.fstat(descriptor) if descriptor < FIRST_DESCRIPTOR else _status(self._opened(descriptor).inode)

    def access(self, path: Any, mode: int) -> bool:
        return not self.is_denied

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._files(path, dir_fd)
        if place is None:
            os.mkdir(path, mode, dir_fd=dir_fd)
            return
        files, start = place
        folder, name = files.place(os.fspath(path), start)
        if not name or name in folder.entries:
            raise error(errno.EEXIST, os.fspath(path))
        self._check_room(files)
        files.make_folder(folder, name)

    def chmod(self, path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None: ...

    def fchmod(self, descriptor: int, mode: int) -> None: ...

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        place = self._files(path, dir_fd)
        if place is None:
            os.unlink(path, dir_fd=dir_fd)
            return
        files, start = place
        self._wait(files)
        folder, name = files.place(os.fspath(path), start)
        found = folder.entries.get(name)
        if found is None:
            raise error(errno.ENOENT, os.fspath(path))
        if files.is_full and "removal when full" in files.lacks and isinstance(found, File) and found.data:
            raise error(errno.ENOSPC, os.fspath(path))
        folder.change((name, None))
        if isinstance(found, File):
            files.grow(-len(found.data))
        self._note(files, CHANGE)

    def rename(self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        source, target = self._files(old, src_dir_fd), self._files(new, dst_dir_fd)
        if source is None or target is None:
            os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        files = source[0]
        self._wait(files)
        inode = files.find(os.fspath(old), source[1])
        folder, name = files.place(os.fspath(old), source[1])
        new_folder, new_name = files.place(os.fspath(new), target[1])
        if folder is new_folder:
            folder.change((name, None), (new_name, inode))
        else:
            folder.change((name, None))
            new_folder.change((new_name, inode))
        files.touch(inode, process_now().machine.loop.now)

    replace = rename

    def link(self, old: Any, new: Any) -> None:
        source, target = self._files(old, None), self._files(new, None)
        assert source is not None
        assert target is not None
        if "links" in source[0].lacks:
            raise error(errno.EPERM, os.fspath(new))
        inode = source[0].find(os.fspath(old))
        folder, name = source[0].place(os.fspath(new))
        if name in folder.entries:
            raise error(errno.EEXIST, os.fspath(new))
        folder.change((name, inode))
        source[0].touch(inode, process_now().machine.loop.now)

    def symlink(self, text: str, path: Any, *, dir_fd: int | None = None) -> None:
        place = self._files(path, dir_fd)
        if place is None:
            os.symlink(text, path, dir_fd=dir_fd)
            return
        files, start = place
        self._wait(files)
        folder, name = files.place(os.fspath(path), start)
        if name in folder.entries:
            raise error(errno.EEXIST, os.fspath(path))
        self._check_room(files)
        files.make_link(folder, name, text)
        self._note(files, CHANGE)

    def readlink(self, path: Any, *, dir_fd: int | None = None) -> str:
        place = self._files(path, dir_fd)
        if place is None:
            return str(os.readlink(path, dir_fd=dir_fd))
        found = place[0].find(os.fspath(path), place[1])
        if not isinstance(found, Link):
            raise error(errno.EINVAL, os.fspath(path))
        return str(found.text)

    def utime(self, path: Any) -> None:
        place = self._files(path, None)
        assert place is not None
        place[0].touch(place[0].find(os.fspath(path)), process_now().machine.loop.now)

    def listdir(self, path: Any) -> list[str]:
        folder = self._opened(path).inode if isinstance(path, int) else self._found(path)
        assert isinstance(folder, Folder)
        return list(folder.entries)

    def _found(self, path: Any) -> Inode:
        place = self._files(path, None)
        assert place is not None
        return place[0].find(os.fspath(path))

    def scandir(self, path: Any) -> contextlib.AbstractContextManager[Iterator[Any]]:
        if self._files(path, None) is None:
            return os.scandir(path)
        return contextlib.nullcontext(iter(self._entries(path)))

    def _entries(self, path: Any) -> list[FolderEntry]:
        folder = self._found(path)
        assert isinstance(folder, Folder)
        return [FolderEntry(name, f"{os.fspath(path)}/{name}", inode) for name, inode in folder.entries.items()]

    def walk(self, top: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        if self._files(top, None) is None:
            yield from os.walk(top)
            return
        entries = self._entries(top)
        folders = [entry.name for entry in entries if entry.is_dir()]
        yield os.fspath(top), folders, [entry.name for entry in entries if not entry.is_dir()]
        for name in folders:
            yield from self.walk(f"{os.fspath(top)}/{name}")

    def statvfs(self, path: Any) -> os.statvfs_result:
        free = 0 if process_now().machine.files.is_full else 1 << 20
        return os.statvfs_result((4096, 4096, 1 << 20, free, free, 1 << 20, 1 << 20, 1 << 20, 0, 255))

    # Bytes.

    def _file(self, descriptor: int, *, writing: bool = False) -> File:
        opened = self._opened(descriptor)
        if not isinstance(opened.inode, File):
            raise error(errno.EISDIR)
        if writing and not opened.writable:
            raise error(errno.EBADF)
        return opened.inode

    def read(self, descriptor: int, count: int) -> bytes:
        if descriptor < FIRST_DESCRIPTOR:
            return os.read(descriptor, count)
        opened = self._opened(descriptor)
        content = self.pread(descriptor, count, opened.position)
        opened.position += len(content)
        return content

    def pread(self, descriptor: int, count: int, position: int) -> bytes:
        file = self._file(descriptor)
        self._wait(self._opened(descriptor).files, 0.1)
        return bytes(file.data[position : position + count])

    def write(self, descriptor: int, content: Any) -> int:
        if descriptor < FIRST_DESCRIPTOR:
            return os.write(descriptor, content)
        opened = self._opened(descriptor)
        written = self.pwritev(descriptor, [content], opened.position)
        opened.position += written
        return written

    def pwrite(self, descriptor: int, content: Any, position: int) -> int:
        return self.pwritev(descriptor, [content], position)

    def pwritev(self, descriptor: int, buffers: Sequence[Any], position: int) -> int:
        file = self._file(descriptor, writing=True)
        files = self._opened(descriptor).files
        self._wait(files)
        self._hang(files)
        self._opened(descriptor)  # the process may have died meanwhile
        content = b"".join(bytes(buffer) for buffer in buffers)
        if files.failing_writes > 0:
            files.failing_writes -= 1
            raise error(errno.EIO)
        if (end := files.fits(file, position + len(content))) < position + len(content):
            content = content[: max(0, end - position)]
            if not content:
                raise error(errno.ENOSPC)
        elif len(content) > 1 and PROCESS.get() and process_now().machine.rng.random() < 0.03:
            content = content[: process_now().machine.rng.randrange(1, len(content))]
        files.grow(max(0, position + len(content) - len(file.data)))
        file.write(position, content)
        files.touch(file, process_now().machine.loop.now)
        self._note(files, CHANGE)
        return len(content)

    def copy_file_range(self, source: int, target: int, count: int, offset: int) -> int:
        if "copies" in self._opened(source).files.lacks:
            raise error(errno.EXDEV)
        content = self.pread(source, count, offset)
        return self.write(target, content) if content else 0

    def ftruncate(self, descriptor: int, size: int) -> None:
        files = self._opened(descriptor).files
        self._wait(files)
        file = self._file(descriptor, writing=True)
        files.grow(size - len(file.data))
        file.cut(size)
        files.touch(file, process_now().machine.loop.now)
        self._note(files, CUT)
        self._note(files, CHANGE)

    def fsync(self, descriptor: int) -> None:
        opened = self._opened(descriptor)
        self._wait(opened.files, 0.7)
        files = opened.files
        self._hang(files)
        process_now()
        files.syncs += 1
        if isinstance(opened.inode, Folder) and "folder syncs" in files.lacks:
            raise error(errno.EINVAL)
        assert isinstance(opened.inode, File | Folder)
        if files.failing_folder_syncs and isinstance(opened.inode, Folder):
            files.failing_folder_syncs -= 1
            raise error(errno.EIO)
        if files.failing_syncs > 0 and isinstance(opened.inode, File):
            files.failing_syncs -= 1
            files.fail_sync(opened.inode)
            self._note(files, FAILED_SYNC)
        if isinstance(opened.inode, File) and opened.errors_seen < opened.inode.failed:
            opened.errors_seen = opened.inode.failed
            files.on_failed_sync()
            raise error(errno.EIO)
        opened.inode.sync()
        self._note(files, CHANGE)
        self._wait(files, 0.3)

    fdatasync = fsync

    def sync_file_system(self, descriptor: int) -> None:
        """Do what `syncfs` does."""
        opened = self._opened(descriptor)
        self._wait(opened.files, 0.7)
        self._hang(opened.files)
        process_now()
        if opened.errors_seen < opened.files.failed_syncs:
            opened.errors_seen = opened.files.failed_syncs
            raise error(errno.EIO)
        for inode in opened.files.inodes:
            inode.sync()
        self._note(opened.files, CHANGE)


def _status(inode: Inode) -> os.stat_result:
    size = len(inode.data) if isinstance(inode, File) else 0
    whole = int(inode.modified_at)
    return os.stat_result(
        (inode.mode, inode.number, 1, 1, 0, 0, size, whole, whole, whole), {"st_ctime_ns": inode.changed_at}
    )


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """An entry of a folder, with the interface of `os.DirEntry`."""

    name: str
    path: str
    inode: Inode

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return isinstance(self.inode, Folder)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return isinstance(self.inode, File)

    def is_symlink(self) -> bool:
        return isinstance(self.inode, Link)


class FcntlModule:
    """The locks of byte ranges, which belong to open files."""

    def __init__(self, system: OsModule) -> None:
        self._system = system
        for name in dir(fcntl):
            if name not in dir(self):
                setattr(self, name, getattr(fcntl, name))

    def ioctl(self, descriptor: int, request: int, argument: bytearray, mutate: bool) -> int:
        """Answer FIEMAP as `extents.first_gap` asks it, with the flag to write dirty pages first."""
        assert request == FS_IOC_FIEMAP
        opened = self._system._opened(descriptor)
        assert isinstance(opened.inode, File)
        if "extents" in opened.files.lacks:
            raise error(errno.EOPNOTSUPP)
        start, length, _, _, room, _ = REQUEST.unpack_from(argument)
        found = opened.inode.extents(start, start + length)[:room]
        if not all(is_written for _, _, is_written in found):
            opened.files.on_failed_sync()  # of a process that died in it: it is noticed only now
        REQUEST.pack_into(argument, 0, start, length, 0, len(found), room, 0)
        for number, (position, size, is_written) in enumerate(found):
            flags = 0 if is_written else UNWRITTEN
            EXTENT.pack_into(
                argument, REQUEST.size + number * EXTENT.size, position, position, size, 0, 0, flags, 0, 0, 0
            )
        return 0

    def fcntl(self, descriptor: int, command: int, argument: Any = 0) -> Any:
        if descriptor < FIRST_DESCRIPTOR:
            return fcntl.fcntl(descriptor, command, argument)
        opened = self._system._opened(descriptor)
        assert isinstance(opened.inode, File)
        kind, whence, start, length, pid = FLOCK.unpack(argument)
        end = LAST if length == 0 else start + length - 1
        exclusive = kind == fcntl.F_WRLCK
        conflict = next(
            (
                lock
                for lock in opened.inode.locks
                if lock[3] is not opened and lock[0] <= end and lock[1] >= start and (exclusive or lock[2])
            ),
            None,
        )
        if command == getattr(fcntl, "F_OFD_GETLK", fcntl.F_GETLK):
            if conflict is None:
                return FLOCK.pack(fcntl.F_UNLCK, whence, start, length, pid)
            size = 0 if conflict[1] == LAST else conflict[1] - conflict[0] + 1
            return FLOCK.pack(fcntl.F_WRLCK if conflict[2] else fcntl.F_RDLCK, whence, conflict[0], size, 0)
        if kind != fcntl.F_UNLCK and conflict is not None:
            raise error(errno.EAGAIN)
        opened.inode.locks = [
            lock for lock in opened.inode.locks if lock[3] is not opened or lock[0] > end or lock[1] < start
        ]
        if kind != fcntl.F_UNLCK:
            opened.inode.locks.append((start, end, exclusive, opened))
        return argument
