"""Backends of another package: files for the bytes, SQLite for the records, `flock` for the locks."""

from __future__ import annotations

from tusd_py import Settings

from .locker import FileLocker
from .state import RecordTable
from .storage import FolderStorage

__all__ = ["FileLocker", "FolderStorage", "RecordTable", "make_locker", "make_state_store", "make_storage"]


def make_storage(settings: Settings) -> FolderStorage:
    """Make the storage that `--storage-plugin sample` names."""
    return FolderStorage(settings.upload_dir / "bytes")


def make_state_store(settings: Settings) -> RecordTable:
    """Make the state store that `--state-plugin sample` names."""
    return RecordTable(settings.upload_dir / "records.db")


def make_locker(settings: Settings) -> FileLocker:
    """Make the locker that `--locker-plugin sample` names."""
    return FileLocker(settings.upload_dir / "locks")
