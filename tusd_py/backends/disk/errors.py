"""Errors of the operating system as errors of an upload."""

from __future__ import annotations

from tusd_py.backends.disk.files import FULL_DISK_ERRORS
from tusd_py.core.errors import StorageFull, StorageUnavailable


class file_errors:
    """A context that converts errors of the operating system to upload errors."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise (StorageFull() if error.errno in FULL_DISK_ERRORS else StorageUnavailable()) from error
