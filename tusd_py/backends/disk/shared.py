"""Storage in files on a file system that several hosts share, where a lease can be lost without its holder knowing.

A writer whose lease was not released may be stopped with the file open, and continue when it wakes up. No later writer
therefore writes to a file that such a writer may have open: it continues in a file of its own, named by its token
(`segment_map.py`), from the committed offset. Bytes that the earlier writer then still writes are beyond that offset,
in a file that is not read beyond it. Existing bytes are never overwritten or cut off, and completion joins the files
under a new name, which then replaces the first file.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tusd_py.backends.disk.claims import OWN_FOLDER
from tusd_py.backends.disk.copying import FileRange
from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.segment_map import PRIMARY_FILE, STORAGE_STATE, Segment, segments, storage_state_of
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.disk.sync_marks import read_steps, write_at
from tusd_py.backends.disk.syncs import SyncUnproven, sync_file
from tusd_py.backends.disk.writer import DiskWriter
from tusd_py.contracts.storage import Observer, Orphan, UploadRecords
from tusd_py.core.errors import LockTimeout, PartBehind, StorageAhead, StorageBehind, StorageUnavailable, UploadNotFound
from tusd_py.core.upload import UPLOAD_ID, Upload, UploadPart

SEGMENT = re.compile(rf"{UPLOAD_ID.pattern}\.[0-9a-f]+")


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
                return self._contiguous(path, held)

        return await self.run(look)

    def _contiguous(self, path: Path, held: Sequence[Segment]) -> int:
        """Return the offset up to which bytes are stored; it exceeds that of the record if the last file is longer."""
        for segment in held:
            file = segment_path(path, segment.token)
            size = self.file_size(file)
            if size < segment.end:
                self.check_identity()
                size = self.file_size(file)  # the file system may have been mounted in between
            if size < segment.end:
                return max(segment.start, size)
        return size

    def file_size(self, path: Path) -> int:
        """Return the number of bytes of a file that count; 0 if there is no file. Blocks.

        NFS answers `stat` from its cache, but asks the server when a file or folder is opened.
        """
        try:
            with self.files.opened_folder(path.parent), self.files.opened(path, os.O_RDONLY) as descriptor:
                return self.syncs.trusted_size(path, os.fstat(descriptor))
        except FileNotFoundError:
            return 0

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        path = self.path(upload)
        held = segments(upload.storage_state, upload.offset)

        def finish() -> tuple[bool, bool]:
            with file_errors():
                stored = self._contiguous(path, held)
                if stored < upload.offset:
                    raise StorageBehind(stored)
                if upload.offset == 0:  # there may be no file yet
                    self.check_identity()
                    with self.files.opened(path, os.O_WRONLY | os.O_CREAT):
                        pass
                whole = len(held) == 1 and stored == upload.offset
                return whole, not sync or self.sync_segments(path, held, upload.synced, names=whole)

        whole, proven = await self.run_to_completion(finish)
        if not (whole and proven):
            await self._join_segments(path, held, sync=sync, in_kernel=proven)
        return ""

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
                for segment in path.parent.glob(f"{path.name}.*"):  # no character of an id has a meaning in a glob
                    self.files.unlink(segment)
                    self.syncs.marks.remove(segment)

        if upload.storage_state:
            await self.run_to_completion(remove)

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        path = self.path(final)
        ranges = [FileRange(self.path(partial), 0, partial.offset) for partial in partials]
        await self.assemble(_unique_name(path), path, ranges, sync=sync)
        return ""

    def sync_segments(self, path: Path, held: Sequence[Segment], synced: int, *, names: bool) -> bool:
        """Sync every file of an upload, also files that are copied: a failed sync, not a read, reports a lost page.

        Returns False if that proves nothing, since an earlier sync of a file may have lost bytes. These have to be
        copied: stored again in place, they could be cut off by a writer that wakes up.
        """
        proven = True
        for segment in held:
            file = segment_path(path, segment.token)
            with contextlib.suppress(FileNotFoundError), self.files.opened(file, os.O_RDWR) as descriptor:
                try:
                    self.syncs.sync(
                        descriptor,
                        file,
                        min(synced, segment.end),
                        start=segment.start,
                        acknowledged=segment.end,
                        names=names,
                        stores_again=False,
                    )
                except SyncUnproven:
                    proven = False
        return proven

    async def delete(self, upload: Upload) -> None:
        await super().delete(upload)
        await self._remove_segments(upload)

    async def clean(self, records: UploadRecords, *, older_than: float, dry_run: bool = False) -> Sequence[Orphan]:
        """Remove segments that no record names, left by a crash or by a writer that woke up late; return them."""
        before = time.time() - older_than
        orphans = []
        for path, changed_at in await self.run(self._segments):
            upload_id, _, token = path.name.partition(".")
            orphan = Orphan("file", str(path), upload_id, changed_at)
            if changed_at > before or _is_named(await records.get(upload_id), token):
                continue
            if dry_run or await self._remove_orphan(orphan, token, records):
                orphans.append(orphan)
        return orphans

    async def _remove_orphan(self, orphan: Orphan, token: str, records: UploadRecords) -> bool:
        """Remove a segment unless its upload is in use or names it now; return whether it was removed."""

        def remove() -> None:
            with file_errors():
                self.files.unlink(Path(orphan.name))
                self.syncs.marks.remove(Path(orphan.name))

        try:
            async with records.locked(orphan.upload_id) as upload:
                if _is_named(upload, token):
                    return False
                await self.run(remove)
        except LockTimeout:
            return False
        return True

    def _segments(self) -> list[tuple[Path, float]]:
        """Return every file that is not the first of its upload, and the time of its last change. Blocks."""
        found = []
        for folder, folders, names in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if not OWN_FOLDER.fullmatch(str(Path(folder).relative_to(self._directory))):
                continue
            for name in names:
                if SEGMENT.fullmatch(name):
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
        self._held = segments(upload.storage_state, upload.offset)
        self._storage_state = storage_state_of(self._held)

    def _open(self) -> None:
        last = self._held[-1]
        path = segment_path(self._path, last.token)
        if not self._unreleased_predecessors and self._open_if_own(path):
            self._path, self._file_start, self._file_token = path, last.start, last.token
            return
        size = self._shared.file_size(path)
        if size < self._start:
            self._shared.check_identity()
            size = self._shared.file_size(path)
        if size < self._start:
            raise StorageBehind(max(last.start, size))
        if self._shared.read_completion_record(self._path.name) is not None:
            raise StorageAhead
        path = segment_path(self._path, self._token)
        self._descriptor = self._shared.files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._path, self._file_start, self._file_token = path, self._start, self._token
        self._storage_state = storage_state_of([*self._held, Segment(self._token, self._start, self._start)])

    def _sync(self, *, names: bool, with_call: Callable[[int], None] = sync_file) -> None:
        """Sync the file, and once the earlier files: only then are all stored bytes safe."""
        synced = self._synced
        super()._sync(names=names, with_call=with_call)
        if synced < self._file_start:
            self._synced = synced
            earlier = [segment for segment in self._held if segment.start < segment.end <= self._file_start]
            if self._shared.sync_segments(self._primary_path, earlier, synced, names=True):
                self._synced = self._stored
            else:
                self._copy_unproven(earlier)
                super()._sync(names=names, with_call=with_call)

    def _copy_unproven(self, earlier: Sequence[Segment]) -> None:
        """Copy what earlier files hold beyond the last good sync to the file of this writer, which then begins there.

        No other writer can have this file open, and nobody reads what it holds before its start.
        """
        begin = self._synced
        with file_errors():
            for segment in earlier:
                if segment.end > begin:
                    path = segment_path(self._primary_path, segment.token)
                    with self._shared.files.opened(path, os.O_RDONLY) as source:
                        for position, data in read_steps(source, max(begin, segment.start), segment.end):
                            write_at(self._descriptor, data, position)
        self._held = [replace(segment, end=min(segment.end, begin)) for segment in earlier if segment.start < begin]
        self._file_start = begin
        self._storage_state = storage_state_of([*self._held, Segment(self._file_token, begin, begin)])

    def _open_if_own(self, path: Path) -> bool:
        """Open the file if it ends at the offset of this writer; return whether it does."""
        try:
            descriptor = self._shared.files.open(path, os.O_RDWR | (os.O_CREAT if self._start == 0 else 0))
        except FileNotFoundError:
            return False
        status = os.fstat(descriptor)
        if status.st_size == self._start and not self._shared.syncs.is_distrusted(path, status):
            self._descriptor = descriptor
            return True
        os.close(descriptor)
        return False


def _is_named(upload: Upload | None, token: str) -> bool:
    """Return whether the record names the segment with this token."""
    return upload is not None and token in [word.partition(":")[2] for word in upload.storage_state.split()]


def segment_path(path: Path, token: int) -> Path:
    return path if token == PRIMARY_FILE else path.with_name(f"{path.name}.{token}")


def _unique_name(path: Path) -> Path:
    """Return a name that no other host uses, since a host that lost the lease may still write to its own."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}")
