"""Files below one directory, opened so that nothing planted there leads out of the directory or blocks.

A name that is a symbolic link, a FIFO, a device or a socket is refused, and no folder below the directory is reached
through a link. The directory itself may be a link: the operator named it. Every call blocks, and raises `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

READ_SIZE = 1 << 20
COPY_SIZE = 1 << 30  # bytes of one copy_file_range call
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAFE_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY  # O_NONBLOCK: opening a FIFO must not wait
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

AnyPath: TypeAlias = str | Path


@dataclass(frozen=True, slots=True)
class Modes:
    """The permissions of new files and folders, reduced by the umask unless they are `exact`."""

    file: int = 0o640
    folder: int = 0o750
    exact: bool = False


class _OpenFolder:
    """The open folder of a file: a name and the descriptor that it is relative to, or a whole path and None."""

    __slots__ = ("_descriptor", "_name")

    def __init__(self, name: str, descriptor: int | None) -> None:
        self._name = name
        self._descriptor = descriptor

    def __enter__(self) -> tuple[str, int | None]:
        return self._name, self._descriptor

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


class FileTree:
    """The files below `top`. Paths are complete, and begin with `top`."""

    def __init__(self, top: Path, modes: Modes) -> None:
        self.top = top
        self._prefix = str(top / "-")[:-1]  # of the paths below it: "/" and "." are written otherwise than the rest
        self._modes = modes

    def make(self) -> None:
        """Create the directory if it is missing; raises `NotADirectoryError` if its path is not a directory."""
        if not self.top.is_dir():
            try:
                self.top.mkdir(self._modes.folder, parents=True, exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.top)) from None
            if self._modes.exact:
                self.top.chmod(self._modes.folder)

    def make_folders(self, path: AnyPath) -> None:
        """Create the folders that lead to a file."""
        with self._folder(path, make=True):
            pass

    def open(self, path: AnyPath, flags: int) -> int:
        """Return a descriptor of a regular file; `O_CREAT` creates its folders too."""
        if not flags & os.O_CREAT:
            with self._folder(path) as (name, folder):
                return _regular(os.open(name, flags | SAFE_FLAGS, dir_fd=folder), path)
        try:
            return self._open_or_make(path, flags, make=False)
        except FileNotFoundError:
            return self._open_or_make(path, flags, make=True)  # the first upload of a day

    def _open_or_make(self, path: AnyPath, flags: int, *, make: bool) -> int:
        with self._folder(path, make=make) as (name, folder):
            if self._modes.exact and not flags & os.O_EXCL:
                with contextlib.suppress(FileExistsError):
                    return self._open_or_make(path, flags | os.O_EXCL, make=make)
            descriptor = os.open(name, flags | SAFE_FLAGS, self._modes.file, dir_fd=folder)
            if not flags & os.O_EXCL:
                return _regular(descriptor, path)
            try:
                if self._modes.exact:
                    os.fchmod(descriptor, self._modes.file)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor

    @contextlib.contextmanager
    def opened(self, path: AnyPath, flags: int) -> Iterator[int]:
        descriptor = self.open(path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def status(self, path: AnyPath) -> os.stat_result | None:
        """Return the status of a file; None if it is missing."""
        try:
            with self._folder(path) as (name, folder):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        _check_regular(status, path)
        return status

    def size(self, path: AnyPath) -> int | None:
        """Return the size of a file in bytes; None if it is missing."""
        status = self.status(path)
        return None if status is None else status.st_size

    def is_occupied(self, path: AnyPath) -> bool:
        """Return whether a name is that of a file with bytes, or of something else than a file."""
        try:
            with self._folder(path) as (name, folder):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return status.st_size > 0 or not stat.S_ISREG(status.st_mode)

    def unlink(self, path: AnyPath) -> None:
        """Remove a name of any kind; a missing one is no error."""
        with contextlib.suppress(FileNotFoundError), self._folder(path) as (name, folder):
            self._unlink(name, folder)

    def _unlink(self, name: str, folder: int | None) -> None:
        try:
            os.unlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in FULL_DISK_ERRORS:
                raise
            # A copy-on-write file system needs room to remove a file; truncating the file first makes some.
            descriptor = _regular(os.open(name, os.O_WRONLY | os.O_TRUNC | SAFE_FLAGS, dir_fd=folder), name)
            os.close(descriptor)
            os.unlink(name, dir_fd=folder)

    def link_text(self, text: str, path: AnyPath) -> None:
        """Make a symbolic link that leads nowhere and holds a text; raises `FileExistsError`."""
        self.make()
        with self._folder(path, make=True) as (name, folder):
            os.symlink(text, name, dir_fd=folder)

    def read_link(self, path: AnyPath) -> str:
        """Return the text of a symbolic link; empty if there is none."""
        try:
            with self._folder(path) as (name, folder):
                return os.readlink(name, dir_fd=folder)
        except FileNotFoundError:
            return ""

    def rename(self, path: Path, new: Path) -> None:
        """Rename a file within its folder."""
        with self._folder(path) as (name, folder):
            os.rename(name, new if folder is None else new.name, src_dir_fd=folder, dst_dir_fd=folder)

    def replace(self, path: AnyPath, content: bytes) -> None:
        """Write a file with this content, atomically in place of an existing one; creates its folders."""
        try:
            self._replace(path, content, make=False)
        except FileNotFoundError:
            self._replace(path, content, make=True)

    def _replace(self, path: AnyPath, content: bytes, *, make: bool) -> None:
        with self._folder(path, make=make) as (name, folder):
            # `O_EXCL` makes a name safe that can be guessed; `secrets` would ask the kernel for it.
            new = f"{name}.{random.getrandbits(64):016x}"
            descriptor = os.open(
                new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_FLAGS, self._modes.file, dir_fd=folder
            )
            try:
                try:
                    write_all(descriptor, content)
                finally:
                    os.close(descriptor)
                os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    self._unlink(new, folder)
                raise

    @contextlib.contextmanager
    def opened_folder(self, folder: Path) -> Iterator[int]:
        """Open the directory or a folder below it for the context; yields the descriptor."""
        if folder == self.top:
            descriptor = os.open(folder, FOLDER_FLAGS)
        else:
            with self._folder(folder) as (name, above):
                descriptor = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def folders(self, path: Path) -> list[Path]:
        """Return the folders from the one that holds `path` up to and including the directory."""
        folders = [path.parent]
        while folders[-1] != self.top:
            folders.append(folders[-1].parent)
        return folders

    def _folder(self, path: AnyPath, *, make: bool = False) -> _OpenFolder:
        """Open the folder of a file."""
        text = os.fspath(path)
        if not text.startswith(self._prefix):
            raise ValueError(f"{text} is not below {self.top}")
        *folders, name = text[len(self._prefix) :].split("/")
        if make:
            self.make()
        if not folders:
            return _OpenFolder(text, None)
        if make:
            descriptor = os.open(self.top, FOLDER_FLAGS)
        else:  # one call less: only folders below the first one need the descriptor of the one above
            descriptor = os.open(self._prefix + folders.pop(0), FOLDER_FLAGS | os.O_NOFOLLOW)
        try:
            for folder in folders:
                below = self._open_below(folder, descriptor, make=make)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        return _OpenFolder(name, descriptor)

    def _open_below(self, name: str, above: int, *, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, self._modes.folder, dir_fd=above)
                if self._modes.exact:
                    os.chmod(name, self._modes.folder, dir_fd=above)
        return os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above)


def _regular(descriptor: int, path: AnyPath) -> int:
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result, path: AnyPath) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def copy_range(target: int, source: int, start: int, end: int, *, in_kernel: bool = True) -> int:
    """Append the bytes of a file from `start` up to but not including `end`; return the position reached."""
    position = _copy_in_kernel(source, target, start, end) if in_kernel else start
    while position < end:
        data = os.pread(source, min(READ_SIZE, end - position), position)
        if not data:
            break
        position += len(data)
        write_all(target, data)
    return position


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes: one call may take a part of them without an error."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _copy_in_kernel(source: int, target: int, start: int, end: int) -> int:
    """Copy by copy_file_range, a reflink on file systems that support it; return the position reached."""
    position = start
    if not hasattr(os, "copy_file_range"):
        return position
    try:
        while position < end:
            count = os.copy_file_range(source, target, min(COPY_SIZE, end - position), position)
            if count == 0:
                break
            position += count
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise
    return position
