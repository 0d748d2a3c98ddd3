"""Storage of uploads in files on a local disk, one file each, named by the id of the upload.

A finished upload has a completion record beside the files, from which its record can be restored if the state store
lost it, or was restored from a backup that is older than the files.

Every call to the file system runs in threads of the storage. A file is created with its first bytes; no space is
allocated for the length that a client declares.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tusd_py.asyncutil.brief_jobs import BriefJobs
from tusd_py.asyncutil.threads import Threads
from tusd_py.backends.disk.chosen_places import ChosenPlaces
from tusd_py.backends.disk.claims import own_files_above, place_of
from tusd_py.backends.disk.completion_records import CompletionRecords
from tusd_py.backends.disk.copying import CopyTools, FileCopier, FileRange
from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.file_system_sync import FileSystemSync, obstacle_to_sync
from tusd_py.backends.disk.files import FileTree, Modes, copy_range
from tusd_py.backends.disk.identity import IdentityFile
from tusd_py.backends.disk.locations import Locations
from tusd_py.backends.disk.reader import FileReader
from tusd_py.backends.disk.receiving_threads import ReceivingThreads
from tusd_py.backends.disk.steps import ExternalSteps
from tusd_py.backends.disk.storing_again import stored_again
from tusd_py.backends.disk.syncs import Syncs, SyncUnproven
from tusd_py.backends.disk.writer import DiskWriter
from tusd_py.contracts.storage import Buffer, Observer, OpenFile, PieceSize, largest_piece
from tusd_py.core.errors import (
    PartBehind,
    StorageBehind,
    StoredElsewhere,
    UploadNotFound,
)
from tusd_py.core.upload import Upload, UploadPart, is_upload_id

logger = logging.getLogger("tusd_py.storage")
NO_CLEAN_STOP = "after a power cut unfinished uploads go back to what was synced, even if the server had been stopped"

S = TypeVar("S")
T = TypeVar("T")

THREADS = 8
DEFAULT_MODES = Modes()


class DiskStorage:
    """A storage in files under one directory, in folders by day of creation if `date_folders` is set."""

    is_shared = False  # whether other hosts use the directory too
    stores_in_threads = True

    def __init__(
        self,
        directory: Path,
        completion_records: Path | None = None,
        *,
        date_folders: bool = False,
        modes: Modes = DEFAULT_MODES,
    ) -> None:
        """Create a storage that keeps completion records in the folder `completion_records`, if one is given."""
        self._directory = directory
        self._completion_records = CompletionRecords(completion_records) if completion_records else None
        self._locations = Locations(directory, date_folders=date_folders)
        self.files = FileTree(directory, modes)
        self._identity = IdentityFile(directory, stays_mounted=not self.is_shared)
        self.syncs = Syncs(self.files, self.check_identity, shared=self.is_shared)
        self._reader = FileReader(self)
        self._places = ChosenPlaces(directory, self.files, self.check_identity)
        self._external_steps = ExternalSteps()
        self._obstacle_to_sync = ""

    async def open(self) -> None:
        self._threads = Threads(THREADS, "tusd-py-disk")
        self.receiving = ReceivingThreads(THREADS)
        self._brief_jobs = BriefJobs(self._threads.run, THREADS)
        self._copier = FileCopier()
        await self.run(self._check_directory)

    def interrupt(self) -> None:
        self._copier.interrupt()

    async def close(self, timeout: float | None = None) -> bool:
        copies_ended = await self._copier.close(timeout)
        steps_ended = await asyncio.to_thread(self._external_steps.wait, timeout)
        threads = (self._threads, self.receiving)
        ended = await asyncio.gather(*(asyncio.to_thread(pool.close, timeout) for pool in threads))
        return all(ended) and copies_ended and steps_ended

    def run(self, work: Callable[[], T], *, brief: bool = False) -> asyncio.Future[T]:
        """Run blocking work in the threads of this storage."""
        return self._brief_jobs.run(work) if brief else self._threads.run(work)

    def run_external(
        self, submit: Callable[[Callable[[], S]], asyncio.Future[T]], step: Callable[[], S]
    ) -> asyncio.Future[T]:
        return self._external_steps.run(submit, step)

    async def run_to_completion(self, work: Callable[[], T], *, brief: bool = False) -> T:
        """Run blocking work that has to end before the lock of the upload is released.

        Only the end of the event loop cancels the task that holds the lock, and then the lock is not released
        (`LockedWork`).
        """
        return await self.run(work, brief=brief)

    async def run_steps(self, steps: Generator[None]) -> None:
        """Run the steps of work that may take long, in turns with copies; see `FileCopier.run`."""
        await self._copier.run(steps)

    def path(self, upload: Upload) -> Path:
        """Return the file of an upload, which is below the directory for any id; raises `StoredElsewhere`."""
        return Path(self._file(upload))

    def _file(self, upload: Upload) -> str:
        """Return the path of the file of an upload."""
        if not self._can_read(upload.storage_state):
            raise StoredElsewhere
        return self._locations.file(upload)

    def describe(self, upload: Upload) -> Mapping[str, str]:
        """See `DescribesPlaces.describe`."""
        try:
            return {"type": "filestore", "path": self._file(upload)}
        except (StoredElsewhere, UploadNotFound):  # the record names another storage
            return {}

    def free_space(self) -> int:
        """Return the free bytes of the file system of the directory, see `MeasuresFreeSpace`. Blocks."""
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def locate(self, upload: Upload) -> str:
        return self._locations.locate(upload)

    # Chosen places (`TakesPlaces`).

    def place(self, path: str) -> str:
        """Return the location of a place, see `TakesPlaces.place`."""
        if self.is_shared:
            raise ValueError("only uploads on one host have a path that a hook chooses")
        return self._places.location_of(path)

    def files_above(self, location: str) -> Sequence[tuple[str, str]]:
        """Return the ids and locations of files in the way of a place, see `TakesPlaces.files_above`."""
        return own_files_above(place_of(location))

    async def claim_place(self, upload: Upload) -> None:
        """Claim the location of a new upload, see `TakesPlaces.claim_place`."""
        await self.run_to_completion(partial(self._places.claim, upload))

    async def give_up_place(self, upload: Upload) -> None:
        """Give up the place of an upload that has no record, see `TakesPlaces.give_up_place`."""
        if place_of(upload.location):
            await self.run_to_completion(partial(self._places.give_up, upload))

    async def is_occupied(self, upload: Upload) -> bool:
        """Return whether something is in the way of a new upload, see `TakesPlaces.is_occupied`."""
        return await self.run(partial(self._places.is_occupied, self.path(upload)))

    async def located(self, upload: Upload) -> Upload:
        """Return the record with its location: the folder of the day or the directory, by earlier settings."""
        if upload.location or not self._can_read(upload.storage_state):
            return upload
        candidates = [replace(upload, location=location) for location in self._locations.candidates(upload)]

        def look() -> Upload:
            with file_errors():
                sizes = [self.files.size(self.path(candidate)) for candidate in candidates]
            for wanted in (upload.offset, 0):
                for candidate, size in zip(candidates, sizes, strict=True):
                    if size is not None and size >= wanted:
                        return candidate
            return candidates[0]

        return await self.run(look)

    def _can_read(self, storage_state: str) -> bool:
        return not storage_state

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> DiskWriter:
        # No fencing is needed: a lock of this host ends with its process, which then cannot write either.
        return DiskWriter(self, self._file(upload), upload, observer)

    async def stored_size(self, upload: Upload) -> int:
        path = self.path(upload)

        def size() -> int:
            with file_errors():
                held = self.bytes_held(path)
                if held < upload.offset:
                    self.check_identity()
                    held = self.bytes_held(path)  # the file system may have been mounted in between
                    if held < upload.offset:
                        self.syncs.settle_cut(path, held)
                elif upload.synced < upload.offset:
                    self.check_identity()  # a file system that was mounted again lacks such bytes
                return held

        return await self.run(size)

    def file_size(self, path: Path) -> int:
        """Return the number of bytes of a file that count; 0 if there is no file. Blocks."""
        return self.bytes_held(path)

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        path = self.path(upload)
        length = upload.offset

        def finish() -> None:
            with file_errors(), self._opened_whole(path, length) as descriptor:
                if os.fstat(descriptor).st_size > length:
                    os.ftruncate(descriptor, length)
                if sync:
                    self.syncs.sync(descriptor, path, upload.synced, acknowledged=length, names=True)

        try:
            await self.run_to_completion(finish)
        except SyncUnproven as error:
            await self.run_steps(stored_again(self.syncs, self.files, error.unproven))
            await self.run_to_completion(finish)
        return ""

    def bytes_held(self, path: Path) -> int:
        """Return the number of bytes of a file that count, by its status; 0 if there is no file. Blocks."""
        status = self.files.status(path)
        return 0 if status is None else self.syncs.trusted_size(path, status)

    def _has_no_file(self, path: Path) -> bool:
        try:
            return self.files.size(path) is None
        except OSError:  # an object of another kind has the name
            return False

    @contextlib.contextmanager
    def _opened_whole(self, path: Path, length: int) -> Iterator[int]:
        """Open the file of an upload that has all bytes, for the context; raises `StorageBehind`."""
        if length == 0:
            self.check_identity()  # an upload without bytes may have no file yet
        try:
            descriptor = self.files.open(path, os.O_RDWR | (os.O_CREAT if length == 0 else 0))
        except FileNotFoundError:
            self.check_identity()
            self.syncs.settle_cut(path, 0)
            raise StorageBehind(0) from None
        try:
            size = self.syncs.trusted_size(path, os.fstat(descriptor))
            if size < length:
                self.check_identity()
                self.syncs.settle_cut(path, size)
                raise StorageBehind(size)
            yield descriptor
        finally:
            os.close(descriptor)

    async def discard_superseded(self, upload: Upload) -> None:
        """Do nothing: an upload has one file."""

    async def delete(self, upload: Upload) -> None:
        path = self.path(upload)

        def remove() -> None:
            with file_errors():
                is_own = self._places.has_own_file(upload)
                # Of an upload at 0 too: bytes may be there that were never committed.
                if not is_own or self._has_no_file(path):
                    self.check_identity()
                if self._completion_records is not None:
                    self._completion_records.remove(upload.id)
                if not is_own:
                    return
                self.files.unlink(path)
                self.files.unlink(_unfinished(path))
                self.syncs.clear_distrust(path)
                self.syncs.marks.remove(path)
                if upload.has_ended:
                    self._places.release(upload)

        await self.run_to_completion(remove)

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        path = self.path(final)
        ranges = [FileRange(self.path(partial), 0, partial.offset) for partial in partials]
        # One name is enough under the lock of the upload; the next attempt replaces a file that a crash left.
        await self.assemble(_unfinished(path), path, ranges, sync=sync)
        return ""

    async def assemble(
        self, new: Path, path: Path, ranges: Sequence[FileRange], *, sync: bool, in_kernel: bool = True
    ) -> None:
        """Concatenate ranges of files in the file `new`, which then replaces `path`; see `copy` for `in_kernel`."""
        copy = partial(self.copy, in_kernel=in_kernel)
        tools = CopyTools(file_errors, self._create, copy, self.files, self.syncs)
        await self._copier.run(self._copier.steps(new, path, ranges, tools, sync=sync))

    def _create(self, path: Path) -> int:
        self.check_identity()
        self.files.unlink(path)  # a file that a crash left may have doubtful pages
        return self.files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def copy(self, target: int, source: Path, start: int, end: int, *, in_kernel: bool = True) -> None:
        """Append a range of another file; raises `UploadNotFound`, `PartBehind`. Blocks.

        A copy `in_kernel` may share what is on the device, where pages that a failed sync has lost are missing.
        """
        try:
            with self.files.opened(source, os.O_RDONLY) as descriptor:
                held = copy_range(target, descriptor, start, end, in_kernel=in_kernel)
        except FileNotFoundError:
            self.check_identity()
            raise UploadNotFound("a partial upload is no longer there") from None
        if held < end:
            self.check_identity()
            raise PartBehind(source.name, held)

    def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        return self._reader.read(self.path(upload), start, end, piece_size)

    async def open_file(self, upload: Upload) -> OpenFile:
        """Open the file of a complete upload, see `SupportsFileSending`."""
        return await self._reader.open_file(self.path(upload), upload.offset)

    async def whole_file(self, upload: Upload) -> Path | None:
        """Return the file of a complete upload, unless it is longer, see `SupportsWholeFiles`."""
        path = self.path(upload)
        return path if await self._reader.has_size(path, upload.offset) else None

    def _check_directory(self) -> None:
        with file_errors():
            self.files.make()
            if not os.access(self._directory, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self._directory))
            self.syncs.health.open()
        if not self.is_shared:
            with contextlib.suppress(OSError):  # not Linux
                self._obstacle_to_sync = obstacle_to_sync(self._directory)

    def check_identity(self) -> None:
        """Raise `WrongStorage` unless this is the directory that the records name. Blocks.

        An unmounted directory is another, empty one: new bytes would be hidden by the mount, and its bytes would seem
        lost.
        """
        with file_errors():
            self._identity.check()

    # The identity (`SupportsIdentity`).

    async def read_identity(self) -> str | None:
        return await self._on_identity(self._identity.read)

    async def create_identity(self, identity: str, *, replace: bool = False) -> None:
        await self._on_identity(lambda: self._identity.create(identity, replace=replace))

    @property
    def what_to_check(self) -> str:
        return self._identity.proof.what_to_check

    def expect_identity(self, identity: str) -> None:
        self._identity.expect(identity)

    async def prove_identity(self) -> None:
        await self._on_identity(self._identity.check)

    async def renew_identity(self) -> None:
        await self._on_identity(self._identity.touch)

    async def _on_identity(self, work: Callable[[], T]) -> T:
        def run() -> T:
            with file_errors():
                return work()

        return await self.run(run)

    # Completion records.

    def read_completion_record(self, upload_id: str) -> Upload | None:
        """Return the record of a finished upload whose bytes are there, or None. Blocks."""
        if self._completion_records is None:
            return None
        with file_errors():
            upload = self._completion_records.read(upload_id)
            if upload is not None and self.file_size(self.path(upload)) == upload.offset:
                return upload
            self.check_identity()  # only in the right directory does a missing record mean a missing upload
            return None

    async def save_completion_record(self, upload: Upload) -> None:
        await self.run_to_completion(lambda: self.save_completion_record_in_thread(upload), brief=True)

    def save_completion_record_in_thread(self, upload: Upload) -> None:
        with file_errors():
            if self._completion_records is not None:
                self._completion_records.write(upload)

    async def load_completion_record(self, upload_id: str) -> Upload | None:
        if self._completion_records is None or not is_upload_id(upload_id):
            return None
        return await self.run(lambda: self.read_completion_record(upload_id))

    # Running.

    def whole_sync(self) -> FileSystemSync | None:
        """See `SyncsAll.whole_sync`; the last server of a directory that hosts share cannot be known."""
        return None if self.is_shared else FileSystemSync(self._directory)

    async def check(self) -> None:
        """Raise `StorageUnavailable` if bytes cannot be stored safely now."""
        if self.syncs.health.failed:
            await self.run(self.syncs.health.check)

    @property
    def limitations(self) -> Sequence[str]:
        """One sentence for each ability that the file system lacks."""
        obstacle = self._obstacle_to_sync
        return [*self.syncs.folders.limitations, *([f"{obstacle}: {NO_CLEAN_STOP}"] if obstacle else [])]


def _unfinished(path: Path) -> Path:
    """Return the file that a concatenation fills; no upload id starts with a dot."""
    return path.with_name(f".{path.name}.concatenation")
