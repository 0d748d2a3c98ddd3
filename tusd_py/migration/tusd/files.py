"""Import of a directory of the filestore of tusd.

Invariant: a record is created only after its bytes are in place. So after an interruption a second run skips the
uploads that have a record, and imports the others. The import removes and changes nothing in the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tusd_py.backends.disk.files import FULL_DISK_ERRORS, READ_SIZE, FileTree, copy_range
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import SupportsCompletionRecords
from tusd_py.core.command_progress import Progress, no_progress
from tusd_py.core.errors import StorageFull, StorageUnavailable, UploadExists
from tusd_py.core.upload import Upload
from tusd_py.migration.report import Reporter, Summary, UploadRefused, abbreviated, no_report, printable
from tusd_py.migration.state_copy import opened_state, opened_storage
from tusd_py.migration.tusd.info import TusdUpload, parse_info, to_upload
from tusd_py.settings import Settings
from tusd_py.uploads.identity import IdentityCheck

INFO = ".info"
MAX_INFO_SIZE = 8 << 20  # bytes; the headers of a request to tusd have 1 MiB at most


@dataclass(frozen=True, slots=True)
class Data:
    """The data file of an upload of tusd; `path` is None if there is none. Size in bytes."""

    path: Path | None
    size: int
    modified_at: float  # seconds since the epoch


async def import_tusd(
    settings: Settings,
    directory: Path,
    *,
    copy: bool = False,
    dry_run: bool = False,
    report: Reporter = no_report,
    report_error: Reporter = no_report,
    progress: Progress = no_progress,
) -> Summary:
    """Import the uploads of a directory, which may be the upload directory itself.

    Args:
        settings: of the server that takes the uploads over.
        directory: the upload directory of tusd.
        copy: copy finished uploads too; otherwise they become links to their files where that is possible.
        dry_run: only report.
        report: called with a line for each imported upload.
        report_error: called with a line for each refused .info file.
        progress: called before each .info file.

    Returns:
        The numbers of imported, skipped and refused uploads.

    Raises:
        StorageUnavailable: the directory or the storage cannot be used; the text names it.
        StorageFull: the upload directory is full.
        StateUnavailable: the records cannot be used.
    """
    directory, names = await asyncio.to_thread(_listed, directory)
    async with (
        opened_storage(settings, dry_run=dry_run) as storage,
        opened_state(settings, "redis" if settings.redis.url else "sqlite", scratch=dry_run) as state,
    ):
        if not isinstance(storage, DiskStorage):
            raise StorageUnavailable("uploads of tusd can be taken over only to where they are files")
        if not dry_run:
            await IdentityCheck(state, storage).settle(records_inside=settings.redis.url is None)
        run = DirectoryImport(settings, directory, names, state, storage, copy=copy, dry_run=dry_run)
        return await run.uploads(report, report_error, progress)


def _listed(directory: Path) -> tuple[Path, list[str]]:
    """Return the path of a directory without links, and the names of its .info files. Runs in a worker thread."""
    try:
        real = Path(os.path.realpath(directory, strict=True))
        return real, sorted(name for name in os.listdir(real) if name.endswith(INFO))
    except OSError as error:
        raise StorageUnavailable(f"{directory}: {error.strerror}") from error


class DirectoryImport:
    """One import of a directory, as in `import_tusd`."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        names: Sequence[str],
        state: StateStore,
        storage: DiskStorage,
        *,
        copy: bool,
        dry_run: bool,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._names = dict.fromkeys(names)  # in order, and quick to search
        self._claimed: set[Path] = set()
        self._state = state
        self._copy = copy
        self._dry_run = dry_run
        self._storage = storage

    async def uploads(self, report: Reporter, report_error: Reporter, progress: Progress) -> Summary:
        """Import all uploads, in the order of their names; raises `StorageFull`."""
        summary = Summary()
        for name in self._names:
            progress(summary.done, len(self._names))
            try:
                upload = await self.upload(name)
            except (UploadRefused, OSError) as error:
                if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
                    raise StorageFull(f"the upload directory {self._settings.upload_dir} is full") from error
                reason = str(error) if isinstance(error, UploadRefused) else f"failed: {error.strerror}"
                report_error(f"{abbreviated(name)} {printable(reason)}")
                summary.refused += 1
                continue
            if upload is not None:
                report(f"{upload.id} {upload.offset} of {'?' if upload.length is None else upload.length} bytes")
            summary.copied += upload is not None
            summary.skipped += upload is None
        return summary

    async def upload(self, name: str) -> Upload | None:
        """Import the upload of an .info file; None if it has a record. Raises `UploadRefused`, `OSError`."""
        content, written_at = await asyncio.to_thread(_read_info, self._directory / name)
        info = parse_info(content)
        if name != info.id + INFO:
            raise UploadRefused(f"is of the upload {info.id}")
        path = await asyncio.to_thread(data_path, info, self._directory)
        self._claim(path, info)
        if await self._state.get(info.id) is not None:
            return None
        data = await asyncio.to_thread(find_data, info, path, written_at)
        times = {"created_at": written_at, "modified_at": data.modified_at, "now": self._state.clock.wall()}
        upload = to_upload(info, data.size, **times, settings=self._settings)
        upload = replace(upload, location=self._storage.locate(upload), synced=upload.offset)
        if not self._dry_run:
            # An unfinished upload must not share its file with the original, which would be written to as well.
            link = upload.is_complete and not self._copy
            await asyncio.to_thread(place, data, upload, self._storage, link=link)
            if isinstance(self._storage, SupportsCompletionRecords) and upload.is_complete and not upload.is_partial:
                await self._storage.save_completion_record(upload)
            with contextlib.suppress(UploadExists):
                await self._state.create(upload, durable=True)
        return upload

    def _claim(self, path: Path, info: TusdUpload) -> None:
        """Refuse an upload whose file belongs to another one, since both would change together."""
        named_by_another = path.parent == self._directory and path.name != info.id and path.name + INFO in self._names
        if named_by_another or path in self._claimed:
            raise UploadRefused(f"has its data in {abbreviated(str(path))}, the file of another upload")
        self._claimed.add(path)


def _read_info(path: Path) -> tuple[bytes, float]:
    """Return the content of an .info file, and the time of its last change. Blocks.

    Raises:
        UploadRefused: it is too long.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=lambda name, _: _open_regular(name)) as file:
        content = file.read(MAX_INFO_SIZE + 1)
        if len(content) > MAX_INFO_SIZE:
            raise UploadRefused(f"is longer than {MAX_INFO_SIZE} bytes")
        return content, os.fstat(file.fileno()).st_mtime


def data_path(info: TusdUpload, directory: Path) -> Path:
    """Return the path of the data of an upload, below the real directory; the file may be missing."""
    own = directory / info.id
    for base in (Path.cwd(), directory.parent, directory) if info.path else ():
        try:
            path = Path(os.path.realpath(base / info.path))
            if path.is_relative_to(directory) and path.is_file():
                hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
                return own if hidden else path
        except (OSError, ValueError):  # not a valid path
            continue
    return own


def find_data(info: TusdUpload, path: Path, written_at: float) -> Data:
    """Return the data file of an upload. Raises `UploadRefused`."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        if info.path and Path(info.path).name != info.id:
            raise UploadRefused(
                f"has its data in {abbreviated(info.path)}, where there is no file of this directory"
            ) from None
        return Data(None, 0, written_at)
    if not stat.S_ISREG(status.st_mode):
        raise UploadRefused(f"has its data in {abbreviated(str(path))}, which is not a regular file")
    return Data(path, status.st_size, status.st_mtime)


def place(data: Data, upload: Upload, storage: DiskStorage, *, link: bool) -> None:
    """Copy the bytes to their place in the storage, with `link` by a hard link where possible, and sync them. Blocks.

    Raises `UploadRefused` if another file is in this place.
    """
    target = storage.path(upload)
    if data.path is not None and target.is_file() and os.path.realpath(target) == str(data.path):
        pass  # in place
    elif not os.path.lexists(target):
        storage.files.make_folders(target)
        if not (link and data.path is not None and _linked(data.path, target)):
            _copy(data, target, storage.files)
    elif data.path is not None and target.samefile(data.path):
        if not link:
            _copy(data, target, storage.files)
    elif not _is_copy(data, target):
        raise UploadRefused(f"would replace {target}, another file")
    storage.syncs.sync_whole(target, data.size)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, no support for links, or a file of another user
        return False
    return True


def _copy(data: Data, target: Path, files: FileTree) -> None:
    """Copy all bytes through a temporary file, so that a target is never incomplete."""
    unfinished = target.with_name(f".{target.name}.import")  # no upload id starts with a dot
    try:
        with files.opened(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            if data.path is not None:
                with _regular(data.path) as source:
                    if copy_range(descriptor, source, 0, data.size) < data.size:
                        raise UploadRefused("lost bytes meanwhile: is tusd still running?")
            os.fsync(descriptor)
        files.rename(unfinished, target)
    except FileNotFoundError:
        raise UploadRefused("lost bytes meanwhile: is tusd still running?") from None
    finally:
        files.unlink(unfinished)


def _is_copy(data: Data, target: Path) -> bool:
    with _regular(target) as copy:
        if os.fstat(copy).st_size != data.size:
            return False
        if data.path is None:
            return True
        with _regular(data.path) as source:
            return all(
                os.pread(source, READ_SIZE, position) == os.pread(copy, READ_SIZE, position)
                for position in range(0, data.size, READ_SIZE)
            )


@contextlib.contextmanager
def _regular(path: Path) -> Iterator[int]:
    """Open a regular file for reading for the context; raises as `_open_regular` does."""
    descriptor = _open_regular(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_regular(path: str | Path) -> int:
    """Open a regular file for reading, without following a link. Raises `UploadRefused` for other kinds of files."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UploadRefused("is a symbolic link") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UploadRefused("is not a regular file")
    return descriptor
