"""Errors of the operating system as errors of an upload."""

from __future__ import annotations

from tusd_py.backends.disk.files import NO_ROOM
from tusd_py.core.errors import StorageFull, StorageUnavailable


class file_errors:
    """A context in which errors of the operating system become errors of an upload."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise (StorageFull() if error.errno in NO_ROOM else StorageUnavailable()) from error
