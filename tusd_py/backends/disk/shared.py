"""Storage in files on a file system that several hosts share, where a lease can be lost without its holder knowing.

A writer whose lease was not released may be stopped with the file open, and continue when it wakes up. No later writer
therefore writes to a file that such a writer may have open: it continues in a file of its own, named by its token
(`segment_map.py`), from the committed offset. Bytes that the earlier writer then still writes are beyond that offset,
in a file that is not read beyond it. Bytes that a record may count are never overwritten or cut off, also not after a
failed sync: its mark tells which bytes are lost (`sync_marks.py`). Completion joins the files under a new name, which
then replaces the first file.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

from tusd_py.backends.disk.claims import OWN_FOLDER
from tusd_py.backends.disk.copying import FileRange
from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.segment_map import PRIMARY_FILE, STORAGE_STATE, Segment, segments, storage_state_of
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.disk.sync_calls import sync_file
from tusd_py.backends.disk.sync_marks import Mark, marked_name, read_steps
from tusd_py.backends.disk.syncs import SyncUnproven
from tusd_py.backends.disk.writer import DiskWriter
from tusd_py.contracts.storage import Buffer, Observer, Orphan, UploadRecords
from tusd_py.core.errors import (
    LockLost,
    LockTimeout,
    PartBehind,
    StorageAhead,
    StorageBehind,
    StorageUnavailable,
    UploadNotFound,
)
from tusd_py.core.upload import UPLOAD_ID, Status, Upload, UploadPart
from tusd_py.transfer.whole_writes import write_at

SEGMENT = re.compile(rf"{UPLOAD_ID.pattern}\.[0-9a-f]+")
MARKED = re.compile(rf"{UPLOAD_ID.pattern}(\.[0-9a-f]+)?")


class SharedDiskStorage(DiskStorage):
    """A storage in files under one directory that all hosts have mounted, with completion records in a folder."""

    is_shared = True
    stores_in_threads = False  # completion may have to join several files

    def _can_read(self, storage_state: str) -> bool:
        return STORAGE_STATE.fullmatch(storage_state) is not None

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> SharedDiskWriter:
        return SharedDiskWriter(
            self, self.path(upload), upload, token, observer, unreleased_predecessors=unreleased_predecessors
        )

    async def stored_size(self, upload: Upload) -> int:
        path = self.path(upload)
        held = segments(upload.storage_state, upload.offset)

        def look() -> int:
            with file_errors():
                return self._contiguous(path, held, upload.synced)

        return await self.run(look)

    def _contiguous(self, path: Path, held: Sequence[Segment], synced: int) -> int:
        """Return the offset up to which bytes are stored; it exceeds that of the record if the last file is longer."""
        for segment in held:
            file = segment_path(path, segment.token)
            size = self.bytes_held(file, synced)
            if size < segment.end:
                self.check_identity()
                size = self.bytes_held(file, synced)  # the file system may have been mounted in between
            if size < segment.end:
                return max(segment.start, size)
        return size

    def bytes_held(self, path: Path, synced: int = 0) -> int:
        """Return the number of bytes of a file that count, of which the first `synced` are safe; 0 if there is no file.

        Blocks. NFS answers `stat` from its cache, but asks the server when a file or folder is opened.
        """
        size, mark = self._look(path)
        return min(size, max(mark.proven, synced)) if mark is not None and mark.lost else size

    def file_size(self, path: Path) -> int:
        return self._look(path)[0]

    def _look(self, path: Path) -> tuple[int, Mark | None]:
        """Return the size of a file, 0 if there is none, and its mark."""
        try:
            with self.files.opened_folder(path.parent), self.files.opened(path, os.O_RDONLY) as descriptor:
                status = os.fstat(descriptor)
                return status.st_size, self.syncs.marks.read(path, status.st_ino)
        except FileNotFoundError:
            return 0, None

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        path = self.path(upload)
        held = segments(upload.storage_state, upload.offset)

        def finish() -> tuple[bool, bool]:
            with file_errors():
                stored = self._contiguous(path, held, upload.synced)
                if stored < upload.offset:
                    raise StorageBehind(stored)
                if upload.offset == 0:
                    return self._make_empty(path, sync=sync), True
                whole = len(held) == 1 and self.file_size(path) == upload.offset
                return whole, not sync or self._is_proven(path, held, upload.synced, names=whole)

        whole, proven = await self.run_to_completion(finish)
        if not (whole and proven):
            await self._join_segments(path, held, sync=sync, in_kernel=proven)
        return ""

    def _make_empty(self, path: Path, *, sync: bool) -> bool:
        """Make the file of an upload without bytes, if it has none yet; return whether it is empty."""
        self.check_identity()
        with self.files.opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
            if sync:
                self.syncs.sync(descriptor, path, 0, names=True)
            return os.fstat(descriptor).st_size == 0

    def _is_proven(self, path: Path, held: Sequence[Segment], synced: int, *, names: bool) -> bool:
        """Sync the files of an upload; return whether that proves their bytes."""
        try:
            self.sync_segments(path, held, synced, names=names)
        except SyncUnproven:
            return False
        return True

    async def _join_segments(self, path: Path, held: Sequence[Segment], *, sync: bool, in_kernel: bool) -> None:
        ranges = [FileRange(segment_path(path, segment.token), segment.start, segment.end) for segment in held]
        try:
            await self.assemble(_unique_name(path), path, ranges, sync=sync, in_kernel=in_kernel)
        except (UploadNotFound, PartBehind) as error:  # another host has joined them, or HEAD finds the loss
            raise StorageUnavailable from error
        await self.run_to_completion(lambda: self.syncs.marks.remove(path))

    async def discard_superseded(self, upload: Upload) -> None:
        await self._remove_segments(upload)

    async def _remove_segments(self, upload: Upload) -> None:
        """Remove every file of an upload but the first."""
        path = self.path(upload)

        def remove() -> None:
            with file_errors():
                # No character of an id has a meaning in a glob. A mark may have outlived its file.
                for pattern in (f"{path.name}.*", f".{path.name}.*.sync"):
                    for file in path.parent.glob(pattern):
                        self.files.unlink(file)

        if upload.storage_state:
            await self.run_to_completion(remove)

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        path = self.path(final)
        ranges = [FileRange(self.path(partial), 0, partial.offset) for partial in partials]
        await self.assemble(_unique_name(path), path, ranges, sync=sync)
        return ""

    def sync_segments(self, path: Path, held: Sequence[Segment], synced: int, *, names: bool) -> None:
        """Sync the files of an upload that hold bytes beyond `synced`, also those that are copied.

        A failed sync, not a read, reports a lost page. Files that have nothing left to prove may hold bytes that do not
        count, of which a failed sync would tell nothing.

        Raises:
            StorageBehind: bytes are missing, or a sync has failed.
            SyncUnproven: an earlier sync of a file may have lost bytes. They have to be copied: the writer of that sync
                may have the file open.
        """
        unproven: SyncUnproven | None = None
        for segment in held:
            if segment.end > max(synced, segment.start):
                try:
                    self._sync_segment(segment_path(path, segment.token), segment, synced, names=names)
                except SyncUnproven as error:
                    unproven = error
        if unproven is not None:
            raise unproven

    def _sync_segment(self, file: Path, segment: Segment, synced: int, *, names: bool) -> None:
        with file_errors(), contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self.files.opened(file, os.O_RDWR))
                size = os.fstat(descriptor).st_size
            except FileNotFoundError:
                size = 0
            if size < segment.end:
                self.check_identity()
                raise StorageBehind(max(segment.start, size))
            self.syncs.sync(descriptor, file, synced, start=segment.start, acknowledged=segment.end, names=names)

    async def delete(self, upload: Upload) -> None:
        await super().delete(upload)
        await self._remove_segments(upload)

    async def clean(self, records: UploadRecords, *, older_than: float, dry_run: bool = False) -> Sequence[Orphan]:
        """Remove segments that no record names, left by a crash or by a writer that woke up late; return them.

        So are marks that nobody needs.
        """
        before = time.time() - older_than
        orphans = []
        for path, changed_at in await self.run(self._segments_and_marks):
            upload_id = (marked_name(path.name) or path.name).partition(".")[0]
            orphan = Orphan("file", str(path), upload_id, changed_at)
            if changed_at > before or _is_needed(await records.get(upload_id), path):
                continue
            if dry_run or await self._remove_orphan(orphan, records):
                orphans.append(orphan)
        return orphans

    async def _remove_orphan(self, orphan: Orphan, records: UploadRecords) -> bool:
        """Remove a file unless its upload is in use or needs it now; return whether it was removed."""
        path = Path(orphan.name)

        def remove() -> None:
            with file_errors():
                self.files.unlink(path)
                self.syncs.marks.remove(path)

        try:
            async with records.locked(orphan.upload_id) as upload:
                if _is_needed(upload, path):
                    return False
                await self.run(remove)
        except LockTimeout:
            return False
        return True

    def _segments_and_marks(self) -> list[tuple[Path, float]]:
        """Return every file that is not the first of its upload, every mark, and the times of their changes. Blocks."""
        found = []
        for folder, folders, names in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if not OWN_FOLDER.fullmatch(str(Path(folder).relative_to(self._directory))):
                continue
            for name in names:
                if SEGMENT.fullmatch(name) or MARKED.fullmatch(marked_name(name)):
                    with contextlib.suppress(FileNotFoundError):
                        path = Path(folder, name)
                        found.append((path, path.lstat().st_mtime))
        return found


class SharedDiskWriter(DiskWriter):
    """A writer that continues in the last file of an upload if no other writer can have it open, else in a new one."""

    def __init__(
        self,
        storage: SharedDiskStorage,
        path: Path,
        upload: Upload,
        token: int,
        observer: Observer | None,
        *,
        unreleased_predecessors: int,
    ) -> None:
        super().__init__(storage, path, upload, observer)
        self._shared = storage
        self._token = token
        self._unreleased_predecessors = unreleased_predecessors
        self._primary_path = path
        self._file_token = PRIMARY_FILE
        self._inherits_mark = False  # whether the file had a mark when this writer opened it
        self._held = segments(upload.storage_state, upload.offset)
        self._storage_state = storage_state_of(self._held)

    def _open(self) -> None:
        last = self._held[-1]
        path = segment_path(self._path, last.token)
        if not self._unreleased_predecessors and self._open_if_own(path):
            self._file, self._file_start, self._file_token = path, last.start, last.token
            return
        size = self._shared.bytes_held(path, self._synced)
        if size < self._start:
            self._shared.check_identity()
            size = self._shared.bytes_held(path, self._synced)
        if size < self._start:
            raise StorageBehind(max(last.start, size))
        if self._shared.read_completion_record(self._path.name) is not None:
            raise StorageAhead
        path = segment_path(self._path, self._token)
        try:
            self._descriptor = self._shared.files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # Redis has lost the lease of this token, and its clock has gone back
            raise LockLost from None
        self._file, self._file_start, self._file_token = path, self._start, self._token
        self._storage_state = storage_state_of([*self._held, Segment(self._token, self._start, self._start)])

    def _sync(self, *, names: bool, with_call: Callable[[int], None] = sync_file) -> None:
        """Sync the file, and once the earlier files: only then are all stored bytes safe."""
        synced = self._synced
        super()._sync(names=names, with_call=with_call)
        if synced < self._file_start:
            self._synced = synced
            try:
                self._shared.sync_segments(self._primary_path, self._earlier(), synced, names=True)
            except SyncUnproven as error:
                raise _EarlierUnproven(error.unproven) from error
            self._synced = self._stored

    def _earlier(self) -> list[Segment]:
        return [segment for segment in self._held if segment.start < segment.end <= self._file_start]

    def _finish(self, rest: list[Buffer], sync: bool) -> None:
        self._write_rest(rest)
        if sync:
            with contextlib.suppress(_EarlierUnproven):  # `Storage.finish` copies all files in any case
                self._sync(names=True)
        self._close()

    def _prove(self, error: SyncUnproven) -> Generator[None]:
        if isinstance(error, _EarlierUnproven):
            return self._copied()
        if not self._inherits_mark:  # a later writer has made it: this one has lost its lease
            raise error
        return super()._prove(error)

    def _copied(self) -> Generator[None]:
        """Copy what earlier files hold beyond the last good sync to the file of this writer, which then begins there.

        No other writer can have this file open, and nobody reads what it holds before its start. Yields after each
        step.
        """
        begin, earlier = self._synced, self._earlier()
        for segment in earlier:
            if segment.end > begin:
                path = segment_path(self._primary_path, segment.token)
                with file_errors(), self._shared.files.opened(path, os.O_RDONLY) as source:
                    for position, data in read_steps(source, max(begin, segment.start), segment.end):
                        write_at(self._descriptor, data, position)
                        self._shared.syncs.sync_copy(self._descriptor, self._path)
                        yield
        self._held = [replace(segment, end=min(segment.end, begin)) for segment in earlier if segment.start < begin]
        self._file_start = begin
        self._storage_state = storage_state_of([*self._held, Segment(self._file_token, begin, begin)])

    def _open_if_own(self, path: Path) -> bool:
        """Open the file if it ends at the offset of this writer; return whether it does."""
        try:
            descriptor = self._shared.files.open(path, os.O_RDWR | (os.O_CREAT if self._start == 0 else 0))
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(descriptor)
            if status.st_size == self._start:
                mark = self._shared.syncs.marks.read(path, status.st_ino)
                if mark is None or not mark.lost:
                    self._descriptor, self._inherits_mark = descriptor, mark is not None
                    return True
        finally:
            if self._descriptor < 0:
                os.close(descriptor)
        return False


class _EarlierUnproven(SyncUnproven):
    """The sync of an earlier file than that of the writer would prove nothing."""

    default_message = SyncUnproven.default_message


def _is_needed(upload: Upload | None, path: Path) -> bool:
    """Return whether the record names a segment, or the file that a mark belongs to and it is not complete."""
    if upload is None:
        return False
    marked = marked_name(path.name)
    _, _, token = (marked or path.name).partition(".")
    if marked and not token:
        return upload.status in (Status.ACTIVE, Status.FINISHING)
    return token in [word.partition(":")[2] for word in upload.storage_state.split()]


def segment_path(path: Path, token: int) -> Path:
    return path if token == PRIMARY_FILE else path.with_name(f"{path.name}.{token}")


def _unique_name(path: Path) -> Path:
    """Return a name that no other host uses, since a host that lost the lease may still write to its own."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}")
