"""The identity of a storage in a directory, kept in a file of its private folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from pathlib import Path
from typing import TypeAlias

from tusd_py.backends.disk.files import write_all
from tusd_py.core.storage_identity import MAX_LENGTH, NAME, PRIVATE_FOLDER, Proof, parse_identity

SETTLE_TIME = 1.0  # seconds in which a process that saw no file has written its own
MOUNTED_AGAIN = "the file system of {} was mounted again, which takes bytes that were not synced: restart the server"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV)

Mounts: TypeAlias = tuple[int, int, bool]


class IdentityFile:
    """The file with the identity of a directory. Every method blocks, and raises `OSError`."""

    def __init__(self, directory: Path, *, stays_mounted: bool = False) -> None:
        """Take a directory; if it `stays_mounted`, it has to be on the same mount from `expect` on.

        Bytes that were not synced are gone with a mount, and the locks of the server are on files of the earlier one.
        The numbers of the devices tell: the open files of the server keep the earlier ones in use.
        """
        self._path = directory / PRIVATE_FOLDER / NAME
        self._folders = str(directory), str(directory / PRIVATE_FOLDER)
        self._stays_mounted = stays_mounted
        self._mounts: Mounts | None = None  # when the identity was to be expected; None: not known yet
        self._mounts_read: Mounts | None = None  # when it was last read
        self.proof = Proof(f"that the file system of {directory} is mounted, and --upload-dir ({self._path})")
        # Device, inode and change time of the file that was read last, and its identity. Threads replace it as a whole.
        self._last: tuple[tuple[int, int, int], str | None] | None = None

    def read(self) -> str | None:
        """Return the identity; None if there is none."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            self._mounts_read = self._look_at_mounts()
            return parse_identity(os.read(descriptor, MAX_LENGTH))
        finally:
            os.close(descriptor)

    def create(self, identity: str, *, replace: bool = False) -> None:
        """Write an identity, synced; without `replace`, only if there is none."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_name(f"{NAME}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                write_all(descriptor, f"{identity}\n".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if replace or self.read() is None:
                self._link_or_replace(new, replace=replace)
        finally:
            new.unlink(missing_ok=True)
        self._sync_folders()

    def _link_or_replace(self, new: Path, *, replace: bool) -> None:
        if not replace and not os.path.lexists(self._path):
            try:
                os.link(new, self._path)  # of several processes, one succeeds
                return
            except FileExistsError:
                return
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
        if not replace and self.read() is not None:  # another process has written its own since it was missing
            return
        new.replace(self._path)
        if not replace:
            time.sleep(SETTLE_TIME)  # another process that saw no file has written its own by then; the last one counts

    def _sync_folders(self) -> None:
        for folder in (self._path.parent, self._path.parent.parent):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with contextlib.suppress(OSError):  # some file systems sync no directories
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def expect(self, identity: str) -> None:
        """Have `check` accept only this identity, which was just read."""
        self.proof.expected = identity
        self._mounts = self._mounts_read

    def check(self) -> None:
        """Raise `WrongStorage` unless the directory has the expected identity, on the mount where it was expected.

        The file is read again only if it was replaced or changed; the inode number alone proves nothing. Several
        threads may call this at a time.
        """
        if self.proof.expected is None:
            return
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self.proof.judge(None)
            return
        seen = (status.st_dev, status.st_ino, status.st_ctime_ns)
        last = self._last
        if last is None or last[0] != seen or last[1] != self.proof.expected:
            self._last = None  # if the file cannot be read, its identity is not known
            self._last = last = seen, self.read()
        if self._stays_mounted and last[1] == self.proof.expected:
            self._refuse_other_mount(status.st_dev)
        self.proof.judge(last[1])

    def _refuse_other_mount(self, device: int) -> None:
        if self._mounts == (device, device, False):  # another mount of either folder would be that of the file too
            return
        mounts = self._look_at_mounts()
        if self._mounts is None:
            self._mounts = mounts
        if self._mounts != mounts:
            self.proof.refuse(MOUNTED_AGAIN.format(self._path.parent.parent))

    def _look_at_mounts(self) -> Mounts:
        """Return the numbers of the devices of the directory and its private folder, and whether that is a link.

        Those of files differ on an overlay, where a change of the file moves it to another layer.
        """
        directory, private = self._folders
        return os.stat(directory).st_dev, os.stat(private).st_dev, os.path.islink(private)

    def touch(self) -> None:
        """Update the times of the file, so that tools that remove old files spare it."""
        os.utime(self._path)
