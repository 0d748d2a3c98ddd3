"""Syncs of files and folders; a failed sync stays a failure.

After a failed fsync the kernel has dropped the bytes, or keeps them as if they were stored: the next fsync succeeds and
proves nothing. Bytes that were not synced before are therefore cut off at once, in the thread of the sync and before
any request is answered: the file itself then shows to every process, and after every crash, how many bytes it has.
Bytes of a process that died in between have a mark (`sync_marks.py`), and are stored again before they are synced.

On a shared directory nothing is cut off: a writer that has lost its lease could cut off what its successor has proved.
There the mark tells of the loss.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.extents import first_gap, tells_gaps
from tusd_py.backends.disk.failed_cuts import FailedCuts
from tusd_py.backends.disk.files import AnyPath, FileTree
from tusd_py.backends.disk.folder_syncs import FolderSyncs
from tusd_py.backends.disk.sync_calls import sync_data, sync_file
from tusd_py.backends.disk.sync_health import SyncHealth
from tusd_py.backends.disk.sync_marks import Mark, MissingBytes, SyncMarks, read_steps
from tusd_py.core.errors import StorageBehind, StorageUnavailable, UploadError
from tusd_py.transfer.whole_writes import write_at

Inode: TypeAlias = tuple[int, int]

logger = logging.getLogger("tusd_py.storage")

BLOCK_SIZE = 4096  # bytes that a device writes, or loses, together


@dataclass(frozen=True, slots=True)
class Unproven:
    """The bytes of a file, which begins at `start`, that a sync may have lost: from `kept` to before `end`."""

    path: Path
    start: int
    kept: int
    end: int


class SyncUnproven(StorageUnavailable):
    """A sync would prove nothing: an earlier one was under way when its process died, or may still be."""

    default_message = StorageUnavailable.default_message

    def __init__(self, unproven: Unproven) -> None:
        super().__init__()
        self.unproven = unproven


class Syncs:
    """The syncs of one storage. Every method blocks."""

    def __init__(self, files: FileTree, check_identity: Callable[[], None], *, shared: bool = False) -> None:
        """Sync files of `files`, whose directory `check_identity` proves before a mark is made.

        `shared` tells that a writer may have lost its lease without knowing, so that it must not cut off anything.
        """
        self._files = files
        self._check_identity = check_identity
        self.marks = SyncMarks(files)
        self._shared = shared
        self.folders = FolderSyncs(files)
        self.health = SyncHealth(files, self.folders)
        self._failed_cuts = FailedCuts()
        self._tells_gaps: dict[int, bool] = {}  # device -> whether the gaps of its files are lost bytes

    def sync(
        self,
        descriptor: int,
        path: Path,
        kept: int,
        *,
        start: int = 0,
        acknowledged: int = 0,
        names: bool,
        with_call: Callable[[int], None] = sync_file,
        proves: bool = True,
    ) -> None:
        """Sync a file, and with `names` the folders that lead to it.

        After a failure the file is cut off at the end of the last good sync; on a shared directory the mark says so.

        Args:
            descriptor: the open file.
            path: its path.
            kept: end of the last good sync.
            start: position of the first byte of the file.
            acknowledged: end of the bytes of the file that a record may count.
            names: whether to sync the folders too.
            with_call: the call that syncs.
            proves: whether the bytes of the file count as synced afterwards; otherwise a mark stays.

        Raises:
            StorageBehind: the sync has failed.
            SyncUnproven: the outcome of an earlier sync is unknown; repeat this one after the steps of `stored_again`.
            StorageFull, StorageUnavailable: nothing was synced.
        """
        kept = max(kept, start)
        endangers = acknowledged > kept
        is_marked = endangers and not self._mark(path)
        if is_marked and proves:
            self._check_unproven(descriptor, Unproven(path, start, kept, acknowledged))
        elif is_marked:
            self._forget_proven(descriptor, path)
        try:
            with_call(descriptor)
        except OSError as error:
            self.lost(path, kept, error, start=start, inode=inode_of(descriptor), acknowledged=acknowledged)
        if endangers and not is_marked:
            self.marks.remove(path)
        if names:
            self._sync_names(descriptor, path, kept, start, acknowledged)

    def _sync_names(self, descriptor: int, path: Path, kept: int, start: int, acknowledged: int) -> None:
        """Sync the folders of a file that is synced; an error before their syncs, of opening them, proves no loss."""
        with contextlib.ExitStack() as stack:
            with file_errors():
                folders = self.folders.opened(path, stack)
            try:
                self._sync_open_folders(folders)
            except OSError as error:
                self.lost(path, kept, error, start=start, inode=inode_of(descriptor), acknowledged=acknowledged)

    def sync_whole(self, path: Path, size: int) -> None:
        """Sync a file of this size, and the folders that lead to it, without a cut if that fails; raises `OSError`.

        After a failure, or the death of the process, the next attempt stores the bytes again.
        """
        if not self.marks.make(path):
            with self._files.opened(path, os.O_RDWR) as descriptor:
                for position, data in read_steps(descriptor, 0, size):
                    write_at(descriptor, data, position)
        with self._files.opened(path, os.O_RDONLY) as descriptor:
            sync_file(descriptor)
        self.marks.remove(path)
        self.sync_folders(path)

    def _mark(self, path: Path) -> bool:
        """Make the mark of a file; return False if it has one. Raises `StorageFull`, `StorageUnavailable`."""
        self._check_identity()
        with file_errors():
            return self.marks.make(path)

    def _forget_proven(self, descriptor: int, path: Path) -> None:
        """Have a mark call no bytes proven that the next sync may lose."""
        inode = inode_of(descriptor)[1]
        with file_errors():
            found = self.marks.read(path, inode)
            if found is not None and found.proven and not found.lost:
                self.marks.note(path, inode, Mark())

    def _check_unproven(self, descriptor: int, unproven: Unproven) -> None:
        """Raise `StorageBehind` for a file with a mark that lacks bytes, and `SyncUnproven` for every other one."""
        path, kept, inode = unproven.path, unproven.kept, inode_of(descriptor)
        with file_errors():
            found = self.marks.read(path, inode[1]) or Mark()
            lacks_bytes = self._has_gap(descriptor, path, kept, unproven.end)
        if found.lost and max(found.proven, kept) < unproven.end:
            raise StorageBehind(max(found.proven, kept))
        if lacks_bytes:
            self.lost(path, kept, MissingBytes(), start=unproven.start, inode=inode, acknowledged=unproven.end)
        raise SyncUnproven(unproven)

    def sync_copy(self, descriptor: int, path: Path) -> None:
        """Sync a copy, which is copied again after a failure; raises `OSError`."""
        try:
            sync_file(descriptor)
        except OSError as error:
            self.health.report_failure(path, error, 0)
            raise

    def _has_gap(self, descriptor: int, path: Path, start: int, end: int) -> bool:
        """Return whether the file system tells that a part of a range never reached the device; raises `OSError`."""
        device = os.fstat(descriptor).st_dev
        if device not in self._tells_gaps:
            self._tells_gaps[device] = tells_gaps(path)
        gap = first_gap(descriptor, start, end) if self._tells_gaps[device] else None
        return gap is not None and gap < end

    def lost(self, path: Path, kept: int, error: OSError, *, start: int = 0, inode: Inode, acknowledged: int) -> None:
        """Cut off the bytes of a file that a failed sync may have lost; raises `StorageBehind`.

        On a shared directory the file is left alone, and its mark tells of the loss if a record may count the bytes.
        """
        kept = max(kept, start)
        self.health.report_failure(path, error, kept)
        if not self._shared:
            with contextlib.suppress(
                OSError
            ):  # there is no mark, or it outlives the file, whose number a later one gets
                self.marks.note(path, inode[1], Mark())
            self._cut_off(path, kept, start)
        elif acknowledged > kept:
            self._note_loss(path, kept, inode)
        raise StorageBehind(kept) from error

    def _cut_off(self, path: Path, kept: int, start: int) -> None:
        try:
            if kept == start:
                self._remove(path)  # later bytes go to a new file without doubtful pages
            else:
                with self._files.opened(path, os.O_RDWR) as descriptor:
                    _cut_for_good(descriptor, kept)
        except FileNotFoundError:
            self.marks.remove(path)
        except OSError as failure:
            logger.error("%s could not be cut off for good: %s", path, failure.strerror)
            self._distrust(path, kept)  # later processes find the mark
        else:
            self.marks.remove(path)

    def _note_loss(self, path: Path, kept: int, inode: Inode) -> None:
        """Write the loss of bytes to the mark of a file; without it the next writer does not rely on them either."""
        try:
            self._check_identity()
            found = self.marks.read(path, inode[1])
            if found is not None and found.lost:
                kept = min(kept, found.proven)
            self.marks.note(path, inode[1], Mark(kept, lost=True))
        except (OSError, UploadError) as failure:
            logger.error("the loss of bytes of %s could not be noted: %s", path, failure)

    def _remove(self, path: Path) -> None:
        """Remove a file for good: a power cut could bring it back in place of a later one. Raises `OSError`."""
        self._files.unlink(path)
        try:
            self.folders.sync(path.parent)
        except FileNotFoundError:
            raise
        except OSError:
            with (
                contextlib.suppress(OSError),
                self._files.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor,
            ):
                have_cut_again(descriptor, 0)
            raise

    def _distrust(self, path: Path, end: int) -> None:
        """Note that the bytes of a file from `end` on do not count, as long as nobody changes the file."""
        try:
            status = self._files.status(path)
        except OSError:
            self._failed_cuts.add(path, end, None)
        else:
            if status is not None:
                self._failed_cuts.add(path, end, status)

    def trusted_size(self, path: Path, status: os.stat_result) -> int:
        """Return the number of bytes that count in a file with this status: fewer if a failed cut left more."""
        end = self._failed_cuts.end(path, status)
        return status.st_size if end is None else min(status.st_size, end)

    def is_distrusted(self, path: Path, status: os.stat_result) -> bool:
        """Return whether a cut of a file has failed, or would not outlive a power cut, and nobody changed it since."""
        return self._failed_cuts.end(path, status) is not None

    def clear_distrust(self, path: AnyPath) -> None:
        """Record that a file is new, removed, or cut off for good at the offset of its upload."""
        self._failed_cuts.remove(path)

    def settle_cut(self, path: Path, end: int) -> None:
        """Sync the end of a file that has a mark, whose bytes count up to `end`, short of its record; raises `OSError`.

        The process that cut it off may have died before that was synced. Until it is, the record must not follow:
        nothing would tell the next writer. A file that is longer than `end` is cut off by that writer. Needs no lock,
        and leaves the mark to a caller that has it.
        """
        if not self.marks.exists(path) or (self._files.size(path) or 0) > end:
            return
        with contextlib.suppress(FileNotFoundError), self._files.opened(path, os.O_RDWR) as descriptor:
            sync_data(descriptor)
        with contextlib.suppress(FileNotFoundError):
            self.folders.sync(path.parent)

    def sync_folders(self, path: Path) -> None:
        """Sync the folders that hold the name of a file; raises `OSError`."""
        with contextlib.ExitStack() as stack:
            self._sync_open_folders(self.folders.opened(path, stack))

    def _sync_open_folders(self, descriptors: Sequence[int]) -> None:
        try:
            self.folders.sync_open(descriptors)
        except OSError:
            self.health.note_failure()
            raise


def inode_of(descriptor: int) -> Inode:
    """Return device and inode number, which distinguish a file from a later one of the same name."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _cut_for_good(descriptor: int, end: int) -> None:
    """Truncate a file, and sync that: a power cut could undo it, and count old bytes in place of later ones.

    The block around the new end is written again, since it was part of the failed sync. Raises `OSError`.
    """
    if os.fstat(descriptor).st_size >= end:
        begin = end - end % BLOCK_SIZE
        tail = os.pread(descriptor, end - begin, begin)
        os.ftruncate(descriptor, end)
        write_at(descriptor, tail, begin)
    try:
        sync_data(descriptor)
    except OSError:
        have_cut_again(descriptor, end)
        raise


def have_cut_again(descriptor: int, end: int) -> None:
    """Make a file whose cut at `end` is not synced one byte longer: whoever opens it for its record cuts it again."""
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end + 1)
